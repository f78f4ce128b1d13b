"""The report in a real browser: no error, sorts, filters, opens a user; on a phone, in the dark, without JavaScript.

Needs Debian's packages ``chromium`` and ``chromium-driver``; skipped without them, unless ``ALLMREC_REQUIRE_CHROMIUM``
is set, as ``.ci/run`` does.
"""

import json
import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from fixture_results import identity_of, make_dataset, make_results, make_run

from allmrec_jax.report.readers import read_results
from allmrec_jax.report.site import ReportSources, write_report

CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))


def start(**arguments: Any) -> Any:
    """A headless Chromium; a missing one skips or fails."""
    if not (CHROMIUM and DRIVER and find_spec("selenium")):
        reason = "chromium, chromedriver (apt-get install chromium chromium-driver) or selenium is not installed"
        if os.environ.get("ALLMREC_REQUIRE_CHROMIUM"):
            pytest.fail(reason)
        pytest.skip(reason)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    if arguments:
        options.add_experimental_option("prefs", arguments)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("browser")
    make_results(root / "results", make_dataset(root / "data"))
    for kind in ("cf", "stage2"):
        make_run(root / "checkpoints", kind)
    found = ReportSources([root / "results"], (), [root / "data"], root / "checkpoints")
    write_report(root / "site", found, models=False)
    write_report(root / "site" / "one.html", found, models=False)
    return root / "site"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    driver = start()
    yield driver
    driver.quit()


@pytest.fixture(autouse=True)
def on_a_desk(request: pytest.FixtureRequest) -> None:
    if "browser" in request.fixturenames:
        look(request.getfixturevalue("browser"))


def look(driver: Any, width: int = 1280, scheme: str = "light") -> None:
    """Sets the width of the screen and the colour scheme."""
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def visit(driver: Any, page: Path) -> None:
    """Opens a page, which must not complain."""
    driver.get(page.as_uri())
    complaints = [entry["message"] for entry in driver.get_log("browser")]
    assert complaints == []


def css(driver: Any, selector: str) -> list[Any]:
    return driver.find_elements("css selector", selector)


def texts(driver: Any, selector: str) -> list[str]:
    return driver.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent.trim())", selector
    )


def test_every_page_loads_without_a_complaint(browser: Any, site: Path):
    pages = sorted(site.glob("**/*.html"))
    assert len(pages) == 5
    for page in pages:
        visit(browser, page)
        assert browser.find_element("css selector", "h1").is_displayed()


def sort_keys(driver: Any, column: int) -> list[str]:
    """What the rows of the first table are sorted by in a column, as they stand."""
    rows = "[...document.querySelector('table.data').tBodies[0].rows]"
    return driver.execute_script(f"return {rows}.map((row) => row.cells[arguments[0]].dataset.sort)", column)


def test_a_click_on_a_heading_sorts_and_says_so(browser: Any, site: Path):
    visit(browser, site / "results.html")
    before = [float(value) for value in sort_keys(browser, 2)]
    heads = css(browser, "table.data")[0].find_elements("css selector", "thead th")
    assert [head.get_attribute("aria-sort") for head in heads] == ["none"] * len(heads)
    for order, said in ((sorted(before, reverse=True), "descending"), (sorted(before), "ascending")):
        heads[2].find_element("css selector", "button").click()
        assert [float(value) for value in sort_keys(browser, 2)] == order != before
        assert heads[2].get_attribute("aria-sort") == said
    heads[0].find_element("css selector", "button").click()
    names = sort_keys(browser, 0)
    assert names == sorted(names, key=str.casefold) and heads[2].get_attribute("aria-sort") == "none"


def test_users_are_filtered_and_opened(browser: Any, site: Path):
    from selenium.webdriver.support.ui import Select

    visit(browser, site / "results.html")
    assert texts(browser, "[role=status]") == ["60 of 60 users"]
    Select(css(browser, "[name=show]")[0]).select_by_visible_text("its misses")
    shown = texts(browser, ".people button span:last-child")
    assert 0 < len(shown) < 60 and set(shown) == {"miss"}
    assert texts(browser, "[role=status]") == [f"{len(shown)} of 60 users"]
    button = css(browser, ".people button")[3]
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    assert texts(browser, ".person h4")[0].startswith(f"User {button.get_attribute('data-user')}")
    assert "misses" in texts(browser, ".person strong")[0]
    assert len(texts(browser, ".person ol li")) == 7
    assert len(css(browser, ".person table")[0].find_elements("css selector", "tbody tr")) == 20
    assert texts(browser, ".person tr.true .chip") == ["true next item"]
    assert texts(browser, ".person tr.picked th") == ["A-LLMRec"]

    Select(css(browser, "[name=system]")[0]).select_by_visible_text("SASRec")
    assert texts(browser, ".person tr.picked th") == ["SASRec"]
    Select(css(browser, "[name=show]")[0]).select_by_visible_text("cold items")
    assert 0 < len(css(browser, ".people button")) < 60
    Select(css(browser, "[name=show]")[0]).select_by_visible_text("all users")
    css(browser, "[name=words]")[0].send_keys("no such title")
    assert texts(browser, "[role=status]") == ["0 of 60 users"]
    assert texts(browser, ".person") == ["No user is left by these filters."]


def test_a_value_opens_its_run(browser: Any, site: Path):
    visit(browser, site / "results.html")
    css(browser, "tr.ours a.v")[0].click()
    assert browser.current_url.endswith(f"/runs/{identity_of('stage2')[:12]}/index.html")
    assert "Stage 2" in browser.title


WIDTHS = (390, 1000, 1400, 1900)


