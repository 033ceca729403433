"""The command `python -m sah.report FOLDER`: writes the page of finished work."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from sah.console import print_error
from sah.errors import SahError
from sah.report.load import load_report
from sah.report.page import write_report
from sah.report.table import print_lines

FOLDER = "report"
"""Of the page, in the folder that it reports on."""


def main(arguments: Sequence[str]) -> int:
    """Write the page of each folder.

    Args:
        arguments: Of the command line.

    Returns:
        The exit code: 0, or 1 with a message if a folder could not be reported.
    """
    parser = argparse.ArgumentParser(
        prog="python -m sah.report",
        description="Writes a page of finished work that any browser opens without a network: verdicts, a table, "
        "figures (also as PNG, SVG and CSV files) and the answers.",
        epilog="python -m sah.report wandb FOLDER makes a report in Weights & Biases.",
    )
    parser.add_argument(
        "folder",
        type=Path,
        nargs="+",
        help="of a sweep (outputs/sweeps/DATE/TIME), a run, a point, or an output folder with all its points",
    )
    parser.add_argument("--output", type=Path, help=f"where the page goes; {FOLDER}/ in the folder itself by default")
    given = parser.parse_args(arguments)
    if given.output is not None and len(given.folder) > 1:
        parser.error("--output takes one folder: each of several has a page of its own")
    failed = False
    for folder in given.folder:
        try:
            data = load_report(folder)
            page = write_report(data, given.output or folder / FOLDER)
        except SahError as error:
            print_error(str(error))
            failed = True
            continue
        for problem in data.problems:
            print_error(problem)
        count = f"{len(data.points)} point{'' if len(data.points) == 1 else 's'}"
        missing = f", {len(data.failures)} failed" if data.failures else ""
        print_lines(f"Report of {count}{missing}: {page.resolve()}")
    return 1 if failed else 0
