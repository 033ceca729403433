"""What the studies share: running a preset's sweep, reading its points, and writing results into a page."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from sah.report.records import read_records
from sah.report.summary import PointSummary, summarise_point

FAST = ["model=tiny", "tracker=none", "dataset.length=512", "dataset.num_examples=2", "dataset.depths=2"]
"""Overrides of the fast form, which shows that a study runs; its scores mean nothing."""

FAST_PROSE = ["model=tiny", "tracker=none", "dataset.length=256", "dataset.continuation=16", "dataset.num_examples=2"]
"""The same for prose."""


@dataclass(frozen=True)
class Options:
    """What a study's command line says."""

    folder: Path
    """Where its page and figures go."""

    output_dir: Path
    """Where the rows go; the same folder resumes."""

    fast: bool
    overrides: list[str]
    without: list[str] = field(default_factory=list)
    """Methods that are left out."""


def parse_options(description: str, folder: Path, methods: Sequence[str] = ()) -> Options:
    """Read a study's command line.

    Args:
        description: One sentence on the study.
        folder: The study's own folder, which holds its page.
        methods: Names of methods that may be left out; none if the study is made as a whole.

    Returns:
        The options.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--fast", action="store_true", help="a tiny random model and two examples, in under a minute")
    parser.add_argument("--folder", type=Path, default=folder, help="where the page and figures go")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs"), help="where the rows go")
    parser.add_argument("overrides", nargs="*", help="further overrides, as for python -m sah.run")
    if methods:
        what = "a method to leave out; may be given again"
        parser.add_argument("--without", action="append", default=[], choices=methods, metavar="METHOD", help=what)
    given = parser.parse_args()
    if given.fast and given.folder == folder:
        parser.error("--fast would overwrite the real result: give --folder as well")
    return Options(given.folder, given.output_dir, given.fast, given.overrides, getattr(given, "without", []))


def run_preset(preset: str, options: Options) -> list[tuple[PointSummary, list[str]]]:
    """Run the sweep that a preset holds; points that are done already are not computed again.

    Args:
        preset: Name in conf/experiment.
        options: The command line.

    Returns:
        The points in the sweep's order, each with the overrides of its job.

    Raises:
        SystemExit: If no point could be run.
    """
    started = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    sweep = options.output_dir / "studies" / preset / started
    command = [sys.executable, "-m", "sah.run", f"+experiment={preset}", f"output_dir={options.output_dir}"]
    command += [f"hydra.sweep.dir={sweep}", *(FAST if options.fast else []), *options.overrides]
    code = subprocess.run(command, check=False).returncode
    records = [record for record in read_records(sweep) if "metrics" in record]
    if not records:
        raise SystemExit(code or 1)
    if code:
        print("Some points failed; the page shows the others.", file=sys.stderr)
    return [(summarise_point(record["metrics"]), record["overrides"]) for record in records]


def write_block(page: Path, name: str, text: str) -> None:
    """Put a result into a page, between the markers `<!-- name -->` and `<!-- /name -->`.

    Args:
        page: A Markdown file; made with the block alone if it does not exist.
        name: The block's name.
        text: Its new content.
    """
    block = f"<!-- {name} -->\n{text.strip()}\n<!-- /{name} -->"
    page.parent.mkdir(parents=True, exist_ok=True)
    old = page.read_text(encoding="utf-8") if page.exists() else block
    pattern = re.compile(rf"<!-- {name} -->.*?<!-- /{name} -->", re.DOTALL)
    if not pattern.search(old):
        raise SystemExit(f"{page} has no block <!-- {name} -->")
    page.write_text(pattern.sub(lambda _: block, old).rstrip("\n") + "\n", encoding="utf-8")
