"""Figures of points. Needs the extra `plot`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sah.errors import missing_extra
from sah.report.summary import PointSummary

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, which colour-blind readers can tell apart (https://jfly.uni-koeln.de/color/)."""
MARKERS = "osD^vPX"
LINES = ("-", ":", "-.")
"""When the colours are used up they come again, with the next kind of line and other markers."""


def density_curve(points: Sequence[PointSummary], path: Path) -> None:
    """Draw score against measured density, one line a method, with the dense score of the same examples.

    Args:
        points: Sparse points on one model and data set.
        path: File to write; its ending chooses the format.

    Raises:
        ConfigError: If matplotlib is not installed.
    """
    with _curves(points, path, lambda point: point.sparse) as axes:
        dense = [point.dense for point in points if point.dense is not None]
        if dense:
            axes.axhline(sum(dense) / len(dense), color="grey", linestyle="--", linewidth=1, label="dense")
        axes.set_ylabel(f"score ({points[0].metric})" if points else "score")
        axes.set_ylim(-0.03, 1.03)


def error_curve(points: Sequence[PointSummary], path: Path) -> None:
    """Draw the relative output error of attention against measured density, both axes logarithmic, one line a method.

    Args:
        points: Sparse points on one model and data set; those without a measured error are left out.
        path: File to write; its ending chooses the format.

    Raises:
        ConfigError: If matplotlib is not installed.
    """
    with _curves(points, path, lambda point: point.output_error) as axes:
        axes.set_ylabel("relative output error of attention")
        axes.set_yscale("log")


@contextmanager
def _curves(points: Sequence[PointSummary], path: Path, value: Callable[[PointSummary], float | None]) -> Iterator[Any]:
    """Draw one line a method over measured density; yields the axes for the rest, then writes the file."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError as error:
        raise missing_extra("matplotlib", "plot", "A figure") from error

    curves: dict[str, list[PointSummary]] = defaultdict(list)
    for point in points:
        if value(point) is not None and point.density_measured is not None:
            curves[point.label].append(point)
    figure, axes = pyplot.subplots(figsize=(6.4, 4.0), layout="constrained")
    for index, (label, line) in enumerate(curves.items()):
        ordered = sorted(line, key=lambda point: point.density_measured or 0.0)
        again = index // len(COLOURS)
        axes.plot(
            [point.density_measured or 0.0 for point in ordered],
            [value(point) or 0.0 for point in ordered],
            color=COLOURS[index % len(COLOURS)],
            marker=MARKERS[(index + again) % len(MARKERS)],
            linestyle=LINES[again % len(LINES)],
            label=label,
        )
    axes.set_xscale("log")
    ticks = sorted({round(p.density_requested, 4) for line in curves.values() for p in line if p.density_requested})
    if ticks:
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.xaxis.minorticks_off()
    axes.set_xlabel("measured density (share of allowed keys read)")
    axes.grid(alpha=0.3)
    yield axes
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
