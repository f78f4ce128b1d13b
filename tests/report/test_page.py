"""The report's pages: what they say, that they stand alone wherever they lie, and what bad input gets."""

import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from fixture_results import HIT, identity_of, make_dataset, make_results, make_run

from allmrec_jax.commands.report import command
from allmrec_jax.errors import UserError
from allmrec_jax.evaluation.systems import SYSTEMS
from allmrec_jax.outputs import MARK
from allmrec_jax.report import paper
from allmrec_jax.report.readers import read_answers, read_results
from allmrec_jax.report.site import ReportSources, write_report


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report")
    make_results(root / "results", make_dataset(root / "data"))
    runs = [make_run(root / "checkpoints", kind) for kind in ("cf", "stage2")]
    write_report(root / "report.html", ReportSources([root / "results"], runs, [root / "data"]), models=False)
    found = ReportSources([root / "results"], (), [root / "data"], root / "checkpoints", {"table6": "no 256 users"})
    assert write_report(root / "made" / "site", found, models=False) == root / "made" / "site" / "index.html"
    return root


class Page(HTMLParser):
    """Text, tags with attributes, and tags left open."""

    VOID = ("meta", "br", "link", "input")

    def __init__(self, source: str):
        super().__init__()
        self.words: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.feed(re.sub(r"<path[^>]*/>|<rect[^>]*/>|<circle[^>]*/>", "", source))
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] not in (["script"], ["style"]):
            self.words.append(data)


@pytest.fixture(scope="module")
def page(made: Path) -> Page:
    return Page((made / "report.html").read_text())


def site_pages(made: Path) -> list[Path]:
    return sorted((made / "made" / "site").glob("**/*.html"))


def test_pages_are_well_formed_and_need_no_network(made: Path):
    pages = [made / "report.html", *site_pages(made)]
    assert len(pages) == 1 + 2 + 2  # the page; index and evaluation; two runs
    for path in pages:
        source = path.read_text()
        assert Page(source).open == []
        assert not re.search(r"https?://|url\(|@import", source), path
        ids = [attrs["id"] for _, attrs in Page(source).tags if "id" in attrs]
        assert len(ids) == len(set(ids))
    assert not re.findall(r"(?:src|href)=[\"'](?!#)", (made / "report.html").read_text())


def test_every_link_of_a_moved_folder_leads_somewhere(made: Path, tmp_path: Path):
    site = tmp_path / "elsewhere"
    shutil.copytree(made / "made" / "site", site)
    count = 0
    for path in site.glob("**/*.html"):
        for _, attrs in Page(path.read_text()).tags:
            target = attrs.get("href") or attrs.get("src")
            if target is None:
                continue
            name, _, anchor = unquote(target).partition("#")
            there = (path.parent / name).resolve() if name else path
            assert there.is_file() and there.is_relative_to(site), (path, target)
            assert not anchor or any(a.get("id") == anchor for _, a in Page(there.read_text()).tags), (path, target)
            count += 1
    for table in site.glob("tables/*.md"):
        for target in re.findall(r"\]\((.*?)\)", table.read_text()):
            assert (table.parent / target).is_file()
            count += 1
    assert count > 40


def test_a_value_leads_to_its_runs_settings_and_log(made: Path):
    site = made / "made" / "site"
    value = read_results(made / "results")["systems"]["A-LLMRec"]["all"]["hit@1"][0]
    folder = f"runs/{identity_of('stage2')[:12]}"
    assert f'<a class="v" href="{folder}/index.html">{value:.3f}</a>' in (site / "results.html").read_text()
    run = Page((site / folder / "index.html").read_text())
    assert "learning_rate 0.0001" in run.text and "It took 12 s and at most 400 MiB." in run.text
    assert f"../{identity_of('cf')[:12]}/index.html" in [attrs.get("href") for _, attrs in run.tags]
    assert len((site / folder / "metrics.jsonl").read_text().splitlines()) == 60
    about = json.loads((site / folder / "run.json").read_text())
    assert about["command"] == ["allmrec", "train", "stage2", "--data", "data"]
    assert not any("private" in path.read_text() for path in site.glob("**/*.*"))