@pytest.fixture(scope="module")
def wide_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables as wide and names as long as the paper's: two compared systems, users asked in part, a dozen tables."""
    root = tmp_path_factory.mktemp("wide")
    whole = make_results(root / "made", make_dataset(root / "data"))
    whole["best_baseline"] = "LLM-Only"
    for name in list(whole["systems"]):
        long = {"Popularity": "A-LLMRec (NextItNet)", "Oracle": "w/o L_item-recon and L_text-recon"}.get(name)
        if long is not None:
            whole["systems"][long] = whole["systems"].pop(name)
            whole["paired"] |= {f"{long} - SASRec": whole["paired"]["A-LLMRec - SASRec"]}
    whole["systems"]["A-LLMRec"]["all"]["n"] -= 1
    whole["runs"] = [run for run in whole["runs"] if run["system"] in whole["systems"]]
    places = []
    for number in range(1, 13):
        few = {"scenario": {"scenario": "few-shot", "training_users": number}} if number in (6, 7) else {}
        title = f"Table {6 if few else number}: trained on {number} users" if few else f"Table {number}: a name"
        whole["settings"] |= {"table": f"table{number}" if number != 10 else "other", "title": title, "scenario": None}
        whole["settings"] = {key: value for key, value in (whole["settings"] | few).items() if value is not None}
        places.append(root / f"{number:02}")
        places[-1].mkdir()
        (places[-1] / "results.json").write_text(json.dumps(whole))
    write_report(root / "site", ReportSources(places), models=False)
    return root / "site"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_no_page_is_wider_than_its_screen(browser: Any, site: Path, wide_site: Path, width: int, scheme: str):
    look(browser, width, scheme)
    for page in (site / "results.html", site / "one.html", wide_site / "index.html", wide_site / "table1.html"):
        visit(browser, page)
        assert browser.execute_script("return document.scrollingElement.scrollWidth") <= width, page
    ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(250, 249, 246)", "dark": "rgb(19, 21, 24)"}[scheme]


@pytest.mark.parametrize("width", WIDTHS)
def test_the_navigation_is_whole_at_every_width(browser: Any, wide_site: Path, width: int):
    look(browser, width)
    visit(browser, wide_site / "table1.html")
    ends = browser.execute_script(
        "return [...document.querySelectorAll('nav.top a')].map((a) => a.getBoundingClientRect().right)"
    )
    assert len(ends) == 13 and max(ends) <= width
    assert "Table 6, 7" in texts(browser, "nav.top a")


CUT = """return [...document.querySelectorAll('.scroll:has(> table.data)')].map((box) => [
    box.scrollWidth > box.clientWidth + 1,
    box.previousElementSibling.matches('.more:not([hidden])')])"""


@pytest.mark.parametrize("width", WIDTHS)
def test_tables_fit_a_desk_and_say_where_they_go_on(browser: Any, wide_site: Path, width: int):
    look(browser, width)
    for page in ("index.html", "table1.html", "table4.html"):
        visit(browser, wide_site / page)
        found = browser.execute_script(CUT)
        assert found and all(cut == told for cut, told in found)
        if width >= 1400:
            assert not any(cut for cut, _ in found), page
        if width == 390:
            assert any(cut for cut, _ in found)
    browser.execute_script("const box = document.querySelector('.scroll'); box.scrollLeft = box.scrollWidth")
    browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
    assert not browser.execute_script(CUT)[0][1]  # at its end it says nothing


@pytest.mark.parametrize("width", WIDTHS)
def test_no_word_of_a_name_is_broken(browser: Any, wide_site: Path, width: int):
    look(browser, width)
    visit(browser, wide_site / "table1.html")
    script = """return [...document.querySelectorAll('table.data tbody th')].flatMap((cell) => {
        const node = cell.firstChild, range = document.createRange(), text = node.textContent;
        return [...text.matchAll(/[^\\s-]+/g)].filter((word) => {
            range.setStart(node, word.index); range.setEnd(node, word.index + word[0].length);
            return range.getClientRects().length > 1;
        }).map((word) => word[0]);
    })"""
    assert browser.execute_script(script) == []


def test_a_winner_has_room_for_its_words(browser: Any, wide_site: Path):
    for width in WIDTHS:
        look(browser, width)
        visit(browser, wide_site / "index.html")
        lines = browser.execute_script(
            "const name = document.querySelector('.winner strong');"
            "return [name.textContent, Math.round(name.clientHeight / parseFloat(getComputedStyle(name).lineHeight))]"
        )
        assert lines[0] == "w/o L_item-recon and L_text-recon" and lines[1] <= 3


def test_ours_on_other_backbones_is_coloured_like_ours(browser: Any, wide_site: Path):
    visit(browser, wide_site / "table1.html")
    names = browser.execute_script(
        "return [...document.querySelectorAll('table.data')][0].querySelectorAll('tbody th')"
        ".values().map((cell) => [cell.firstChild.textContent, cell.parentElement.className]).toArray()"
    )
    rows = dict(names)
    assert rows["A-LLMRec (NextItNet)"] == rows["A-LLMRec"] == "ours"
    assert rows["A-LLMRec, items permuted"] == rows["LLM-Only"] == "other"


def test_without_javascript_tables_and_examples_are_there(site: Path):
    driver = start(**{"profile.managed_default_content_settings.javascript": 2})
    try:
        driver.get((site / "one.html").as_uri())
        value = read_results(site.parent / "results")["systems"]["A-LLMRec"]["all"]["hit@1"][0]
        assert f"{value:.3f}" in css(driver, "table.data tr.ours")[0].text
        assert not css(driver, ".browser")[0].is_displayed() and not css(driver, "th button")
        assert [example.is_displayed() for example in css(driver, "article.example")] == [True] * 3
    finally:
        driver.quit()
