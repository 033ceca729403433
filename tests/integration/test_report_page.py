"""The page of a report in a real browser: what it shows, what clicks do, and that it reads well at every width."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report_folder import METRIC, Sweep, make_sweep
from sah.report.load import load_report
from sah.report.page import write_report
from tests.support.browser import chromium, console_errors, low_contrast, outside, overlaps, set_scheme, set_size

pytestmark = pytest.mark.slow

SWEEP = Sweep(methods=4, lengths=(1024, 4096), contexts=25)
OVERVIEW, POINT = "#/", "#/p/2"
DRAWN = """
return [...document.querySelectorAll('.drawing')].every((box) => box.children.length || !box.checkVisibility())
"""
SHOWN_POINTS = """
return [...document.querySelectorAll('#g1 tbody tr')].filter((row) => !row.hidden)
  .map((row) => row.querySelector('a').textContent)
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Address of the page of an invented sweep."""
    folder = make_sweep(tmp_path_factory.mktemp("outputs"), SWEEP)
    (folder / "40").mkdir()
    (folder / "40" / "job.json").write_text('{"status": "failed", "overrides": ["masker=topp"], "error": "<b>no</b>"}')
    (folder / "41").mkdir()
    (folder / "41" / "job.json").write_text("{")
    return write_report(load_report(folder), folder / "report").as_uri()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One browser for all tests."""
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def driver(browser: Any, page: str) -> Any:
    """The browser, wide and light, its console read and its storage empty."""
    set_size(browser, 1280)
    set_scheme(browser, "light")
    browser.get(page)
    browser.execute_script("localStorage.clear()")
    console_errors(browser)
    return browser


def go(driver: Any, page: str, place: str) -> None:
    """Load a view anew, and wait until it is drawn."""
    driver.get("about:blank")
    driver.get(page + place)
    wait(driver, "return document.documentElement.dataset.ready === 'true'")
    wait(driver, DRAWN)
    if place == POINT:
        wait(driver, "return document.querySelectorAll('#point .example').length > 0")
    else:
        wait(driver, "return document.querySelectorAll('#g1 .figure.grids svg').length > 0")


def wait(driver: Any, condition: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(driver, 20, poll_frequency=0.05).until(lambda d: d.execute_script(condition), condition)


def texts(driver: Any, selector: str) -> list[str]:
    found: list[str] = driver.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map((element) => element.textContent)", selector
    )
    return found


def find(driver: Any, selector: str) -> Any:
    return driver.find_element("css selector", selector)


def test_a_click_on_a_point_opens_its_answers(driver: Any, page: str) -> None:
    go(driver, page, OVERVIEW)
    row = find(driver, "#g1 tbody tr:nth-child(2)")
    name = row.find_element("tag name", "a").text
    row.find_elements("tag name", "td")[3].click()
    wait(driver, "return document.querySelectorAll('#point .example').length === 20")
    assert texts(driver, "#point h1")[0].startswith(name)
    assert find(driver, "#overview").is_displayed() is False
    driver.back()
    wait(driver, "return document.getElementById('point').hidden")
    find(driver, "#g1 tbody tr:nth-child(3) a").click()
    other = f"const head = document.querySelector('#point h1'); return head && !head.textContent.startsWith({name!r})"
    wait(driver, other)
    assert console_errors(driver) == []


def test_keys_alone_open_a_point(driver: Any, page: str) -> None:
    from selenium.webdriver.common.keys import Keys

    go(driver, page, OVERVIEW)
    link = find(driver, "#g1 tbody tr:nth-child(1) a")
    driver.execute_script("arguments[0].focus()", link)
    link.send_keys(Keys.ENTER)
    wait(driver, "return document.querySelectorAll('#point .example').length > 0")
    driver.switch_to.active_element.send_keys(Keys.TAB)
    assert driver.execute_script("return document.activeElement.tagName") == "A"


