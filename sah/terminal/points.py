"""Finds points by what people call them: an id or its beginning, a name (`topk 0.1`), a recipe (`topk`)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sah.config.values import closest
from sah.errors import ConfigError, StateError
from sah.report.load import POINTS, ReportData, ReportPoint, load_report

OUTPUTS = Path("outputs")
"""The output folder that runs write to unless they are told otherwise."""

_SHOWN = 12
_SHORTEST_ID = 4


def find_points(points: Sequence[ReportPoint], wanted: str) -> list[ReportPoint]:
    """Find points by id, name, recipe with its density, or recipe; what is exact comes before what begins so.

    Args:
        points: Where to look.
        wanted: What was written.

    Returns:
        All points that it fits; none if nothing does.
    """
    text = wanted.strip()
    for fitting in (
        [point for point in points if point.id == text],
        [point for point in points if point.name == text],
        [point for point in points if text == _recipe_and_density(point)],
        [point for point in points if text in (point.label, point.main.label)],
        [point for point in points if len(text) >= _SHORTEST_ID and point.id.startswith(text)],
    ):
        if fitting:
            return fitting
    return []


def _recipe_and_density(point: ReportPoint) -> str:
    """Give the name without what else tells the point from others, which depends on what they are."""
    density = point.summary.density_requested
    return point.main.label if density is None else f"{point.main.label} {density:g}"


def no_such_point(wanted: str, points: Iterable[ReportPoint], where: str) -> StateError:
    """Build the error for a point that is not there.

    Args:
        wanted: What was written.
        points: Those that are there.
        where: What was searched.

    Returns:
        The error, to be raised by the caller.
    """
    known = [(point.name, point.id) for point in points]
    names = list(dict.fromkeys(name for name, _ in known))
    meant = closest(wanted, names)
    listed = ", ".join(f"{name!r} ({identity})" for name, identity in known[:_SHOWN])
    more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
    return StateError(
        f"{where} has no point {wanted!r}. Allowed: a name or an id of {listed or 'none'}{more}."
        + (f" Did you mean {meant!r}?" if meant else "")
    )


def one_point(data: ReportData, wanted: str) -> ReportPoint:
    """Find the one point that is meant.

    Args:
        data: Where to look.
        wanted: Id, name or recipe.

    Returns:
        The point.

    Raises:
        StateError: If none fits.
        ConfigError: If several do; the message lists their ids.
    """
    found = find_points(data.points, wanted)
    if not found:
        raise no_such_point(wanted, data.points, str(data.folder))
    if len(found) > 1:
        titles = {point.id: title for title, points in data.groups().items() for point in points}
        listed = "\n".join(f"  {point.id}  {point.name}, {titles[point.id]}" for point in found[:_SHOWN])
        more = f"\n  and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise ConfigError(
            f"{wanted!r} fits {len(found)} points of {data.folder}. Give one of these ids:\n{listed}{more}"
        )
    return found[0]


def laid_out(value: Any, key: str = "") -> dict[str, str]:
    """Lay an identity out for people: a line for each value, lists of plain values in one piece.

    Args:
        value: Nested JSON data.
        key: Name of the value itself.

    Returns:
        Dotted name to text.
    """
    if isinstance(value, Mapping) and value:
        items: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, list) and any(isinstance(item, (list, dict)) for item in value):
        items = enumerate(value)
    else:
        return {key: value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)}
    found: dict[str, str] = {}
    for name, item in items:
        found |= laid_out(item, f"{key}.{name}" if key else str(name))
    return found


def what_is_asked(metadata: Mapping[str, Any]) -> str:
    """Write what a data set says about a question, as far as it tells questions apart: `length 512, depth 0.286`."""
    known = [(name, metadata[name]) for name in ("task", "length", "depth") if metadata.get(name) is not None]
    return ", ".join(f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in known)


def read_side(written: str, outputs: Path) -> ReportData:
    """Read what one side of a comparison names.

    Args:
        written: A folder that sah wrote, or the id, name or recipe of a point in `outputs`.
        outputs: An output folder, or a sweep's.

    Returns:
        The points of the folder, or the one point.

    Raises:
        StateError: If there is no such folder or point.
        ConfigError: If several points are meant.
    """
    folder = Path(written)
    if folder.is_dir():
        return load_report(folder)
    if "/" in written:
        raise StateError(f"{written} is no folder. Give one that sah wrote to, or a point's id or name.")
    if not outputs.is_dir():
        raise StateError(
            f"{written!r} is no folder, and there is no folder {outputs} to look for such a point. "
            "Give a folder that sah wrote to, or the output folder with --in FOLDER."
        )
    # An id needs no other point to be read.
    ids = sorted((outputs / POINTS).glob(f"{written}*")) if written.isalnum() and len(written) >= _SHORTEST_ID else []
    if len(ids) == 1:
        return load_report(ids[0])
    data = load_report(outputs)
    point = one_point(data, written)
    return ReportData(point.main.folder, (point,), problems=())