def test_every_system_has_value_interval_paper_difference_and_tests(made: Path, page: Page):
    results = read_results(made / "results")
    value, low, high = results["systems"]["A-LLMRec"]["all"]["hit@1"]
    row = f"A-LLMRec {SYSTEMS['A-LLMRec'].about} 120 {value:.3f} ★"
    row = row.replace(" ★", " (best of this column)")  # the star itself is drawn by the style sheet
    assert results["best_baseline"] == "SASRec"
    difference = "{:+.3f} {:+.3f} to {:+.3f}".format(*results["paired"]["A-LLMRec - SASRec"]["all"])
    p = results["tests"]["A-LLMRec - SASRec"]["all"]
    tested = f"{difference.replace('-', '−')} p {'<0.001' if p < 0.001 else f'{p:.3f}'}"
    assert f"{row} {low:.3f} to {high:.3f} 0.33 to 0.62 ours within {tested}" in page.text
    for system in HIT:
        assert system in page.text
    assert "other data and another language model" in page.text


def test_a_missing_cell_says_why_and_is_counted(made: Path, tmp_path: Path):
    index = Page((made / "made" / "site" / "index.html").read_text()).text
    assert "n/a" not in index and "table6 : no 256 users" in index
    results = json.loads((made / "results" / "results.json").read_text())
    del results["paired"]["Popularity - SASRec"]
    (tmp_path / "results.json").write_text(json.dumps(results))
    write_report(tmp_path / "site", ReportSources([tmp_path]))
    body = (tmp_path / "site" / "results.html").read_text()
    assert body.count('data-na="not-asked"') == 1 + 2  # the difference on all users; on warm and on cold items
    index = Page((tmp_path / "site" / "index.html").read_text()).text
    assert re.search(r"3 of \d+ cells are n/a", index) and "no paired answers of these two systems" in index
    (cells,) = [
        row["cells"]
        for table in json.loads((tmp_path / "site" / "tables" / "results.json").read_text())
        for row in table["rows"]
        if table["table"] == "hits" and row["system"] == "Popularity"
    ]
    assert cells[-1] == {"text": "n/a", "na": "not-asked"}


def test_figures_say_their_numbers_to_those_who_cannot_see(made: Path, page: Page):
    drawn = [attrs for tag, attrs in page.tags if tag == "svg"]
    # three slices, three of differences, popularity, two runs of a loss and one metric of validation
    assert len(drawn) == 3 + 3 + 1 + 4
    labels = [attrs["aria-label"] for attrs in drawn]
    assert all(attrs["role"] == "img" for attrs in drawn)
    cold = read_results(made / "results")["systems"]["SASRec"]["cold"]["hit@1"][0]
    assert any("cold items: Oracle" in label and f"SASRec {cold:.3f}" in label for label in labels)


def test_tables_speak_to_screen_readers(made: Path):
    for path in (made / "report.html", *site_pages(made)):
        tags = Page(path.read_text()).tags
        counted = [sum(tag == name for tag, _ in tags) for name in ("table", "caption")]
        assert counted[0] == counted[1]
        assert all(attrs.get("scope") in ("col", "row") for tag, attrs in tags if tag == "th")
        assert [attrs.get("lang") for tag, attrs in tags if tag == "html"] == ["en"]


def test_a_difference_stands_under_the_two_values_on_the_users_of_both(made: Path, tmp_path: Path):
    """As of Table 6: SASRec was asked about all users, A-LLMRec about the first 40."""
    from allmrec_jax.evaluation.results import read_users, summarize

    results = json.loads((made / "results" / "results.json").read_text())
    frame = read_users(made / "results")
    few = frame["user"].unique().sort().head(40)
    frame = frame.filter((pl.col("system") == "SASRec") | pl.col("user").is_in(few.implode()))
    frame = frame.filter(pl.col("system").is_in(["SASRec", "A-LLMRec"]))
    systems, paired = summarize(frame, [("A-LLMRec", "SASRec")])
    results |= {"systems": systems, "paired": paired, "tests": {}, "best_baseline": "SASRec"}
    results["runs"] = [run for run in results["runs"] if run["system"] in systems]
    (tmp_path / "results.json").write_text(json.dumps(results))
    write_report(tmp_path / "site", ReportSources([tmp_path]))
    shared = frame.filter((pl.col("system") == "SASRec") & pl.col("user").is_in(few.implode()))
    theirs, whole = float(np.mean(shared["rank"].to_numpy() == 1)), systems["SASRec"]["all"]["hit@1"][0]
    ours = systems["A-LLMRec"]["all"]["hit@1"][0]
    assert f"{theirs:.3f}" != f"{whole:.3f}" and f"{theirs:.1%}" != f"{whole:.1%}"
    text = Page((tmp_path / "site" / "results.html").read_text()).text
    assert f"+{ours - theirs:.3f} {ours:.3f} − {theirs:.3f} " in text
    assert f"of 40 users; SASRec for {theirs:.1%} of the same users." in text
    glance = Page((tmp_path / "site" / "index.html").read_text()).text
    assert re.search(rf"40 {ours:.3f} [\d. to]+ {theirs:.3f} \+{ours - theirs:.3f}", glance)
    assert f"{ours:.3f} − {theirs:.3f}; " in (tmp_path / "site" / "tables" / "results.md").read_text()


