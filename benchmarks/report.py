"""How long a report takes to write and to open: 500 points with 50,000 rows, in headless Chromium.

    python -m benchmarks.report [--write] [--points N] [--contexts N]

The numbers in the report are invented (`benchmarks.report_folder`). Opening is timed by the browser itself, from the
start of navigation until the table of points can be used, and from a click on its first point until answers are shown.
`--write` replaces the figures in benchmarks/README.md. Needs Chromium, its driver and selenium.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.report_folder import Sweep, make_sweep
from sah.report.load import load_report
from sah.report.page import write_report

README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- report -->", "<!-- /report -->"
TARGET_SECONDS = 3.0
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
"""Chromium's, headless and without a network of its own; tests of pages take the same."""
_CLICK = """
const done = arguments[arguments.length - 1], start = performance.now();
document.querySelector("tbody tr a[href^='#/p/']").click();
const look = () => document.querySelectorAll("#point .example").length
  ? requestAnimationFrame(() => done((performance.now() - start) / 1000)) : setTimeout(look, 5);
look();
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report")
    parser.add_argument("--points", type=int, default=500, help="rounded to whole groups of 10 settings")
    parser.add_argument("--contexts", type=int, default=100, help="rows a point")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="replace the figures in benchmarks/README.md")
    given = parser.parse_args(arguments)
    densities = (0.01, 0.015, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3)
    values = max(1, round(given.points / (5 * len(densities))))
    sweep = Sweep(methods=5, values=values, densities=densities, lengths=(4096,), contexts=given.contexts)
    with tempfile.TemporaryDirectory() as folder:
        lines = measure(Path(folder), sweep, given.rounds)
    text = "\n".join(lines)
    print(text)
    if given.write:
        page = README.read_text(encoding="utf-8")
        start, end = page.index(BEGIN) + len(BEGIN), page.index(END)
        README.write_text(f"{page[:start]}\n```\n{text}\n```\n{page[end:]}", encoding="utf-8")


def measure(folder: Path, sweep: Sweep, rounds: int) -> list[str]:
    """Write and open the report of an invented sweep.

    Args:
        folder: An empty folder.
        sweep: Its size.
        rounds: How often the page is opened, each time in a fresh browser.

    Returns:
        Lines to print.
    """
    made = make_sweep(folder, sweep)
    start = time.perf_counter()
    data = load_report(made)
    loaded = time.perf_counter()
    page = write_report(data, made / "report")
    written = time.perf_counter()
    size = sum(path.stat().st_size for path in page.parent.rglob("*") if path.is_file()) / 2**20
    opened = [open_page(page) for _ in range(rounds)]
    ready, click = ([times[place] for times in opened] for place in (0, 1))
    worst = max(sum(times) for times in opened)
    return [
        f"{sweep.points} points, {sweep.points * sweep.contexts:,} sparse rows, {size:.0f} MiB of report",
        f"reading the results {loaded - start:6.1f} s",
        f"writing the report  {written - loaded:6.1f} s, pictures of all figures among it",
        f"opening it          {_told(ready)} until the table can be used",
        f"a click on a point  {_told(click)} until its answers are shown",
        f"both, at worst      {worst:6.2f} s; target below {TARGET_SECONDS:g} s: "
        f"{'met' if worst < TARGET_SECONDS else 'missed'}",
    ]


def open_page(page: Path) -> tuple[float, float]:
    """Open a page in a fresh browser.

    Args:
        page: Its `index.html`.

    Returns:
        Seconds until its table can be used, and from a click on a point until its answers are there.
    """
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.support.ui import WebDriverWait

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    with tempfile.TemporaryDirectory() as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}", "--window-size=1280,900"):
            options.add_argument(flag)
        driver: Any = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        try:
            driver.get(page.as_uri())
            ready = "return performance.getEntriesByName('sah-ready').map((mark) => mark.startTime)"
            [milliseconds] = WebDriverWait(driver, 60).until(lambda d: d.execute_script(ready))
            return milliseconds / 1000, driver.execute_async_script(_CLICK)
        finally:
            driver.quit()


def _told(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):6.2f} s (median of {len(seconds)}, worst {max(seconds):.2f} s)"


if __name__ == "__main__":
    main()
