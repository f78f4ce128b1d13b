"""The report page: what it says, that it stands alone, and what bad input gets."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner
from fixture_results import HIT, make_dataset, make_results, make_run

from allmrec_jax.commands.report import command
from allmrec_jax.errors import UserError
from allmrec_jax.report import figures, paper
from allmrec_jax.report.page import read_results, write_report


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report")
    make_results(root / "results", make_dataset(root / "data"))
    runs = [make_run(root / "runs" / kind, kind) for kind in ("cf", "stage2")]
    write_report(root / "report.html", [root / "results"], runs, data=root / "data")
    return root


class Page(HTMLParser):
    """Text, tags with attributes, and tags left open."""

    VOID = ("meta", "br", "link", "img", "use", "path", "rect")

    def __init__(self, source: str):
        super().__init__()
        self.words: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.feed(source)
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def page(made: Path) -> Page:
    return Page((made / "report.html").read_text())


def test_page_is_well_formed_and_stands_alone(made: Path, page: Page):
    assert page.open == []
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.tags}
    source = (made / "report.html").read_text()
    assert not re.findall(r"(?:src|href)=[\"'](?!#)", source.replace('xlink:href="#', ""))
    assert "url(http" not in source and "@import" not in source


def test_ids_are_unique_so_that_figures_do_not_borrow_from_each_other(page: Page):
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_every_system_has_value_interval_and_the_papers_value(made: Path, page: Page):
    for system in HIT:
        assert system in page.text
    value, low, high = read_results(made / "results")["systems"]["A-LLMRec"]["all"]["hit@1"]
    assert f"{value:.3f} {low:.3f} to {high:.3f} 0.33 to 0.62" in page.text  # the paper's range in its Table 1
    assert "other data and another language model" in page.text


def test_figures_say_their_numbers_to_those_who_cannot_see(made: Path, page: Page):
    drawn = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert (
        len(drawn) == 3 + 3 + 4
    )  # slices, differences, two runs of a loss and of the validation metric that is not left out
    labels = [attrs["aria-label"] for attrs in drawn]
    assert all(attrs["role"] == "img" for attrs in drawn)
    cold = read_results(made / "results")["systems"]["SASRec"]["cold"]["hit@1"][0]
    assert any("cold items: Oracle" in label and f"SASRec {cold:.3f}" in label for label in labels)


def test_figures_follow_the_colour_scheme(made: Path):
    source = (made / "report.html").read_text()
    svg = "".join(re.findall(r"<svg.*?</svg>", source, re.DOTALL))
    assert "var(--ours)" in svg
    assert not re.findall(r"#[0-9a-f]{6}\b", svg)
    unstyled = [text for text in re.findall(r"<text [^>]*>", svg) if "fill" not in text]
    assert not unstyled


def test_titles_are_escaped(made: Path, page: Page):
    assert "<b>Bold</b>" not in (made / "report.html").read_text()
    assert 'The "<b>Bold</b>" & the 3th' in page.text


def test_five_examples_show_prompt_answer_and_truth(page: Page):
    assert sum(tag == "article" for tag, _ in page.tags) == 5
    assert page.text.count("← true next item") == 5
    assert page.text.count('The recommendation is "') == 5


def test_same_input_gives_the_same_page(made: Path):
    runs = [made / "runs" / "cf", made / "runs" / "stage2"]
    write_report(made / "again.html", [made / "results"], runs, data=made / "data")
    assert (made / "again.html").read_text() == (made / "report.html").read_text()


def test_page_without_data_runs_or_generation(tmp_path: Path, made: Path):
    results = json.loads((made / "results" / "results.json").read_text())
    results["systems"] = {"SASRec": {"all": results["systems"]["SASRec"]["all"]}}
    results["paired"] = {}
    (tmp_path / "results.json").write_text(json.dumps(results))
    write_report(tmp_path / "report.html", [tmp_path])
    text = Page((tmp_path / "report.html").read_text()).text
    assert "Best Hit@1: SASRec" in text
    assert "Cold and warm items" not in text and "Paired" not in text and "ValidRatio –" not in text


def test_paper_values():
    assert paper.hit_at_1("A-LLMRec", "all")["Luxury_Beauty"] == 0.5809
    assert paper.hit_at_1("A-LLMRec (SBERT)", "cold")["Movies_and_TV"] == 0.5772
    assert paper.hit_at_1("A-LLMRec, users swapped", "all") == {}


def test_a_long_curve_is_binned_and_ends_at_its_last_value():
    svg = figures.curve(range(1, 1001), [1000.0 - step for step in range(1, 1001)], "falls", unit="step")
    assert "2</text>" in svg  # mean of the last five values: 4, 3, 2, 1, 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no results.json"),
        ("{", "not valid JSON"),
        ('{"schema": 2}', "not results of schema 1"),
        ('{"schema": 1, "data": {"name": "x"}, "runs": []}', "'runs' is missing or empty"),
    ],
)
def test_bad_results_name_the_file(tmp_path: Path, content: str | None, message: str):
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(UserError, match=message) as error:
        read_results(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_other_data_than_evaluated_is_refused(made: Path, tmp_path: Path):
    make_dataset(tmp_path / "data", users=30)
    with pytest.raises(UserError, match="measured on data set"):
        write_report(tmp_path / "report.html", [made / "results"], data=tmp_path / "data")
    assert not (tmp_path / "report.html").exists()


def test_command_tells_results_from_runs(made: Path, tmp_path: Path):
    out = tmp_path / "page.html"
    told = CliRunner().invoke(command, [str(made / "runs" / "cf"), str(made / "results"), "--out", str(out)])
    assert told.exit_code == 0, told.output
    assert told.output.strip() == str(out)
    assert "Collaborative filtering" in Page(out.read_text()).text


def test_command_refuses_other_directories(made: Path, tmp_path: Path):
    told = CliRunner().invoke(command, [str(tmp_path)])
    assert isinstance(told.exception, UserError)
    told = CliRunner().invoke(command, [str(made / "runs" / "cf")])
    assert isinstance(told.exception, UserError)