def test_a_table_of_speed_shows_speed(made: Path, tmp_path: Path):
    results = json.loads((made / "results" / "results.json").read_text())
    results["settings"] |= {"table": "table10", "title": "Table 10: speed", "batch_size": 4}
    node = {"kind": "stage2", "identity": "1" * 64, "preset": "small", "changes": {}, "seed": 0, "steps": 320}
    node |= {"unit": "steps", "batch_size": 32, "seconds": 90.0}
    for run in results["runs"]:
        if run["system"] == "A-LLMRec":
            run |= {"trainings": [{**node, "kind": "cf", "seconds": 600.0}, node], "seconds": 6.0, "users": 120}
    (tmp_path / "results.json").write_text(json.dumps(results))
    write_report(tmp_path / "site", ReportSources([tmp_path]))
    (speed,) = [
        table
        for table in json.loads((tmp_path / "site" / "tables" / "table10.json").read_text())
        if table["table"] == "speed"
    ]
    assert not [label for label in speed["columns"] if "Hit" in label]
    assert [cell.get("text") for cell in speed["rows"][0]["cells"]] == [
        "1.50",
        "232.5",
        "20.0",
        "0.0500",
        "0.200",
        "1.98",
    ]
    index = Page((tmp_path / "site" / "index.html").read_text()).text
    assert "A-LLMRec answers 20.0 users a second; it was trained in 1.5 minutes, the CF model not counted." in index


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("dark", [False, True])
def test_colours_of_words_have_contrast_in_both_schemes(made: Path, dark: bool):
    css = (made / "made" / "site" / "report.css").read_text()
    colours = dict(re.findall(r"--([\w]+): (#\w{6})", css.split("@media (prefers-color-scheme: dark)")[dark]))
    for words in ("ink", "soft", "ours", "cf", "other", "good", "bad", *(f"c{number}" for number in range(1, 7))):
        for ground in ("page", "card", "mark"):
            pair = sorted(luminance(colours[name]) for name in (words, ground))
            assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5, (words, ground)  # WCAG 2, level AA


def test_figures_take_their_colours_from_the_style_sheet(made: Path):
    svg = "".join(re.findall(r"<svg.*?</svg>", (made / "report.html").read_text(), re.DOTALL))
    assert not re.findall(r"#[0-9a-f]{3,6}\b|(?:fill|stroke|style)=", svg)


def test_titles_are_escaped(made: Path, page: Page):
    source = (made / "report.html").read_text()
    assert "<b>Bold" not in source and "\\u003cb>Bold\\u003c/b>" in source  # in HTML, and in the users' JSON
    assert 'The "<b>Bold</b>" & the 3th' in page.text


def test_without_a_script_three_users_and_a_whole_prompt_are_shown(page: Page):
    assert sum(tag == "article" for tag, _ in page.tags) == 3
    assert page.text.count("← true next item") == 3
    assert page.text.count('The recommendation is "') == 1
    assert "60 of 120 users, drawn by seed" in page.text


