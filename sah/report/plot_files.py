"""CSV files of figures: what a figure shows, one line a value."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from sah.report.plots import BarPlot, GridPlot, LinePlot, Plot

Cell = str | float | int | None


def write_csv(path: Path, lines: Iterable[Sequence[Cell]]) -> None:
    """Write lines as CSV, the names of the columns first; None becomes an empty cell.

    Text that a spreadsheet would take for a formula gets an apostrophe in front.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([_safe(cell) for cell in line] for line in lines)


def plot_lines(plot: Plot, ids: Sequence[str]) -> list[list[Cell]]:
    """Lay a figure out as lines.

    Args:
        plot: The figure.
        ids: Of the points that it was made of, in their order.

    Returns:
        The names of the columns, then one line a value.
    """
    if isinstance(plot, LinePlot):
        return _of_curves(plot, ids)
    if isinstance(plot, BarPlot):
        return [
            ["setting", "point", *plot.parts, "same run as dense"],
            *(
                [bar.name, _id(bar.place, ids), *(bar.parts.get(part) for part in plot.parts), str(bar.same_run)]
                for bar in plot.bars
            ),
        ]
    if isinstance(plot, GridPlot):
        return _of_grids(plot)
    raise TypeError(f"no CSV form of {type(plot).__name__}")


def _id(place: int | None, ids: Sequence[str]) -> str | None:
    """Give a point's id; None for the dense baseline where it is no point of its own."""
    return None if place is None or place < 0 else ids[place]


def _of_curves(plot: LinePlot, ids: Sequence[str]) -> list[list[Cell]]:
    front = set(plot.front)
    head: list[Cell] = ["method", "setting", "point", plot.x_label, plot.y_label, "low", "high"]
    lines = [[*head, "on the front"] if front else head]
    for curve in plot.series:
        for point in curve.points:
            line: list[Cell] = [curve.label, point.name, _id(point.place, ids), point.x, point.y, point.low, point.high]
            lines.append([*line, str((point.x, point.y) in front)] if front else line)
    if plot.band is not None:
        lines.append([plot.band_label, plot.band_label, None, None, plot.band.value, plot.band.low, plot.band.high])
    return lines


def _of_grids(plot: GridPlot) -> list[list[Cell]]:
    first = plot.grids[0]
    lines: list[list[Cell]] = [["setting", "point", first.y_name, first.x_name, first.value_name, "questions"]]
    for grid in plot.grids:
        for row, (y, values) in enumerate(zip(grid.y, grid.cells, strict=True)):
            counts = [None] * len(values) if grid.counts is None else grid.counts[row]
            cells = zip(grid.x, values, counts, strict=True)
            lines += [[grid.title, " ".join(grid.ids), y, x, value, count] for x, value, count in cells]
    return lines


def _safe(cell: Cell) -> Cell:
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@") else cell
