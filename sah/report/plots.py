"""What each figure of a report shows: the page, the picture files and the CSV files are all made of these."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from sah.report import curves
from sah.report.curves import Band, Curve, CurvePoint, Interval, main_metric
from sah.report.grids import HEAD_KINDS, Grid, layer_head
from sah.report.load import ReportPoint

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, which colour-blind readers can tell apart (https://jfly.uni-koeln.de/color/)."""

DENSITY_AXIS = "measured density (share of allowed keys read)"
PREFILL_AXIS = "measured density of the prefill (share of allowed keys read)"
BYTES_AXIS = "KV bytes read a decoded token"
_TIME_AXES = {
    "answer": ("Time of an answer", "milliseconds an answer, decoded one by one"),
    "shared": ("Time of attention in an answer", "milliseconds of attention an answer, its share of a batch"),
    "token": ("Time of a decoded token", "milliseconds a token, timed alone"),
}


@dataclass(frozen=True)
class Plot:
    """A figure with its words."""

    slug: str
    """Names its files."""
    title: str
    caption: str
    """How to read it."""
    x_label: str
    y_label: str


@dataclass(frozen=True)
class LinePlot(Plot):
    """Curves or dots over a number."""

    series: tuple[Curve, ...]
    styles: tuple[int, ...]
    """Of each series: the same for a method in all figures of its group; -1 is the dense baseline."""
    x_log: bool = True
    y_log: bool = False
    y_range: tuple[float, float] | None = None
    """Shown at least."""
    joined: bool = True
    """Whether lines join the dots of a series."""
    band: Band | None = None
    """A horizontal line with its interval."""
    band_label: str = "dense"
    front: tuple[tuple[float, float], ...] = ()
    """Corners of a Pareto front, by rising x."""


@dataclass(frozen=True)
class BarPlot(Plot):
    """Stacked horizontal bars."""

    parts: tuple[str, ...]
    """In the order of stacking."""
    bars: tuple[curves.TimeBar, ...]


@dataclass(frozen=True)
class GridPlot(Plot):
    """Heatmaps on one scale of colours."""

    grids: tuple[Grid, ...]
    low: float
    high: float
    more_is_better: bool = True
    """Whether a large value is a good one, as a score is and an error is not."""


def group_plots(points: Sequence[ReportPoint]) -> list[Plot]:
    """Make the figures of points that compare.

    Args:
        points: Of one group.

    Returns:
        What can be drawn of what was measured.
    """
    metric = main_metric(points)
    band = curves.dense_band(points)
    unit = (0.0, 1.0) if metric != curves.LOG_LIKELIHOOD else None
    no_change = Band(0.0, None, None)
    text = "dense's own answers" if metric != curves.LOG_LIKELIHOOD else "the text of the data set"
    score = score_axis(metric)
    whisker = "Whiskers and the band are 95 % intervals, where they were computed."
    found: list[Plot | None] = [
        _curve(
            points, "density", "Score over density", score, None, band=band, y_range=unit,
            caption=f"One line a method; the dashed line is dense attention on the same examples. {whisker}",
        ),
        _curve(
            points, "difference", "Difference to dense over density", f"sparse minus dense ({unit_of(metric)})",
            curves.difference, band=no_change,
            caption=f"Mean paired difference on the same questions; below zero is a loss. {whisker}",
        ),
        _pareto(points, "density"),
        _pareto(points, "bytes"),
        _curve(
            points, "output-error", "Output error of attention", "relative output error (norm over norm)",
            curves.output_error, y_log=True,
            caption="Norm of the difference to dense attention on the same inputs over the norm of the dense output.",
        ),
        _curve(
            points, "kl", "Divergence from dense", "KL divergence (nats a token)",
            partial(curves.fidelity, name="kl"), band=no_change,
            caption=f"Next-token distributions along {text}, teacher-forced. {whisker}",
        ),
        _curve(
            points, "top1", "Agreement with dense", "top-1 agreement (share of tokens)",
            partial(curves.fidelity, name="top1_agreement"), y_range=(0.0, 1.0),
            caption=f"How often the likeliest next token is dense's, along {text}. {whisker}",
        ),
        _curve(
            points, "perplexity", "Perplexity over density", "perplexity", curves.perplexity,
            band=curves.dense_perplexity(points), caption=f"Of the text's own tokens; lower is better. {whisker}",
        ),
    ]  # fmt: skip
    return [plot for plot in found if plot is not None] + _prefills(points) + _times(points)


def unit_of(metric: str) -> str:
    """Name a metric with its unit, where it is no share."""
    return "log-likelihood, nats a token" if metric == curves.LOG_LIKELIHOOD else metric


def score_axis(metric: str) -> str:
    """Name the axis of scores."""
    return f"score ({unit_of(metric)})"


def head_plots(points: Sequence[ReportPoint]) -> list[GridPlot]:
    """Make the heatmaps of layers and heads.

    Args:
        points: Of one group, or one point.

    Returns:
        One plot for each thing that was measured, a heatmap a point.
    """
    plots = []
    for kind, name in HEAD_KINDS.items():
        grids = [grid for point in points if (grid := layer_head(point, kind)) is not None]
        if grids:
            title = f"{name[0].upper()}{name[1:]} by layer and head"
            caption = "Each cell is one query head, mean over the sampled queries; blank where none was sampled."
            plots.append(grid_plot(f"heads-{kind.replace('_', '-')}", title, caption, grids, kind == "mass_recalled"))
    return plots