def test_the_browser_has_every_answer_of_a_user(made: Path):
    from allmrec_jax.evaluation.results import read_users

    source = (made / "report.html").read_text()
    data = json.loads(re.findall(r'<script type="application/json">(.*?)</script>', source, re.DOTALL)[0])
    assert data["systems"] == list(HIT) and len(data["users"]) == 60
    user = data["users"][7]
    rows = {row["system"]: row for row in read_users(made / "results").to_dicts() if row["user"] == user["u"]}
    dataset = make_dataset(made / "again")
    assert [data["titles"][number] for number in user["h"]] == [
        dataset.titles[i] for i in dataset.sequence(user["u"])[:-1]
    ]
    for system, (rank, verdict, generated, scores) in zip(data["systems"], user["a"], strict=True):
        row = rows[system]
        assert [data["titles"][number] for number in user["c"]] == [dataset.titles[i] for i in row["candidates"]]
        assert row["candidates"][user["t"]] == row["target"]
        assert (rank, generated) == (row["rank"], row["generated"])
        assert scores == pytest.approx(row["scores"], rel=1e-3)  # four digits are kept
        right = row["rank"] == 1 if generated is None else row["strict"]
        assert (data["verdicts"][verdict] == "right") == right


def test_same_input_gives_the_same_page(made: Path):
    runs = [made / "checkpoints" / "made-up" / kind / identity_of(kind)[:12] for kind in ("cf", "stage2")]
    write_report(made / "again.html", ReportSources([made / "results"], runs, [made / "data"]), models=False)
    assert (made / "again.html").read_text() == (made / "report.html").read_text()


def test_a_site_written_over_an_older_one_has_nothing_of_it_but_what_people_added(made: Path, tmp_path: Path):
    write_report(tmp_path / "fresh", ReportSources([made / "results"]), models=False)
    shutil.copytree(made / "made" / "site", tmp_path / "site")
    (tmp_path / "site" / MARK).unlink()  # as it was before there were marks
    shutil.copy(tmp_path / "site" / "tables" / "results.json", tmp_path / "site" / "tables" / "older.json")
    (tmp_path / "site" / "older.html").touch()
    mine = sorted((tmp_path / "site" / "runs").iterdir())[0] / "mine.txt"
    mine.touch()
    write_report(tmp_path / "site", ReportSources([made / "results"]), models=False)

    def names(folder: Path) -> set[str]:
        return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}

    assert names(tmp_path / "site") == names(tmp_path / "fresh") | {str(mine.relative_to(tmp_path / "site"))}


