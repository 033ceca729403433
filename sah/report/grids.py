"""Heatmaps of a report as plain data: score by depth and length of a needle, attention by layer and head."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sah.report.curves import main_metric, number
from sah.report.load import OF_LENGTHS, ReportPoint

HEAD_KINDS: Mapping[str, str] = {
    "output_error": "relative output error of attention",
    "mass_recalled": "softmax mass recalled (share)",
    "density": "measured density (share of allowed keys)",
}
"""What is known by layer and head, and how an axis names it."""

_MOST_DEPTHS = 33
"""Depths that get a column of their own; more are put into bins of a tenth."""


@dataclass(frozen=True)
class Grid:
    """A heatmap."""

    title: str
    x_name: str
    x: tuple[str, ...]
    y_name: str
    y: tuple[str, ...]
    value_name: str
    cells: tuple[tuple[float | None, ...], ...]
    """One row for each of y, one value for each of x; None where nothing was measured."""
    counts: tuple[tuple[int, ...], ...] | None = None
    """Questions behind each cell, where cells are means."""
    ids: tuple[str, ...] = ()
    """Of the points that it was made of."""


def layer_head(point: ReportPoint, kind: str) -> Grid | None:
    """Lay out what the attention of each layer and query head did.

    Args:
        point: A sparse point.
        kind: One of `HEAD_KINDS`.

    Returns:
        Layers down, heads across; None where it was not measured.
    """
    sparse = point.metrics.get("sparse")
    stored = (sparse or {}).get("attention_by_head") if isinstance(sparse, Mapping) else None
    if not isinstance(stored, Mapping) or not isinstance(stored.get(kind), list):
        return None
    rows = [[number(value) for value in row] if isinstance(row, list) else [] for row in stored[kind]]
    width = max((len(row) for row in rows), default=0)
    if not any(value is not None for row in rows for value in row):
        return None
    layers = stored.get("layers")
    names = layers if isinstance(layers, list) and len(layers) == len(rows) else range(len(rows))
    cells = tuple((*row, *[None] * (width - len(row))) for row in rows)
    heads = tuple(str(head) for head in range(width))
    about = HEAD_KINDS.get(kind, kind)
    return Grid(point.name, "query head", heads, "layer", tuple(map(str, names)), about, cells, ids=(point.id,))


def needle_sets(points: Sequence[ReportPoint]) -> dict[str, list[ReportPoint]]:
    """Join points that differ in the length and depths of their needle task alone.

    Args:
        points: Of one family of `ReportData.groups(same_needles=True)`, since other lengths make other groups.

    Returns:
        Name to points. A heatmap may be drawn of each; see `depth_length`.
    """
    sets: dict[str, list[ReportPoint]] = {}
    for point in points:
        identity = dict(point.main.identity)
        identity["dataset"] = {
            name: value for name, value in (identity.get("dataset") or {}).items() if name not in OF_LENGTHS
        }
        sets.setdefault(json.dumps([identity, point.is_dense], sort_keys=True, default=str), []).append(point)
    named: dict[str, list[ReportPoint]] = {}
    for members in sets.values():
        first = members[0]
        name = first.name if len(members) == 1 else _shared_name(members)
        named[name if name not in named else f"{name} ({len(named) + 1})"] = members
    return named


def depth_length(
    points: ReportPoint | Sequence[ReportPoint], arm: Literal["sparse", "dense"] | None = None
) -> Grid | None:
    """Lay mean scores out by the depth and length of the needle.

    Args:
        points: A point, or several that differ in length alone (`needle_sets`).
        arm: Whose answers; the points' own if None: sparse, or dense of a dense point.

    Returns:
        Lengths down, depths across; None where the rows do not say depth and length, or have no scores.
    """
    members = [points] if isinstance(points, ReportPoint) else list(points)
    found: dict[tuple[float, float], list[float]] = {}
    metric = main_metric(members)
    for point in members:
        dense = point.is_dense if arm is None else arm == "dense"
        for pair in point.pairs():
            place = _place(pair.row.metadata)
            value = number((pair.dense_scores if dense else pair.sparse_scores).get(metric))
            if place is not None and value is not None:
                found.setdefault(place, []).append(value)
    if not found:
        return None
    exact = sorted({depth for depth, _ in found})
    if len(exact) > _MOST_DEPTHS:
        binned: dict[tuple[float, float], list[float]] = {}
        for (depth, length), values in found.items():
            binned.setdefault((round(depth, 1), length), []).extend(values)
        found, exact = binned, sorted({depth for depth, _ in binned})
    lengths = sorted({length for _, length in found})
    table = [[found.get((depth, length), []) for depth in exact] for length in lengths]
    return Grid(
        title=members[0].name if len(members) == 1 else _shared_name(members),
        x_name="depth of the needle (0 is the start of the context)",
        x=tuple(f"{depth:.2f}".rstrip("0").rstrip(".") or "0" for depth in exact),
        y_name="prompt length (tokens)",
        y=tuple(f"{length:g}" for length in lengths),
        value_name=f"mean {metric}",
        cells=tuple(tuple(sum(cell) / len(cell) if cell else None for cell in row) for row in table),
        counts=tuple(tuple(len(cell) for cell in row) for row in table),
        ids=tuple(dict.fromkeys(point.id for point in members)),
    )


def _place(metadata: Mapping[str, Any]) -> tuple[float, float] | None:
    depth, length = number(metadata.get("depth")), number(metadata.get("length"))
    return None if depth is None or length is None else (depth, length)


def _shared_name(members: Sequence[ReportPoint]) -> str:
    """Name points by what their names share: the length is in the figure."""
    first, *others = (point.name.split() for point in members)
    return " ".join(word for word in first if all(word in other for other in others)) or members[0].main.label