def grid_plot(slug: str, title: str, caption: str, grids: Sequence[Grid], more_is_better: bool = True) -> GridPlot:
    """Put heatmaps on one scale.

    Args:
        slug: See `Plot`.
        title: See `Plot`.
        caption: See `Plot`.
        grids: At least one.
        more_is_better: Whether large values are good ones; then the scale ends at one, as that of a score, else at the
            largest value.

    Returns:
        The figure.
    """
    values = [value for grid in grids for row in grid.cells for value in row if value is not None]
    low, high = min([0.0, *values]), max([*values, *([1.0] if more_is_better else [])], default=1.0)
    names = grids[0].x_name, grids[0].y_name
    return GridPlot(slug, title, caption, *names, tuple(grids), low, high or 1.0, more_is_better)


def _curve(
    points: Sequence[ReportPoint],
    slug: str,
    title: str,
    y_label: str,
    value: Callable[[ReportPoint], Interval] | None,
    *,
    caption: str,
    band: Band | None = None,
    y_log: bool = False,
    y_range: tuple[float, float] | None = None,
) -> LinePlot | None:
    series = curves.density_curves(points, value)
    if y_log:
        series = [Curve(line.label, kept) for line in series if (kept := tuple(p for p in line.points if p.y > 0))]
    if not series:
        return None
    if y_range is not None and any(not y_range[0] <= p.y <= y_range[1] for line in series for p in line.points):
        y_range = None
    name = "no difference" if slug in ("difference", "kl") else "dense"
    return LinePlot(
        slug,
        title,
        caption,
        DENSITY_AXIS,
        y_label,
        tuple(series),
        _styles(points, series),
        True,
        y_log,
        y_range,
        band=band,
        band_label=name,
    )


def _pareto(points: Sequence[ReportPoint], cost: str) -> LinePlot | None:
    found = curves.pareto(points, "density" if cost == "density" else "bytes")
    if not any(point.label != "dense" for point in found):
        return None
    series: dict[str, list[CurvePoint]] = {}
    for point in found:
        place = -1 if point.place is None else point.place
        series.setdefault(point.label, []).append(CurvePoint(point.x, point.y, None, None, point.name, place))
    ordered = sorted({(point.x, point.y) for point in found if point.on_front})
    lines = [Curve(label, tuple(line)) for label, line in series.items()]
    return LinePlot(
        slug=f"pareto-{cost}",
        title="Pareto front: score against " + ("density" if cost == "density" else "bytes read"),
        caption="Towards the upper left is better. The step line joins the points that no other one beats in both.",
        x_label=DENSITY_AXIS if cost == "density" else BYTES_AXIS,
        y_label=score_axis(main_metric(points)),
        series=tuple(lines),
        styles=_styles(points, lines),
        joined=False,
        front=tuple(ordered),
    )


def _prefills(points: Sequence[ReportPoint]) -> list[Plot]:
    """Draw what sparse prefills cost and save; nothing where all prefills were dense."""
    plots: list[Plot] = []
    metric = main_metric(points)
    if series := curves.prefill_curves(points):
        plots.append(
            LinePlot(
                "prefill-density",
                "Score over density of the prefill",
                "One line a setting and pattern; the dashed line is dense attention, prefill included, on the same "
                "examples. Whiskers and the band are 95 % intervals, where they were computed.",
                PREFILL_AXIS,
                score_axis(metric),
                tuple(series),
                tuple(range(len(series))),
                band=curves.dense_band(points),
            )
        )
    if bars := curves.prefill_bars(points):
        caption = "Mean wall time of the contexts' prefills, the estimate of what to read included."
        plots.append(
            BarPlot("time-prefill", "Time of a prefill", caption, "milliseconds", "", ("prefill",), _told(bars))
        )
    return plots


def _told(bars: Sequence[curves.TimeBar]) -> tuple[curves.TimeBar, ...]:
    """Mark bars of another run in their names."""
    return tuple(bar if bar.same_run else dataclasses.replace(bar, name=f"{bar.name} (another run)") for bar in bars)


def _styles(points: Sequence[ReportPoint], series: Sequence[Curve]) -> tuple[int, ...]:
    labels = [label for point, label in zip(points, curves.method_labels(points), strict=True) if not point.is_dense]
    order = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    return tuple(order.get(line.label, -1) for line in series)


def _times(points: Sequence[ReportPoint]) -> list[Plot]:
    plots: list[Plot] = []
    prefill = curves.prefill_seconds(points)
    for split in curves.time_split(points):
        if not any(bar.place is not None for bar in split.bars):
            continue
        title, axis = _TIME_AXES[split.kind]
        parts = tuple(dict.fromkeys(name for bar in split.bars for name in bar.parts))
        caption = "Parts add up to the bar."
        if split.kind == "shared":
            caption = "Answers were decoded together, so only their share of attention and of choosing keys is known."
        if split.kind == "answer" and prefill is not None:
            whose = "Dense prefill" if any(point.summary.prefill for point in points) else "Prefill, which all share,"
            caption += f" {whose} takes {prefill[0]:.2f} s a context (mean of {prefill[1]})."
        bars = _told(split.bars)
        if not all(bar.same_run for bar in bars):
            caption += " Bars of another run must not be compared with the dense one."
        plots.append(BarPlot(f"time-{split.kind}", title, caption, axis, "", parts, bars))
    return plots
