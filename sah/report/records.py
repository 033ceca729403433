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

CONFIG_FILE = "config.json"
"""The job's config, written as it begins."""

_HAS_A_COLUMN = frozenset({"masker", "density", "phases", "dense_layers", "prefill"})

_OF_PREFILL = "prefill."
"""Its values are part of a sparse prefill's own name."""

_CHANGES_NO_RESULT = frozenset({"output_dir", "tracker", "threads", "context_folder", "experiment", "margin", "report"})


def read_record(path: Path) -> dict[str, Any]:
    """Read the record of one job.

    Args:
        path: Its `job.json`.

    Returns:
        The record, with `file`, where it lies.

    Raises:
        StateError: If it cannot be read, or is none.
    """
    record = read_json(path)
    if not isinstance(record, dict) or not {"status", "overrides"} <= record.keys():
        raise StateError(f"{path} is no record of a job of sah. It is left out.")
    return checked_record({**record, "file": str(path)})


def checked_record(record: dict[str, Any]) -> dict[str, Any]:
    """Check that a record has the shape that jobs give it, and that the figures in it can be shown.

    Args:
        record: With `file`, which the message names.

    Returns:
        The same.

    Raises:
        StateError: If it has not.
    """
    try:
        _check_texts(record, "overrides")
        if "metrics" in record:
            for name in ("point", "folder", "examples", "label"):
                if not isinstance(record[name], str):
                    raise TypeError(f"{name} is no text")
            if record.get("questions") is not None:
                _check_texts(record, "questions")
            _check_summary(summarise_point(record["metrics"]))
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        told = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise StateError(
            f"The figures of {record['file']} cannot be read ({told}): another version of sah wrote them, or they are "
            "damaged. They are left out; the same command writes them anew."
        ) from error
    return record


def _check_texts(record: Mapping[str, Any], name: str) -> None:
    if not isinstance(record[name], list) or not all(isinstance(text, str) for text in record[name]):
        raise TypeError(f"{name} is no list of texts")


def _check_summary(summary: PointSummary) -> None:
    """Check the types of figures, which are taken from the file as they are: a text would fail where it is shown."""
    for entry in dataclasses.fields(PointSummary):
        value, kind = getattr(summary, entry.name), str(entry.type)
        if value is None and "None" in kind:
            continue
        if kind.startswith("tuple["):
            right = all(part is None or _is_number(part) for part in value)
        elif kind.startswith(("float", "int")):
            right = _is_number(value)
        else:
            right = not kind.startswith("str") or isinstance(value, str)
        if not right:
            raise TypeError(f"{entry.name} is {value!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_records(folder: Path, problems: list[str] | None = None) -> list[dict[str, Any]]:
    """Read the records that the jobs of a sweep left.

    Args:
        folder: The sweep's folder.
        problems: Takes what is wrong with records that cannot be read, and which jobs left none since they were ended
            from outside; None raises for the former instead.

    Returns:
        One record a job that ended, in the order of their numbers.

    Raises:
        StateError: If a record cannot be read and `problems` is None.
    """
    jobs = [path for path in folder.glob("*/") if path.name.isdecimal()]
    records = []
    for job in sorted(jobs, key=lambda path: int(path.name)):
        path = job / JOB_FILE
        if not path.exists():
            if problems is not None and (job / CONFIG_FILE).exists():
                problems.append(f"Job {job.name} of {folder} did not end: run the same command again.")
            continue
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
        Lines, named by their recipe and by the overrides and phases that tell them apart, and notes on jobs that turned
        out to be the same point.
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
    return _told_apart(list(lines.values())), notes


def _told_apart(points: list[PointSummary]) -> list[PointSummary]:
    """Make the phases, with the layers that stayed dense, part of the names if points differ in them."""
    if len({point.sparse_after for point in points} - {""}) < 2:
        return points
    return [dataclasses.replace(point, apart=point.sparse_after) for point in points]


def point_key(record: Mapping[str, Any]) -> tuple[str, str]:
    """Return what makes the results of two jobs the same: their point and its examples."""
    return record["point"], record["examples"]


def _telling_keys(records: Sequence[Mapping[str, Any]]) -> list[str]:
    every = [_assignments(record) for record in records]
    names = dict.fromkeys(name for overrides in every for name in overrides)
    return [
        name
        for name in names
        if name not in _HAS_A_COLUMN | _CHANGES_NO_RESULT
        and not name.startswith(_OF_PREFILL)
        and len({overrides.get(name) for overrides in every}) > 1
    ]


def _assignments(record: Mapping[str, Any]) -> dict[str, str]:
    pairs = [override.lstrip("+").partition("=") for override in record["overrides"]]
    return {name: value for name, equals, value in pairs if equals}


def _text(record: Mapping[str, Any]) -> str:
    return " ".join(record["overrides"])