def test_heads_sort_the_table(driver: Any, page: str) -> None:
    go(driver, page, OVERVIEW)
    column = driver.execute_script(
        "return [...document.querySelectorAll('#g1 thead th')].findIndex((th) => th.dataset.key === 'sparse')"
    )

    def shown() -> list[float]:
        return [float(text.split()[0]) for text in texts(driver, f"#g1 tbody tr > :nth-child({column + 1})")]

    button = find(driver, "#g1 thead th[data-key='sparse'] button")
    unsorted = shown()
    button.click()
    assert shown() == sorted(unsorted)
    assert find(driver, "#g1 thead th[data-key='sparse']").get_attribute("aria-sort") == "ascending"
    button.click()
    assert shown() == sorted(unsorted, reverse=True)
    assert unsorted != sorted(unsorted)


def test_the_table_is_filtered(driver: Any, page: str) -> None:
    go(driver, page, OVERVIEW)
    find(driver, "#g1 input[type=search]").send_keys("quest")
    names = driver.execute_script(SHOWN_POINTS)
    assert len(names) == len(SWEEP.densities)
    assert all("quest" in name for name in names)


def test_questions_are_filtered_and_differences_marked(driver: Any, page: str) -> None:
    from selenium.webdriver.support.ui import Select

    go(driver, page, POINT)
    choice = Select(find(driver, "#example-filter"))
    counts = {option.get_attribute("value"): int(option.text.rsplit("(", 1)[1][:-1]) for option in choice.options}
    assert counts["all"] == SWEEP.contexts
    assert 0 < counts["differs"] < counts["all"]
    choice.select_by_value("differs")
    assert len(texts(driver, ".example")) == min(20, counts["differs"])
    for example in driver.find_elements("css selector", ".example"):
        marked = example.find_elements("css selector", "del, ins")
        assert marked, example.text
        dense, sparse = (
            example.find_element("css selector", f".arm.{arm} .answer").text for arm in ("dense", "sparse")
        )
        assert dense != sparse
    choice.select_by_value("worse")
    shown = texts(driver, ".example .arm-head")
    assert all("score 1.000" in head for head in shown[::2])
    assert all("score 0.000" in head for head in shown[1::2])


def test_pages_of_questions(driver: Any, page: str) -> None:
    go(driver, page, POINT)
    find(driver, ".pager button:last-child").click()
    assert texts(driver, ".pager span") == [f"21 to {SWEEP.contexts} of {SWEEP.contexts}"]
    assert texts(driver, ".example h4")[0].startswith("Question 21")


def test_texts_of_models_stay_text(driver: Any, page: str) -> None:
    go(driver, page, POINT)
    assert any("</script><script>window.stolen = 1" in text for text in texts(driver, ".answer"))
    assert driver.execute_script("return window.stolen") is None
    assert driver.execute_script("return document.querySelectorAll('.answer img, .answer script').length") == 0
    go(driver, page, OVERVIEW)
    assert any("<b>no</b>" in text for text in texts(driver, ".alert li"))


def test_everything_is_shown(driver: Any, page: str) -> None:
    go(driver, page, OVERVIEW)
    titles = texts(driver, "#g1 figure h4")
    for title in ("Score over density", "Pareto front: score against density", "Pareto front: score against bytes read",
                  "Divergence from dense", "Agreement with dense", "Time of attention in an answer",
                  "Softmax mass recalled (share) by layer and head"):  # fmt: skip
        assert title in titles, titles
    assert "Score by depth and length of the needle" in texts(driver, "#n1 figure h4")
    assert any("1 job failed" in text for text in texts(driver, ".alert h2"))
    assert any("41/job.json" in text for text in texts(driver, ".alert li"))
    assert f"score ({METRIC})" in texts(driver, "#g1-density .axis-label.y")[0]
    assert "Not measured" in texts(driver, "#g1")[0]
    facts = dict(zip(texts(driver, "#provenance dt"), texts(driver, "#provenance dd"), strict=True))
    assert facts["checkpoint_hash"] == "invented"
    assert {"git commit", "versions torch", "hardware cpu", "seed", "date"} <= facts.keys()
    assert find(driver, "html").get_attribute("lang") == "en"
    assert all(
        driver.execute_script(
            "return [...document.querySelectorAll('svg[role=img]')].map((s) => s.getAttribute('aria-label'))"
        )
    )