def test_a_folder_or_page_of_others_is_left_alone(made: Path, tmp_path: Path):
    sources = ReportSources([made / "results"])
    theirs = [tmp_path / "d" / name for name in ("tables/sales.json", "sales.html", "runs/exp1/run.json")]
    for path in (*theirs, tmp_path / "page.html"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    with pytest.raises(UserError, match="d: this folder is not empty and is no report"):
        write_report(tmp_path / "d", sources, models=False)
    with pytest.raises(UserError, match=r"page\.html: is there already and is no report"):
        write_report(tmp_path / "page.html", sources, models=False)
    assert all(path.read_text() == "mine" for path in (*theirs, tmp_path / "page.html"))
    assert not (tmp_path / "d" / "index.html").exists()
    for _ in range(2):
        write_report(tmp_path / "ours.html", sources, models=False)


def test_page_without_data_runs_or_generation(tmp_path: Path, made: Path):
    results = json.loads((made / "results" / "results.json").read_text())
    results["systems"] = {"SASRec": {"all": results["systems"]["SASRec"]["all"]}}
    results["paired"] = {}
    (tmp_path / "results.json").write_text(json.dumps(results))
    write_report(tmp_path / "report.html", ReportSources([tmp_path]))
    text = Page((tmp_path / "report.html").read_text()).text
    assert "Best Hit@1: SASRec" in text
    assert "Cold and warm items" not in text and "Paired differences" not in text and "Titles written" not in text
    assert "The data set was not named" in text


def test_a_share_in_words_is_the_number_of_the_table(tmp_path: Path, made: Path):
    """0.3825 is less than 38.25 hundredths in binary and more than 382.5 thousandths: rounded once, not twice."""
    results = json.loads((made / "results" / "results.json").read_text())
    for values in results["systems"].values():
        values["all"]["hit@1"] = [0.3825, 0.3405, 0.4215]
    (tmp_path / "results.json").write_text(json.dumps(results))
    write_report(tmp_path / "report.html", ReportSources([tmp_path]))
    text = Page((tmp_path / "report.html").read_text()).text
    assert "0.383" in text and "38.3%" in text and "38.2%" not in text


def few_shot(made: Path, root: Path, users: int, shift: float) -> Path:
    """The fixture's results as if everything had been trained on so many users."""
    results = json.loads((made / "results" / "results.json").read_text())
    results["settings"] |= {
        "table": "table6",
        "title": f"Table 6: {users} users",
        "published": f"table6_few_shot/{users}",
    }
    results["settings"]["scenario"] = {"scenario": "few-shot", "training_users": users, "sample_seed": 0}
    for run in results["runs"]:
        run["scenario"] = "few-shot"
    results["systems"]["A-LLMRec"]["all"]["hit@1"] = [shift, shift - 0.05, shift + 0.05]
    (root / str(users)).mkdir(parents=True)
    (root / str(users) / "results.json").write_text(json.dumps(results))
    return root / str(users)


def test_few_training_users_become_one_curve_that_ends_with_everybody(made: Path, tmp_path: Path):
    paths = [few_shot(made, tmp_path / "table6", users, shift) for users, shift in ((128, 0.2), (32, 0.1))]
    found = ReportSources([made / "results", *paths], (), [made / "data"])
    write_report(tmp_path / "site", found, models=False)
    body = (tmp_path / "site" / "table6-128.html").read_text()
    whole = read_results(made / "results")["systems"]["A-LLMRec"]["all"]["hit@1"][0]
    assert f"A-LLMRec 32: 0.100, 120: {whole:.3f}, 128: 0.200" in body
    assert "0.16 to 0.31" in Page(body).text  # the paper at 128 users: A-LLMRec on its three data sets
    index = Page((tmp_path / "site" / "index.html").read_text()).text
    assert index.index("All test users") < index.index("Table 6: 128 users") < index.index("Table 6: 32 users")


def test_the_genre_task_has_its_own_metric_and_shows_what_was_said(made: Path, tmp_path: Path):
    results = json.loads((made / "results" / "results.json").read_text())
    valued = {"n": 80, "genre_hit": [0.7, 0.6, 0.8], "first_hit": [0.5, 0.4, 0.6], "valid_ratio": [0.9, 0.85, 0.95]}
    results["systems"] = {
        "Majority genre": {"all": {**valued, "genre_hit": [0.4, 0.3, 0.5]}},
        "A-LLMRec": {"all": valued},
    }
    results["paired"] = {"A-LLMRec - Majority genre": {"all": [0.3, 0.2, 0.4]}}
    results["tests"] = {"A-LLMRec - Majority genre": {"all": 0.0004}}
    results["examples"] = [{"user": 3, "history": ["A", "B"], "favourites": ["War"], "said": {"A-LLMRec": "War, Sea"}}]
    results["settings"] |= {"table": "genres", "title": "Favourite genres", "reference": "Majority genre"}
    results.pop("users_sha256", None)  # the table below is not the one of these results
    (tmp_path / "results.json").write_text(json.dumps(results))
    genres = {"user": [3], "system": ["A-LLMRec"], "seed": [0], "genre_hit": [True]}  # no candidates, no target
    pl.DataFrame(genres).write_parquet(tmp_path / "users.parquet")
    write_report(tmp_path / "site", ReportSources([tmp_path], (), [made / "data"], made / "checkpoints"))
    text = Page((tmp_path / "site" / "genres.html").read_text()).text
    assert "A genre that A-LLMRec names is among the user’s true ones for 70.0% (60.0 to 80.0)." in text
    assert "80 0.700 (best of this column) 0.600 to 0.800 +0.300 +0.200 to +0.400 p <0.001" in text
    assert "History: A; B. True: War" in text and "A-LLMRec War, Sea" in text
    assert "Hit@1" not in text and "Titles written" not in text and ": not-asked" not in text


def test_paper_values():
    assert paper.hit_at_1("A-LLMRec", "all")["Luxury_Beauty"] == 0.5809
    assert paper.hit_at_1("A-LLMRec (SBERT)", "cold")["Movies_and_TV"] == 0.5772
    assert paper.hit_at_1("A-LLMRec, users swapped", "all") == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no results.json"),
        ("{", "cannot be read"),
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


def test_results_beside_another_evaluations_users_are_refused(made: Path, tmp_path: Path):
    shutil.copytree(made / "results", tmp_path / "results")
    users = tmp_path / "results" / "users.parquet"
    pl.read_parquet(users).reverse().write_parquet(users)
    with pytest.raises(UserError, match=r"users\.parquet: damaged, or of another evaluation than .*results\.json"):
        write_report(tmp_path / "site", ReportSources([tmp_path / "results"]), models=False)
    assert not (tmp_path / "site").exists()


def paths_in(value: Any, place: tuple = ()) -> Iterator[tuple]:
    """Where every value of a JSON document stands, those inside others too."""
    if place:
        yield place
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from paths_in(item, (*place, key))


def changed(value: Any, place: tuple, other: Any) -> Any:
    """A copy of a document with another value at a place, or without that place."""
    copy = json.loads(json.dumps(value))
    inner = copy
    for key in place[:-1]:
        inner = inner[key]
    if other is ...:
        del inner[place[-1]]
    else:
        inner[place[-1]] = other
    return copy


STRANGE: tuple[Any, ...] = (
    ...,
    None,
    [],
    {},
    "x",
    "../../x",
    -1,
    2.5,
    10**30,
    float("nan"),
    True,
    [1, 2, 3],
    {"all": 1},
    "<script>",
)


@pytest.mark.parametrize("file", ["results.json", "run.json", "metrics.jsonl"])
def test_valid_json_of_another_structure_is_read_or_refused_in_a_line(made: Path, tmp_path: Path, file: str):
    """A sample of all places and strange values: nothing but errors of one line, and no file outside of the folder."""
    kind = made / "checkpoints" / "made-up" / "cf" / identity_of("cf")[:12]
    results, run = tmp_path / "results", tmp_path / "run"
    shutil.copytree(made / "results", results)
    shutil.copytree(kind, run)
    path = results / file if file == "results.json" else run / file
    lines = path.read_text().splitlines() if file.endswith("l") else [path.read_text()]
    whole = [json.loads(line) for line in lines]
    whole[0] = fuller(whole[0]) if file == "results.json" else whole[0]
    cases = [(place, other) for place in paths_in(whole[0]) for other in STRANGE]
    refused = 0
    chosen = np.random.default_rng(0).choice(len(cases), min(50, len(cases)), replace=False)
    for number in chosen.tolist():
        place, other = cases[number]
        documents = [changed(whole[0], place, other), *whole[1:]]
        path.write_text("\n".join(json.dumps(each) for each in documents) + "\n")
        out = tmp_path / "out" / "site"
        try:
            write_report(out, ReportSources([results], [run]), models=False)
        except UserError as error:
            assert "\n" not in str(error) and str(path) in str(error), (place, other)
            refused += 1
        assert sorted(each.name for each in tmp_path.iterdir()) in (["out", "results", "run"], ["results", "run"])
        assert not out.parent.exists() or [each.name for each in out.parent.iterdir()] in (["site"], [])
    assert refused > len(chosen) / 4


def fuller(results: dict) -> dict:
    """The fixture's results with what experiments add."""
    node = {"kind": "stage2", "identity": "1" * 64, "preset": "small", "changes": {}, "seed": 0, "steps": 320}
    node |= {"unit": "steps", "batch_size": 32, "seconds": 3.0}
    for each in results["runs"]:
        each |= {"trainings": [node], "seconds": 1.5, "users": 120}
    results["settings"] |= {"table": "table10", "title": "Table 10", "batch_size": 4, "published": "table1_overall"}
    results["settings"]["scenario"] = {"scenario": "few-shot", "training_users": 30, "history": 5}
    return results


@pytest.mark.parametrize("name", ["../../out", "a/b", "/tmp/x", "..", "a\n", ""])
def test_names_of_tables_and_runs_are_plain(made: Path, tmp_path: Path, name: str):
    results = json.loads((made / "results" / "results.json").read_text())
    results["settings"]["table"] = name
    (tmp_path / "results.json").write_text(json.dumps(results))
    with pytest.raises(UserError, match=r"settings\.table"):
        write_report(tmp_path / "in" / "site", ReportSources([tmp_path]))
    run = tmp_path / "run"
    shutil.copytree(made / "checkpoints" / "made-up" / "cf" / identity_of("cf")[:12], run)
    about = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(about | {"identity": name}))
    with pytest.raises(UserError, match="identity"):
        write_report(tmp_path / "in" / "site", ReportSources([made / "results"], [run]))
    assert not (tmp_path / "in").exists()


