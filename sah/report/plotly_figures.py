"""Figures of a report in Plotly's JSON, for trackers. Needs no package: they are plain data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from sah.report.curves import Curve
from sah.report.plots import COLOURS, BarPlot, GridPlot, LinePlot, Plot

_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "pentagon")
_GREY = "#707070"
_AXIS = {"gridcolor": "#dddddd", "linecolor": "#999999", "zerolinecolor": "#bbbbbb", "automargin": True}
_TEMPLATE = {"layout": {"plot_bgcolor": "white", "paper_bgcolor": "white", "xaxis": _AXIS, "yaxis": _AXIS}}
"""In place of Plotly's own templates, which take most of the time and of the file of a small figure."""


def plotly_figure(plot: Plot) -> dict[str, Any]:
    """Draw a figure.

    Args:
        plot: From `sah.report.plots`.

    Returns:
        `data` and `layout` (https://plotly.com/chart-studio-help/json-chart-schema/).
    """
    if isinstance(plot, LinePlot):
        return _lines(plot)
    if isinstance(plot, BarPlot):
        return _bars(plot)
    if isinstance(plot, GridPlot):
        return _grids(plot)
    raise TypeError(f"no Plotly form of {type(plot).__name__}")


def _layout(plot: Plot, **more: Any) -> dict[str, Any]:
    return {
        "title": {"text": plot.title},
        "xaxis": {"title": {"text": plot.x_label}},
        "yaxis": {"title": {"text": plot.y_label}},
        "template": _TEMPLATE,
        **more,
    }


def _lines(plot: LinePlot) -> dict[str, Any]:
    traces = [_curve(curve, style, plot.joined) for curve, style in zip(plot.series, plot.styles, strict=True)]
    if plot.front:
        step = {"shape": "hv", "color": _GREY, "dash": "dot"}
        x, y = ([corner[place] for corner in plot.front] for place in (0, 1))
        traces.append({"type": "scatter", "mode": "lines", "name": "Pareto front", "x": x, "y": y, "line": step})
    layout = _layout(plot)
    if plot.x_log:
        ticks = _ticks([point.x for curve in plot.series for point in curve.points])
        layout["xaxis"] |= {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
    if plot.y_log:
        layout["yaxis"]["type"] = "log"
    elif plot.y_range is not None:
        low, high = plot.y_range
        margin = 0.03 * (high - low)
        layout["yaxis"]["range"] = [low - margin, high + margin]
    if plot.band is not None:
        across = {"xref": "paper", "x0": 0, "x1": 1, "layer": "below"}
        line = {"color": _GREY, "dash": "dash", "width": 1}
        layout["shapes"] = [{**across, "type": "line", "y0": plot.band.value, "y1": plot.band.value, "line": line}]
        if plot.band.low is not None and plot.band.high is not None:
            ends = {"y0": plot.band.low, "y1": plot.band.high, "line": {"width": 0}}
            layout["shapes"].append({**across, "type": "rect", **ends, "fillcolor": _GREY, "opacity": 0.15})
        where = {"xref": "paper", "x": 1, "y": plot.band.value, "xanchor": "right", "yanchor": "bottom"}
        layout["annotations"] = [{**where, "text": plot.band_label, "showarrow": False}]
    return {"data": traces, "layout": layout}


def _ticks(values: Sequence[float]) -> list[float]:
    """Choose 1, 2 and 5 of each decade about positive values; Plotly's own logarithmic ticks are single digits."""
    if not values:
        return []
    low, high = (math.floor(math.log10(end)) for end in (min(values), max(values)))
    decades = range(low, high + 1)
    return [*(round(step * 10.0**decade, 12) for decade in decades for step in (1, 2, 5)), 10.0 ** (high + 1)]


def _curve(curve: Curve, style: int, joined: bool) -> dict[str, Any]:
    again = max(0, style) // len(COLOURS)
    colour = _GREY if style < 0 else COLOURS[style % len(COLOURS)]
    symbol = "star" if style < 0 else _SYMBOLS[(style + again) % len(_SYMBOLS)]
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines+markers" if joined else "markers",
        "name": curve.label,
        "x": [point.x for point in curve.points],
        "y": [point.y for point in curve.points],
        "text": [point.name for point in curve.points],
        "line": {"color": colour, "dash": ("solid", "dash", "dot")[again % 3]},
        "marker": {"symbol": symbol, "color": colour},
    }
    if any(point.low is not None and point.high is not None for point in curve.points):
        up = [0.0 if point.high is None else point.high - point.y for point in curve.points]
        down = [0.0 if point.low is None else point.y - point.low for point in curve.points]
        trace["error_y"] = {"type": "data", "symmetric": False, "array": up, "arrayminus": down}
    return trace


def _bars(plot: BarPlot) -> dict[str, Any]:
    names = [bar.name for bar in plot.bars]
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "name": part,
            "y": names,
            "x": [bar.parts.get(part) for bar in plot.bars],
            "marker": {"color": COLOURS[index % len(COLOURS)]},
        }
        for index, part in enumerate(plot.parts)
    ]
    layout = _layout(plot, barmode="stack")
    layout["yaxis"] |= {"autorange": "reversed", "automargin": True}
    return {"data": traces, "layout": layout}


def _grids(plot: GridPlot) -> dict[str, Any]:
    """Draw one heatmap; of several a menu chooses which."""
    traces = [
        {
            "type": "heatmap",
            "name": grid.title,
            "x": list(grid.x),
            "y": list(grid.y),
            "z": [list(row) for row in grid.cells],
            "zmin": plot.low,
            "zmax": plot.high,
            "colorscale": "Viridis",
            "reversescale": not plot.more_is_better,
            "colorbar": {"title": {"text": grid.value_name, "side": "right"}},
            "visible": place == 0,
        }
        for place, grid in enumerate(plot.grids)
    ]
    layout = _layout(plot)
    layout["xaxis"]["type"] = layout["yaxis"]["type"] = "category"
    layout["title"]["text"] = f"{plot.title}: {plot.grids[0].title}"
    if len(traces) > 1:
        buttons = []
        for place, grid in enumerate(plot.grids):
            shown = [place == other for other in range(len(traces))]
            change = [{"visible": shown}, {"title.text": f"{plot.title}: {grid.title}"}]
            buttons.append({"method": "update", "label": grid.title, "args": change})
        layout["updatemenus"] = [{"buttons": buttons, "x": 1, "xanchor": "right", "y": 1.15, "yanchor": "top"}]
    return {"data": traces, "layout": layout}
