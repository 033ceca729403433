"""Pictures of figures. Needs the extra `plot`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from sah.errors import missing_extra
from sah.report.plots import BarPlot, GridPlot, LinePlot, Plot
from sah.report.summary import PointSummary

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, which colour-blind readers can tell apart (https://jfly.uni-koeln.de/color/)."""
_MARKERS = "osD^vPX"
_LINES = ("-", ":", "-.")
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
    pyplot = _pyplot()
    curves: dict[str, list[PointSummary]] = defaultdict(list)
    for point in points:
        if value(point) is not None and point.density_measured is not None:
            curves[point.label].append(point)
    figure, axes = pyplot.subplots(figsize=(6.4, 4.0), layout="constrained")
    for index, (label, line) in enumerate(curves.items()):
        ordered = sorted(line, key=lambda point: point.density_measured or 0.0)
        again = index // len(_COLOURS)
        axes.plot(
            [point.density_measured or 0.0 for point in ordered],
            [value(point) or 0.0 for point in ordered],
            color=_COLOURS[index % len(_COLOURS)],
            marker=_MARKERS[(index + again) % len(_MARKERS)],
            linestyle=_LINES[again % len(_LINES)],
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


_MOST_BARS = 40
_MOST_GRIDS = 12
"""More are left out of a picture, which says so; the CSV file has all."""


def drawing() -> AbstractContextManager[Any]:
    """Make ready for `draw_plot`: text stays text in SVG files.

    Raises:
        ConfigError: If matplotlib is not installed.
    """
    _pyplot()
    import matplotlib

    context: AbstractContextManager[Any] = matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "sah"})
    return context


def draw_plot(plot: Plot, paths: Sequence[Path]) -> None:
    """Draw a figure of a report.

    Args:
        plot: The figure.
        paths: Files to write; their endings choose the format. Nothing is done without any.

    Raises:
        ConfigError: If matplotlib is not installed.
    """
    if not paths:
        return
    pyplot = _pyplot()
    if isinstance(plot, GridPlot):
        figure = _draw_grids(pyplot, plot)
    else:
        height = 4.0 if isinstance(plot, LinePlot) else 1.2 + 0.28 * min(len(getattr(plot, "bars", ())), _MOST_BARS)
        figure, axes = pyplot.subplots(figsize=(7.6, height), layout="constrained")
        if isinstance(plot, LinePlot):
            _draw_lines(axes, plot)
        elif isinstance(plot, BarPlot):
            _draw_bars(axes, plot)
        axes.set_title(plot.title, loc="left", fontsize=10)
        axes.set_xlabel(plot.x_label)
        axes.set_ylabel(plot.y_label)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once for all formats
    for path in paths:
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, dpi=130, metadata=metadata)
    pyplot.close(figure)


def _draw_lines(axes: Any, plot: LinePlot) -> None:
    for index, curve in zip(plot.styles, plot.series, strict=True):
        again = max(0, index) // len(_COLOURS)
        x, y = [point.x for point in curve.points], [point.y for point in curve.points]
        whiskers = [
            [max(0.0, end) if end is not None else 0.0 for end in ends]
            for ends in (
                [None if p.low is None else p.y - p.low for p in curve.points],
                [None if p.high is None else p.high - p.y for p in curve.points],
            )
        ]
        style = {
            "color": "grey" if index < 0 else _COLOURS[index % len(_COLOURS)],
            "marker": "o" if index < 0 else _MARKERS[(index + again) % len(_MARKERS)],
            "linestyle": _LINES[again % len(_LINES)] if plot.joined else "none",
        }
        axes.errorbar(x, y, yerr=whiskers, label=curve.label, capsize=2, elinewidth=0.8, **style)
    if plot.x_log:
        axes.set_xscale("log")
    if plot.y_log:
        axes.set_yscale("log")
    if plot.band is not None:
        axes.axhline(plot.band.value, color="grey", linestyle="--", linewidth=1, label=plot.band_label)
        if plot.band.low is not None and plot.band.high is not None:
            axes.axhspan(plot.band.low, plot.band.high, color="grey", alpha=0.15, linewidth=0)
    if plot.front:
        axes.step([x for x, _ in plot.front], [y for _, y in plot.front], where="post", color="grey", label="front")
    if plot.y_range is not None:
        low, high = plot.y_range
        axes.set_ylim(low - 0.03 * (high - low), high + 0.03 * (high - low))
    axes.grid(alpha=0.3)


def _draw_bars(axes: Any, plot: BarPlot) -> None:
    shown = plot.bars[:_MOST_BARS]
    names = [bar.name for bar in shown]
    places = range(len(shown))
    left = [0.0] * len(shown)
    for index, part in enumerate(plot.parts):
        widths = [bar.parts.get(part, 0.0) for bar in shown]
        axes.barh(
            places,
            widths,
            left=left,
            label=part,
            color=_COLOURS[index],
            edgecolor="white",
            hatch=("", "//", "..")[index % 3],
        )
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_yticks(places, names, fontsize=8)
    axes.invert_yaxis()
    if len(shown) < len(plot.bars):
        axes.annotate(
            f"the first {len(shown)} of {len(plot.bars)}", (1, 1), xycoords="axes fraction", ha="right", va="bottom"
        )


def _draw_grids(pyplot: Any, plot: GridPlot) -> Any:
    shown = plot.grids[:_MOST_GRIDS]
    across = min(3, len(shown))
    down = -(-len(shown) // across)
    rows = max(len(grid.y) for grid in shown)
    figure, panels = pyplot.subplots(
        down, across, figsize=(3.4 * across + 1.2, (0.9 + min(3.4, 0.5 + 0.16 * rows)) * down + 0.5),
        layout="constrained", squeeze=False,
    )  # fmt: skip
    image = None
    for axes, grid in zip(panels.flat, shown, strict=False):
        cells = [[float("nan") if value is None else value for value in row] for row in grid.cells]
        image = axes.imshow(
            cells, vmin=plot.low, vmax=plot.high, cmap="cividis", aspect="auto", interpolation="nearest"
        )
        for axis, names in ((axes.xaxis, grid.x), (axes.yaxis, grid.y)):
            step = -(-len(names) // 9)
            axis.set_ticks(range(0, len(names), step), names[::step], fontsize=7)
        axes.set_title(grid.title, fontsize=8)
    for axes in panels.flat[len(shown) :]:
        axes.set_visible(False)
    figure.suptitle(
        plot.title + (f" (the first {len(shown)} of {len(plot.grids)})" if len(shown) < len(plot.grids) else "")
    )
    figure.supxlabel(plot.x_label, fontsize=9)
    figure.supylabel(plot.y_label, fontsize=9)
    figure.colorbar(image, ax=panels, label=plot.grids[0].value_name, shrink=0.8)
    return figure


def _pyplot() -> Any:
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError as error:
        raise missing_extra("matplotlib", "plot", "A figure") from error
    return pyplot