def test_answers_that_do_not_fit_each_other_are_refused(made: Path, tmp_path: Path):
    frame = pl.read_parquet(made / "results" / "users.parquet")
    for column, value, message in (
        ("target", pl.lit(10_000), "do not fit"),
        ("rank", pl.lit(0), "do not fit"),
        ("scores", pl.lit(None, pl.List(pl.Float32)), "a value is missing"),
        ("system", pl.col("scores"), "cannot cast"),
    ):
        frame.with_columns(value.alias(column)).write_parquet(tmp_path / "users.parquet")
        with pytest.raises(UserError, match=message):
            read_answers(tmp_path)
    frame.drop("rank").write_parquet(tmp_path / "users.parquet")
    with pytest.raises(UserError, match="'rank' is missing"):
        read_answers(tmp_path)


def test_other_data_than_evaluated_is_refused(made: Path, tmp_path: Path):
    make_dataset(tmp_path / "data", users=30)
    with pytest.raises(UserError, match="measured on data set"):
        write_report(tmp_path / "report.html", ReportSources([made / "results"], (), [tmp_path / "data"]))
    assert not (tmp_path / "report.html").exists()


def test_command_looks_through_a_folder_and_tells_results_from_runs(made: Path, tmp_path: Path):
    run = made / "checkpoints" / "made-up" / "cf" / identity_of("cf")[:12]
    out = tmp_path / "page.html"
    told = CliRunner().invoke(command, [str(run), str(made / "results"), "--out", str(out), "--checkpoints", "none"])
    assert told.exit_code == 0, told.output
    assert told.output.strip() == str(out)
    assert "Collaborative filtering" in Page(out.read_text()).text

    for name in ("table10", "table9"):
        shutil.copytree(made / "results", tmp_path / "all" / name)
    (tmp_path / "all" / "tables.json").write_text('{"made": [], "not_made": {"table7": "one data set only"}}')
    told = CliRunner().invoke(command, [str(tmp_path / "all"), "--out", str(tmp_path / "site")])
    assert told.output.strip() == str(tmp_path / "site" / "index.html")
    text = Page((tmp_path / "site" / "index.html").read_text()).text
    assert "table7 : one data set only" in text and "table9/results.json, table10/results.json" in text


