"""Figures in Plotly's JSON: what they show, and that Plotly takes them."""

from __future__ import annotations

from typing import Any

import pytest

from sah.report.curves import Band, Curve, CurvePoint, TimeBar
from sah.report.grids import Grid
from sah.report.plotly_figures import plotly_figure
from sah.report.plots import BarPlot, GridPlot, LinePlot, Plot

WORDS = {"slug": "s", "title": "Title", "caption": "c", "x_label": "density", "y_label": "score"}


def taken(plot: Plot) -> dict[str, Any]:
    """Draw it, and let Plotly check every name and value."""
    figure = plotly_figure(plot)
    pytest.importorskip("plotly").graph_objects.Figure(figure)
    return figure


def curve(label: str, *points: tuple[float, float, float | None, float | None]) -> Curve:
    return Curve(label, tuple(CurvePoint(*point, name=f"{label} {point[0]}", place=0) for point in points))


def test_a_curve_has_its_intervals_and_the_dense_band() -> None:
    lines = (curve("topk", (0.1, 0.5, 0.25, 1.0), (0.3, 0.75, None, None)), curve("random", (0.1, 0.0, None, None)))
    figure = taken(LinePlot(**WORDS, series=lines, styles=(0, 1), y_range=(0.0, 1.0), band=Band(0.9, 0.8, 1.0)))
    topk, random = figure["data"]
    assert (topk["name"], topk["x"], topk["y"]) == ("topk", [0.1, 0.3], [0.5, 0.75])
    assert (topk["error_y"]["array"], topk["error_y"]["arrayminus"]) == ([0.5, 0.0], [0.25, 0.0])
    assert "error_y" not in random and random["line"]["color"] != topk["line"]["color"]
    layout = figure["layout"]
    assert (layout["xaxis"]["title"]["text"], layout["yaxis"]["title"]["text"]) == ("density", "score")
    assert layout["xaxis"]["type"] == "log" and layout["xaxis"]["ticktext"] == ["0.1", "0.2", "0.5", "1"]
    assert layout["yaxis"]["range"] == [-0.03, 1.03]
    line, band = layout["shapes"]
    assert (line["y0"], line["y1"], band["y0"], band["y1"]) == (0.9, 0.9, 0.8, 1.0)


def test_a_scatter_shows_the_front() -> None:
    dots = (curve("topk", (0.1, 0.5, None, None)), curve("dense", (1.0, 1.0, None, None)))
    figure = taken(LinePlot(**WORDS, series=dots, styles=(0, -1), joined=False, front=((0.1, 0.5), (1.0, 1.0))))
    assert [trace["mode"] for trace in figure["data"]] == ["markers", "markers", "lines"]
    assert figure["data"][0]["marker"]["color"] != figure["data"][1]["marker"]["color"] == "#707070"
    assert (figure["data"][2]["x"], figure["data"][2]["line"]["shape"]) == ([0.1, 1.0], "hv")


def test_bars_are_stacked_and_keep_what_was_not_measured_empty() -> None:
    bars = (TimeBar("dense", None, {"attention": 2.0}), TimeBar("topk", 0, {"attention": 1.0, "selection": 0.5}))
    figure = taken(BarPlot(**WORDS, parts=("attention", "selection"), bars=bars))
    assert [(trace["name"], trace["x"]) for trace in figure["data"]] == [
        ("attention", [2.0, 1.0]),
        ("selection", [None, 0.5]),
    ]
    assert figure["layout"]["barmode"] == "stack"


def test_of_several_heatmaps_a_menu_shows_one() -> None:
    grids = tuple(
        Grid(name, "head", ("0", "1"), "layer", ("3",), "error", ((0.25, None),)) for name in ("topk 0.1", "random 0.1")
    )
    figure = taken(GridPlot(**WORDS, grids=grids, low=0.0, high=1.0, more_is_better=False))
    assert [trace["visible"] for trace in figure["data"]] == [True, False]
    assert figure["data"][0]["z"] == [[0.25, None]] and figure["data"][0]["reversescale"]
    second = figure["layout"]["updatemenus"][0]["buttons"][1]
    assert second["label"] == "random 0.1" and second["args"][0] == {"visible": [False, True]}
    alone = taken(GridPlot(**WORDS, grids=grids[:1], low=0.0, high=1.0))
    assert "updatemenus" not in alone["layout"] and alone["layout"]["title"]["text"] == "Title: topk 0.1"
