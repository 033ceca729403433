"""What a job leaves in its own folder, and how the jobs of a sweep are read back. Imports no model."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.types import RunMode

from sah.report.summary import PointSummary, summarise_point

JOB_FILE = "job.json"
"""Whether the job worked, where its point lies, and the figures of the examples that it asked for."""

_HAS_A_COLUMN = frozenset({"masker", "density", "phases", "dense_layers"})


def sweep_name(hydra: Any) -> str | None:
    """Name what a job belongs to: its preset, or a sweep by its command line; None for a single run without a preset.

    Args:
        hydra: Hydra's part of the config.

    Returns:
        The name. The same command is the same sweep, whenever it is resumed.
    """
    preset: str | None = hydra.runtime.choices.get("experiment")
    if hydra.mode != RunMode.MULTIRUN:
        return preset
    return preset or "sweep-" + hashlib.sha256(" ".join(sys.argv[1:]).encode()).hexdigest()[:8]


def clear_records(folder: Path) -> None:
    """Remove the records of an earlier sweep from a sweep's folder; its results lie elsewhere."""
    for path in folder.glob(f"*/{JOB_FILE}"):
        path.unlink()


def read_records(folder: Path) -> list[dict[str, Any]]:
    """Read the records that the jobs of a sweep left.

    Args:
        folder: The sweep's folder.

    Returns:
        One record a job that ended, in the order of their numbers.
    """
    paths = [path for path in folder.glob(f"*/{JOB_FILE}") if path.parent.name.isdigit()]
    paths.sort(key=lambda path: int(path.parent.name))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


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
        name for name in names if name not in _HAS_A_COLUMN and len({overrides.get(name) for overrides in every}) > 1
    ]


def _assignments(record: Mapping[str, Any]) -> dict[str, str]:
    pairs = [override.lstrip("+").partition("=") for override in record["overrides"]]
    return {name: value for name, equals, value in pairs if equals}


def _text(record: Mapping[str, Any]) -> str:
    return " ".join(record["overrides"])