def test_command_refuses_other_directories(tmp_path: Path):
    told = CliRunner().invoke(command, [str(tmp_path)])
    assert isinstance(told.exception, UserError)


def test_a_training_run_alone_becomes_a_page_of_its_curves(made: Path, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(made / "checkpoints" / "made-up" / "cf" / identity_of("cf")[:12], run)
    told = CliRunner().invoke(command, [str(run)])
    assert told.output.strip() == str(run / "report.html"), told.output
    page = Page((run / "report.html").read_text())
    assert "Training on made-up" in page.text and "How to read this" not in page.text
    assert sum(tag == "svg" for tag, _ in page.tags) == 2  # the loss and one metric of validation
    told = CliRunner().invoke(command, [str(run), "--out", str(tmp_path / "site")])
    assert told.exit_code == 0, told.output
    assert "At a glance" not in Page((tmp_path / "site" / "index.html").read_text()).text


def test_a_report_begins_with_data_models_budget_and_machine(made: Path, tmp_path: Path):
    results = json.loads((made / "results" / "results.json").read_text())
    results["data"] |= {"name": "Nano_Movies", "users": 4236, "items": 1100, "generated": True}
    results["machine"] = {"processor": "Abacus 3000", "cores": 2, "platform": "Linux"}
    node = {"kind": "stage2", "identity": "1" * 64, "preset": "small", "changes": {}, "seed": 0, "steps": 320}
    node |= {"unit": "steps", "batch_size": 32, "seconds": 3.0}
    for run in results["runs"]:
        run["trainings"] = [node] if run["system"] == "A-LLMRec" else []
    results["settings"] |= {"preset": "small", "encoder": "sbert-nano"}
    (tmp_path / "results.json").write_text(json.dumps(results))
    write_report(tmp_path / "site", ReportSources([tmp_path]))
    for name in ("index", "results"):
        text = Page((tmp_path / "site" / f"{name}.html").read_text()).text
        begin = text[: text.index("A-LLMRec ranks the true" if name == "results" else "At a glance")]
        assert "Nano Movies: 4,236 users, 1,100 items; generated by allmrec synthesize" in begin
        assert "language model opt-nano (3.4 million parameters" in begin
        assert "sentence encoder sbert-nano (0.79 million parameters" in begin
        assert "preset small; A-LLMRec: stage 2 320 steps of batch 32; 1 training seed; 120 users asked" in begin
        assert "Abacus 3000, 2 cores" in begin
