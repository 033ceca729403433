"""The jobs of a sweep, read back from what they left in their folders."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sah.errors import StateError
from sah.report.summary import PointSummary, summarise_point
from sah.results.files import read_json

JOB_FILE = "job.json"
"""Whether the job worked, where its point lies, and the figures of the examples that it asked for."""

_HAS_A_COLUMN = frozenset({"masker", "density", "phases", "dense_layers"})

_CHANGES_NO_RESULT = frozenset({"output_dir", "tracker", "threads", "context_folder", "experiment", "margin", "report"})


def read_record(path: Path) -> dict[str, Any]:
    """Read the record of one job.

    Args:
        path: Its `job.json`.

    Returns:
        The record.

    Raises:
        StateError: If it cannot be read, or is none.
    """
    record = read_json(path)
    if not isinstance(record, dict) or not {"status", "overrides"} <= record.keys():
        raise StateError(f"{path} is no record of a job of sah. It is left out.")
    return record


def read_records(folder: Path, problems: list[str] | None = None) -> list[dict[str, Any]]:
    """Read the records that the jobs of a sweep left.

    Args:
        folder: The sweep's folder.
        problems: Takes what is wrong with records that cannot be read; None raises instead.

    Returns:
        One record a job that ended, in the order of their numbers.

    Raises:
        StateError: If a record cannot be read and `problems` is None.
    """
    paths = [path for path in folder.glob(f"*/{JOB_FILE}") if path.parent.name.isdigit()]
    records = []
    for path in sorted(paths, key=lambda path: int(path.parent.name)):
        try:
            records.append(read_record(path))
        except StateError as error:
            if problems is None:
                raise
            problems.append(str(error))
    return records


def collect_points(records: Sequence[Mapping[str, Any]]) -> tuple[list[PointSummary], list[str]]:
    """Make the lines of a sweep's table, each point on the same examples once.

    Args:
        records: From `read_records`.

    Returns:
        Lines, named by their recipe and by the overrides that tell them apart, and notes on jobs that turned out to be
        the same point.
    """
    done = [record for record in records if "metrics" in record]
    telling = _telling_keys(done)
    lines: dict[tuple[str, str], PointSummary] = {}
    first: dict[tuple[str, str], str] = {}
    notes: list[str] = []
    for record in done:
        key = point_key(record)
        overrides = _assignments(record)
        if key in lines:
            if _text(record) != first[key]:  # a search may try the same twice
                notes.append(
                    f"'{_text(record)}' is the same point as '{first[key]}': nothing in it reads what differs."
                )
            continue
        label = " ".join([record["label"], *(f"{name}={overrides[name]}" for name in telling if name in overrides)])
        lines[key] = dataclasses.replace(summarise_point(record["metrics"]), label=label)
        first[key] = _text(record)
    return list(lines.values()), notes


def point_key(record: Mapping[str, Any]) -> tuple[str, str]:
    """Return what makes the results of two jobs the same: their point and its examples."""
    return record["point"], record["examples"]


def _telling_keys(records: Sequence[Mapping[str, Any]]) -> list[str]:
    every = [_assignments(record) for record in records]
    names = dict.fromkeys(name for overrides in every for name in overrides)
    return [
        name
        for name in names
        if name not in _HAS_A_COLUMN | _CHANGES_NO_RESULT and len({overrides.get(name) for overrides in every}) > 1
    ]


def _assignments(record: Mapping[str, Any]) -> dict[str, str]:
    pairs = [override.lstrip("+").partition("=") for override in record["overrides"]]
    return {name: value for name, equals, value in pairs if equals}


def _text(record: Mapping[str, Any]) -> str:
    return " ".join(record["overrides"])
