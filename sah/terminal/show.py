"""`sah show FOLDER...`: what finished work says, in the terminal."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from sah.console import print_error
from sah.errors import StateError
from sah.report.load import ReportData, ReportPoint, load_report
from sah.report.table import error_note, line_order, speed_note
from sah.report.verdict_lines import headline, judged
from sah.results.sweep_file import SWEEP_FILE
from sah.terminal.command import parser
from sah.terminal.points import find_points, no_such_point
from sah.terminal.profiles import show_curves, show_fidelity, show_layers, show_table
from sah.terminal.screen import console, shortened, show_json, show_line, show_title

_EXAMPLES = """\
  sah show outputs/sweeps/2026-11-22/13-47-00      a sweep
  sah show outputs                                 all points of an output folder
  sah show outputs --point 'topk 0.1'              one point in full, with examples
  sah show outputs --point 5396ee57427f1ba7 --examples 20
  sah show outputs --json | jq '.[0].points[].summary.difference'"""

_MOST_COMMANDS = 12
_MOST_NAMED = 20
_ERROR_CHARACTERS = 300


def main(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: What follows `sah show`.

    Returns:
        The exit code: 1 if a folder could not be read at all.

    Raises:
        StateError: If no folder could be read, or has the point that is asked for.
    """
    given = _parse(arguments)
    read: list[ReportData] = []
    refused: list[str] = []
    for folder in given.folders:
        try:
            read.append(judged(load_report(folder)))
        except StateError as error:
            refused.append(str(error))
    for message in refused:
        print_error(message)
    if not read:
        return 1
    if given.point is not None:
        _show_points(read, given)
    elif given.json:
        show_json([_report_json(data) for data in read])
    else:
        for data in read:
            _show_report(data, console())
    return 1 if refused else 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    built = parser("show", "Show finished work: a sweep, a job, a point, or a whole output folder.", _EXAMPLES)
    built.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="a folder that sah wrote to")
    built.add_argument("--point", metavar="NAME", help="show one point in full: its name, its recipe or its id")
    built.add_argument(
        "--examples", type=int, default=5, metavar="N", help="questions shown of a point, those that differ first (5)"
    )
    built.add_argument("--json", action="store_true", help="everything as JSON, a list with an entry for each folder")
    return built.parse_args(arguments)


def _show_points(read: Sequence[ReportData], given: argparse.Namespace) -> None:
    from sah.terminal.point import point_json, show_point

    points = [point for data in read for point in data.points]
    found = find_points(points, given.point)
    where = ", ".join(str(data.folder) for data in read)
    if not found:
        raise no_such_point(given.point, points, where)
    if given.json:
        show_json([point_json(point, given.examples) for point in found])
        return
    target = console()
    for data in read:
        _show_problems(data, target)
    for point in found[:_MOST_NAMED]:
        show_point(point, given.examples, target)
    if len(found) > _MOST_NAMED:
        ids = ", ".join(point.id for point in found[_MOST_NAMED:])
        show_line(target, f"{given.point!r} fits {len(found) - _MOST_NAMED} more points; give an id: {ids}")


def _show_report(data: ReportData, target: Console) -> None:
    counted = f"{len(data.points)} point{'' if len(data.points) == 1 else 's'}"
    failed = f", {len(data.failures)} failed" if data.failures else ""
    show_line(target, f"{data.folder}: {counted}{failed}", "bold")
    _show_problems(data, target)
    for title, members in data.groups().items():
        points = sorted(members, key=lambda point: line_order(point.summary))
        summaries = [point.summary for point in points]
        target.print()
        show_table(points, title, target)
        show_line(target, headline(points))
        show_curves(points, target)
        show_layers(points, target)
        show_fidelity(points, target)
        for note in filter(None, (error_note(summaries), speed_note(summaries))):
            show_line(target, note)
    for note in data.notes:
        show_line(target, note)
    _show_commands(data, target)


def _show_problems(data: ReportData, target: Console) -> None:
    """Show what failed and what cannot be read, before anything else."""
    if data.failures:
        show_title(target, "Failed")
        for overrides, error in data.failures:
            show_line(target, f"  {overrides or '(no overrides)'}", "red")
            show_line(target, f"    {shortened(error, _ERROR_CHARACTERS)}")
    if data.problems:
        show_title(target, "Not shown, or in part only")
        for problem in data.problems:
            show_line(target, f"  {problem}", "yellow")


def _show_commands(data: ReportData, target: Console) -> None:
    """Show what computes all of it again: one command for a sweep, one a point for few points."""
    whole = sweep_command(data.folder)
    show_title(target, "Computed again by")
    if whole is not None:
        show_line(target, f"  {whole}")
        show_line(target, f"  one point: sah show {shlex.quote(str(data.folder))} --point NAME")
        return
    width = max((len(point.name) for point in data.points[:_MOST_COMMANDS]), default=0)
    for point in data.points[:_MOST_COMMANDS]:
        show_line(target, f"  {point.name:<{width}}  {point.command}")
    if len(data.points) > _MOST_COMMANDS:
        rest = len(data.points) - _MOST_COMMANDS
        show_line(target, f"  and {rest} more: sah show {shlex.quote(str(data.folder))} --point NAME")


def sweep_command(folder: Path) -> str | None:
    """Read from what Hydra keeps of a sweep the command that makes it again.

    Args:
        folder: The sweep's folder.

    Returns:
        The command; None if it is no sweep's folder, or what Hydra kept cannot be read.
    """
    path = folder / SWEEP_FILE
    if not path.is_file():
        return None
    from omegaconf import OmegaConf

    try:
        saved: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        overrides: Mapping[str, Any] = saved["hydra"]["overrides"]
        hydra = [text for text in map(str, overrides["hydra"]) if text != "hydra.mode=MULTIRUN"]
        return shlex.join(["python", "-m", "sah.run", "-m", *map(str, overrides["task"]), *hydra])
    except Exception:  # half-written YAML, or none: the points' own commands are shown
        return None


def _report_json(data: ReportData) -> dict[str, Any]:
    return {
        "folder": str(data.folder),
        "command": sweep_command(data.folder),
        "groups": {title: [point.id for point in points] for title, points in data.groups().items()},
        "points": [_point_json(point) for point in data.points],
        "failures": [{"overrides": overrides, "error": error} for overrides, error in data.failures],
        "problems": list(data.problems),
        "notes": list(data.notes),
    }


def _point_json(point: ReportPoint) -> dict[str, Any]:
    return {
        "id": point.id,
        "name": point.name,
        "label": point.label,
        "model": point.model,
        "dataset": point.dataset,
        "folder": str(point.main.folder),
        "command": point.command,
        "summary": dataclasses.asdict(point.summary),
        "metrics": point.metrics,
    }