def test_linked_files_exist(driver: Any, page: str) -> None:
    go(driver, page, OVERVIEW)
    links = driver.execute_script(
        "return [...document.querySelectorAll('.files a')].map((a) => a.getAttribute('href'))"
    )
    folder = Path(page.removeprefix("file://")).parent
    assert len(links) > 50
    assert {link.rsplit(".", 1)[1] for link in links} == {"png", "svg", "csv"}
    assert all((folder / link).stat().st_size > 100 for link in links)


def test_the_command_is_copied(driver: Any, page: str) -> None:
    go(driver, page, POINT)
    button = find(driver, ".command button")
    driver.execute_script("arguments[0].scrollIntoView({ block: 'center' })", button)
    button.click()
    wait(driver, "return document.querySelector('.command button').textContent === 'Copied'")
    assert texts(driver, ".command code")[0].startswith("python -m sah.run masker=")


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("place", [OVERVIEW, POINT], ids=["overview", "point"])
def test_no_text_overlaps(driver: Any, page: str, place: str, width: int) -> None:
    set_size(driver, width)
    go(driver, page, place)
    for details in driver.find_elements("css selector", "details:not([open])"):
        driver.execute_script("arguments[0].open = true", details)
    wait(driver, DRAWN)
    assert overlaps(driver) == []
    assert outside(driver) == []
    assert console_errors(driver) == []


def test_the_check_finds_overlaps(driver: Any, page: str) -> None:
    go(driver, page, OVERVIEW)
    driver.execute_script("document.querySelector('#g1-density svg text').setAttribute('y', 150)")
    driver.execute_script("document.querySelectorAll('#g1-density svg text')[1].setAttribute('y', 152)")
    assert overlaps(driver)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("place", [OVERVIEW, POINT], ids=["overview", "point"])
def test_colours_have_contrast(driver: Any, page: str, place: str, scheme: str) -> None:
    set_scheme(driver, scheme)
    go(driver, page, place)
    red, *_ = driver.execute_script("return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (red < 60) == (scheme == "dark")
    assert low_contrast(driver) == []


def test_the_colours_are_switched_and_kept(driver: Any, page: str) -> None:
    go(driver, page, OVERVIEW)
    find(driver, "#theme").click()
    assert find(driver, "html").get_attribute("data-theme") == "dark"
    go(driver, page, OVERVIEW)
    assert find(driver, "html").get_attribute("data-theme") == "dark"


def test_a_page_without_its_files_says_so(driver: Any, page: str, tmp_path: Path) -> None:
    import shutil

    # Two copies, since the browser keeps scripts that it has read.
    for name, lacking, place in (("one", "p2.js", POINT), ("other", "index.js", OVERVIEW)):
        shutil.copytree(Path(page.removeprefix("file://")).parent, tmp_path / name)
        (tmp_path / name / "data" / lacking).unlink()
        driver.get((tmp_path / name / "index.html").as_uri() + place)
        wait(driver, "return document.querySelector('#point p.alert, #overview > p.alert') !== null")
        [told] = texts(driver, "#point p.alert, #overview > p.alert")
        assert f"data/{lacking} cannot be read: copy the whole folder" in told


def test_the_benchmark_tells_what_it_measured(driver: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.report import main

    main(["--points", "50", "--contexts", "4", "--rounds", "1"])
    told = capsys.readouterr().out
    assert told.startswith("50 points, 200 sparse rows")
    assert "until the table can be used" in told and "until its answers are shown" in told
