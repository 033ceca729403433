"""Picture files of a report's figures, drawn by matplotlib: the extra `plot`."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from sah.errors import missing_extra
from sah.report.plots import COLOURS, BarPlot, GridPlot, LinePlot, Plot

FORMATS = ("png", "svg")

_MARKERS = "osD^vPX"
_LINES = ("-", ":", "-.")
"""When the colours are used up they come again, with the next kind of line and other markers."""

_MOST_BARS = 40
_MOST_GRIDS = 12
"""More are left out of a picture, which says so; the CSV file has all."""

_MOST_NAMES = 20
_NAME_LETTERS = 44
"""Longer names are cut."""

_DPI = 120
_HATCHES = ("", "//", "..")


def drawing() -> AbstractContextManager[Any]:
    """Make ready for `draw_plot`: text stays text in SVG files, and the same figure gives the same file.

    Raises:
        ConfigError: If matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise missing_extra("matplotlib", "plot", "Writing them") from error
    context: AbstractContextManager[Any] = matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "sah"})
    return context


def draw_plot(plot: Plot, stem: Path) -> None:
    """Draw a figure of a report, inside of `drawing()`.

    Args:
        plot: The figure.
        stem: Path of the files to write, without the ending.
    """
    # Without pyplot, which keeps figures for a window; and laid out once, since that takes most of the time.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure: Any = Figure(layout="constrained", dpi=_DPI)
    png: Any = FigureCanvasAgg(figure)
    if isinstance(plot, GridPlot):
        _draw_grids(figure, plot)
    else:
        bars = min(len(plot.bars), _MOST_BARS) if isinstance(plot, BarPlot) else 0
        figure.set_size_inches(8.6, 1.4 + 0.28 * bars if bars else 4.2)
        axes = figure.add_subplot()
        if isinstance(plot, LinePlot):
            _draw_lines(axes, plot)
        elif isinstance(plot, BarPlot):
            _draw_bars(axes, plot)
        axes.set_title(plot.title, loc="left", fontsize=10)
        axes.set_xlabel(plot.x_label)
        axes.set_ylabel(plot.y_label)
        handles, names = axes.get_legend_handles_labels()
        place = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
        rest = f"and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else None
        shown = [_cut(name) for name in names[:_MOST_NAMES]]
        axes.legend(handles[:_MOST_NAMES], shown, title=rest, frameon=False, fontsize=8, title_fontsize=8, **place)
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
    figure.set_layout_engine("none")
    png.print_png(stem.with_suffix(".png"))
    svg: Any = FigureCanvasSVG(figure)
    svg.print_svg(stem.with_suffix(".svg"), metadata={"Date": None})


_LEAST_FACTOR = 3.24
"""Of the greatest and the least value that a logarithmic axis shows."""


def _cut(name: str) -> str:
    return name if len(name) <= _NAME_LETTERS else f"{name[: _NAME_LETTERS - 1]}…"


def _draw_lines(axes: Any, plot: LinePlot) -> None:
    for index, curve in zip(plot.styles, plot.series, strict=True):
        again = max(0, index) // len(COLOURS)
        down = [0.0 if point.low is None else max(0.0, point.y - point.low) for point in curve.points]
        up = [0.0 if point.high is None else max(0.0, point.high - point.y) for point in curve.points]
        axes.errorbar(
            [point.x for point in curve.points],
            [point.y for point in curve.points],
            yerr=[down, up] if any(down) or any(up) else None,
            label=curve.label,
            capsize=2,
            elinewidth=0.8,
            color="grey" if index < 0 else COLOURS[index % len(COLOURS)],
            marker="o" if index < 0 else _MARKERS[(index + again) % len(_MARKERS)],
            linestyle=_LINES[again % len(_LINES)] if plot.joined else "none",
        )
    if plot.x_log:
        _logarithmic(axes.set_xscale, axes.xaxis)
    if plot.y_log:
        _logarithmic(axes.set_yscale, axes.yaxis)
    if plot.band is not None:
        axes.axhline(plot.band.value, color="grey", linestyle="--", linewidth=1, label=plot.band_label)
        if plot.band.low is not None and plot.band.high is not None:
            axes.axhspan(plot.band.low, plot.band.high, color="grey", alpha=0.15, linewidth=0)
    if plot.front:
        axes.step([x for x, _ in plot.front], [y for _, y in plot.front], where="post", color="grey", label="front")
    if plot.y_range is not None:
        room = 0.04 * (plot.y_range[1] - plot.y_range[0])
        axes.set_ylim(plot.y_range[0] - room, plot.y_range[1] + room)
    axes.grid(alpha=0.3)


def _logarithmic(set_scale: Any, axis: Any) -> None:
    """Plain numbers at one, two and five of each decade; powers of ten would be typeset, slowly."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    set_scale("log")
    low, high = sorted(axis.get_view_interval())
    if low > 0 and high / low < _LEAST_FACTOR:
        # Values that nearly coincide must not be spread over the whole width, nor stand without a tick.
        middle, room = math.sqrt(low * high), math.sqrt(_LEAST_FACTOR)
        low, high = middle / room, middle * room
        (axis.axes.set_xlim if axis.axis_name == "x" else axis.axes.set_ylim)(low, high)
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if low > 0 and high / low < 300 else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _draw_bars(axes: Any, plot: BarPlot) -> None:
    shown = plot.bars[:_MOST_BARS]
    left = [0.0] * len(shown)
    for index, part in enumerate(plot.parts):
        widths = [bar.parts.get(part, 0.0) for bar in shown]
        colour, hatch = COLOURS[index % len(COLOURS)], _HATCHES[index % len(_HATCHES)]
        axes.barh(range(len(shown)), widths, left=left, label=part, color=colour, edgecolor="white", hatch=hatch)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(shown)), [_cut(bar.name) for bar in shown], fontsize=8)
    axes.invert_yaxis()
    if len(shown) < len(plot.bars):
        said = f"the first {len(shown)} of {len(plot.bars)}"
        axes.annotate(said, (1, 1), xycoords="axes fraction", ha="right", va="bottom", fontsize=8)


def _draw_grids(figure: Any, plot: GridPlot) -> None:
    shown = plot.grids[:_MOST_GRIDS]
    across = min(3, len(shown))
    down = -(-len(shown) // across)
    rows = max(len(grid.y) for grid in shown)
    figure.set_size_inches(3.4 * across + 1.2, (0.9 + min(3.4, 0.5 + 0.16 * rows)) * down + 0.6)
    panels = []
    for place, grid in enumerate(shown):
        axes = figure.add_subplot(down, across, place + 1)
        cells = [[float("nan") if value is None else value for value in row] for row in grid.cells]
        axes.imshow(cells, vmin=plot.low, vmax=plot.high, cmap="cividis", aspect="auto", interpolation="nearest")
        for axis, names in ((axes.xaxis, grid.x), (axes.yaxis, grid.y)):
            step = -(-len(names) // 6)
            axis.set_ticks(range(0, len(names), step), names[::step], fontsize=7)
        axes.set_title(_cut(grid.title), fontsize=8)
        panels.append(axes)
    rest = f" (the first {len(shown)} of {len(plot.grids)})" if len(shown) < len(plot.grids) else ""
    figure.suptitle(plot.title + rest, fontsize=10)
    figure.supxlabel(plot.x_label, fontsize=9)
    figure.supylabel(plot.y_label, fontsize=9)
    figure.colorbar(panels[0].images[0], ax=panels, label=plot.grids[0].value_name, shrink=0.8)
