"""Picture files of a report's figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.figure
import pytest
from matplotlib.axes import Axes

from sah.report import pictures
from sah.report.curves import Curve, CurvePoint
from sah.report.pictures import FORMATS, draw_plot, drawing
from sah.report.plots import LinePlot


def test_many_methods_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    errorbar = Axes.errorbar

    def keep(self: Axes, *places: Any, **looks: Any) -> Any:
        drawn.append((looks["color"], looks["marker"], looks["linestyle"]))
        return errorbar(self, *places, **looks)

    monkeypatch.setattr(Axes, "errorbar", keep)
    series = tuple(
        Curve(f"method {number}", (CurvePoint(0.1, number / 20, None, None, "name", 0),)) for number in range(20)
    )
    with drawing():
        draw_plot(LinePlot("density", "title", "", "x", "y", series, tuple(range(20))), tmp_path / "curve")
    assert {path.suffix[1:] for path in tmp_path.iterdir()} == set(FORMATS)
    assert len(drawn) == len(set(drawn)) == 20
    assert len({(colour, line) for colour, _, line in drawn}) == 20


def test_values_that_nearly_coincide_stay_together_on_a_logarithmic_axis() -> None:
    axes = matplotlib.figure.Figure().add_subplot()
    axes.plot([0.0999, 0.1001], [1, 2])
    pictures._logarithmic(axes.set_xscale, axes.xaxis)
    low, high = axes.get_xlim()
    assert high / low == pytest.approx(pictures._LEAST_FACTOR)
    assert any(low < tick < high for tick in axes.get_xticks())
