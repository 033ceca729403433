"""The command `python -m sah.report wandb FOLDER`: makes a W&B Report of finished work.

It is always written to files as well: `report.json`, what the server gets, and `report.html`, the same report to read.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sah.console import print_error
from sah.errors import SahError, StateError
from sah.report.load import load_report
from sah.report.story import Story, make_story
from sah.report.story_html import story_html
from sah.report.table import print_lines
from sah.report.wandb_blocks import Place, report_spec, wandb_report, workspaces
from sah.results.files import read_json, replace_file, replace_json, storage_error
from sah.tracking.base import TRACKING_FILE
from sah.tracking.wandb import environment_mode, key_is_configured, server_url

FOLDER = "wandb_report"
SPEC_FILE = "report.json"
PAGE_FILE = "report.html"
PUBLISHED_FILE = "published.json"
"""Where the report was published, so that the same command replaces it there."""


def main(arguments: Sequence[str]) -> int:
    """Make the report of a folder.

    Args:
        arguments: Of the command line, without `wandb`.

    Returns:
        The exit code: 0, also where the report was not to be published; 1 with a message if there is nothing to
        report, the report cannot be written, or a server did not take it.
    """
    given = _parser().parse_args(arguments)
    logging.getLogger("wandb").setLevel(logging.ERROR)
    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        workspaces()
        server = server_url()
        data = load_report(given.folder)
        story = make_story(data)
        note = _tracked(given.folder)
        settings = note.get("settings", {})
        place = Place(
            entity="",
            project=given.project or settings.get("project") or "sah",
            sweep=note.get("run"),
            points=tuple(dict.fromkeys(point.id for point in data.points)),
        )
        output = given.output or given.folder / FOLDER
        _write(story, place, output)
    except SahError as error:
        print_error(str(error))
        return 1
    for problem in data.problems:
        print_error(problem)
    print_lines(f"Report of {len(data.points)} points: {(output / PAGE_FILE).resolve()}")
    if not note:
        print_lines(
            "W&B knows these points from no sweep, so the report shows no figures of one there. A sweep's command "
            "with tracker=wandb tracks it; finished points are not computed again."
        )
    reason = "--offline" if given.offline else _why_offline(server)
    if reason is not None:
        print_lines(f"Not published ({reason}). {_how(given.folder)}")
        return 0
    try:
        url = _publish(story, place, given.entity or settings.get("entity"), server, output)
    except Exception as error:
        print_error(f"{server} did not take the report ({_one_line(error)}). {_how(given.folder)}")
        return 1
    print_lines(f"Published: {url}", _left(given.folder))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sah.report wandb",
        description="Makes a report in Weights & Biases of what a sweep found. Without an API key, or where the server "
        "refuses, the report stays in files.",
    )
    parser.add_argument("folder", type=Path, help="of a sweep (outputs/sweeps/DATE/TIME), a run, or an output folder")
    parser.add_argument("--project", help="of the runs; the sweep's own by default, else sah")
    parser.add_argument("--entity", help="user or team; the sweep's own by default, else the account's")
    parser.add_argument("--offline", action="store_true", help="write the files alone")
    parser.add_argument("--output", type=Path, help=f"where the files go; {FOLDER}/ in the folder itself by default")
    return parser


def _tracked(folder: Path) -> Mapping[str, Any]:
    """Read what the sweep noted of its tracker; empty where it was not W&B."""
    note = read_json(folder / TRACKING_FILE)
    known = isinstance(note, dict) and note.get("tracker") == "wandb" and isinstance(note.get("settings"), dict)
    return note if known else {}


def _write(story: Story, place: Place, output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error("create", output, error, "Results are untouched.") from error
    replace_json(output / SPEC_FILE, report_spec(wandb_report(story, place)))
    replace_file(output / PAGE_FILE, story_html(story).encode())


def _why_offline(server: str) -> str | None:
    if environment_mode() in ("offline", "disabled"):
        return f"WANDB_MODE={os.environ['WANDB_MODE']}"
    try:
        return None if key_is_configured(server) else f"no API key for {server}"
    except Exception as error:
        return f"the credentials for {server} cannot be used: {_one_line(error)}"


def _publish(story: Story, place: Place, entity: str | None, server: str, output: Path) -> str:
    """Send the report; the one that an earlier command sent to the same place is replaced."""
    import wandb

    owner = entity or wandb.Api().default_entity
    if not owner:
        raise StateError("the account has no default entity; give one with --entity")
    where = {"server": server, "entity": owner, "project": place.project}
    report = wandb_report(story, Place(owner, place.project, place.sweep, place.points))
    earlier = read_json(output / PUBLISHED_FILE)
    if isinstance(earlier, dict) and earlier.get("where") == where:
        report.id = earlier["id"]
    report.save()
    replace_json(output / PUBLISHED_FILE, {"where": where, "id": report.id, "url": report.url})
    return str(report.url)


def _how(folder: Path) -> str:
    """Say in one line how to publish."""
    steps = ["wandb login", _sync(folder), f"python -m sah.report wandb {shlex.quote(str(folder))}"]
    return f"To publish it: {' && '.join(filter(None, steps))}"


def _left(folder: Path) -> str:
    """Tell of runs that the report shows only once they are uploaded."""
    left = len(_offline_runs(folder))
    return f"{left} of its runs are not uploaded yet: {_sync(folder)}" if left else ""


def _sync(folder: Path) -> str:
    """Write the command that uploads what is not uploaded; empty where nothing is left."""
    shown = shlex.quote(str(folder))
    where = {run.parent.parent == folder: None for run in _offline_runs(folder)}
    paths = [f"{shown}/{'' if own else '*/'}wandb/offline-run-*" for own in where]
    return f"wandb sync {' '.join(paths)}" if paths else ""


def _offline_runs(folder: Path) -> list[Path]:
    """Find the runs of a sweep or job that are not uploaded; wandb leaves a file beside the log of one that is."""
    runs = [*folder.glob("wandb/offline-run-*"), *folder.glob("*/wandb/offline-run-*")]
    return sorted(run for run in runs if not list(run.glob("*.synced")))


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
