"""What trackers show of finished work: tables, figures and numbers as plain data."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sah.metrics.verdict import BETTER, TIED
from sah.report import curves
from sah.report.load import Pair, ReportData, ReportPoint
from sah.report.page_data import sections
from sah.report.page_table import COLUMNS
from sah.report.plotly_figures import plotly_figure
from sah.report.plots import GridPlot, Plot, head_plots
from sah.report.verdict_lines import DENSE, headline, verdict_text, verdict_word

Table = tuple[list[str], list[list[Any]]]
"""Names of the columns, and rows."""

AXIS = "density_measured"
"""What charts draw a point's other numbers over."""

PREDICTIONS = "predictions"
POINTS = "points"

_MOST_GRIDS = 24
"""Heatmaps that one figure of a sweep offers; each point's own run has its own."""


def point_metrics(point: ReportPoint) -> dict[str, float]:
    """Read a point's numbers that compare between points of one model and data set.

    Args:
        point: The point.

    Returns:
        Name to number; what was not measured is absent. `score` is that of the point's own setting, and dense attention
        has the density 1.
    """
    summary = point.summary
    found: dict[str, float | None] = {
        "score": summary.dense if point.is_dense else summary.sparse,
        AXIS: 1.0 if point.is_dense else summary.density_measured,
        "density_requested": summary.density_requested,
        "decode_kv_bytes": summary.decode_kv_bytes,
        "held_kv_bytes": summary.held_kv_bytes,
        "output_error": summary.output_error,
        "decode_speed_up": summary.decode_speed_up,
        "perplexity": curves.perplexity(point)[0],
    }
    if summary.prefill:
        found["prefill_density"] = summary.prefill_density
        found["prefill_seconds"] = summary.prefill_seconds
        found["dense_prefill_seconds"] = summary.dense_prefill_seconds
        found["prefill_speed_up"] = summary.prefill_speed_up
    if not point.is_dense:
        found["dense"] = summary.dense
        found |= dict(zip(("difference", "difference_low", "difference_high"), curves.difference(point), strict=True))
        for name in ("kl", "top1_agreement", "log_likelihood_difference"):
            found[name] = curves.fidelity(point, name)[0]
    return {name: number for name, value in found.items() if (number := curves.number(value)) is not None}


def point_summary(point: ReportPoint) -> dict[str, Any]:
    """Read all figures of a point, and what they say in words.

    Args:
        point: The point.

    Returns:
        JSON data; `detail` is its `metrics.json` without the figures of single heads, which heatmaps show.
    """
    words = {"verdict": verdict_word(point), "verdict_text": verdict_text(point)}
    detail = dict(point.metrics)
    if isinstance(sparse := detail.get("sparse"), Mapping):
        detail["sparse"] = {name: part for name, part in sparse.items() if name != "attention_by_head"}
    figures = {name: part for name, part in asdict(point.summary).items() if name != "spread"}
    return {**figures, **words, **point_metrics(point), "detail": detail}


def predictions_table(point: ReportPoint) -> Table:
    """Lay out a point's answers, dense and sparse side by side.

    Args:
        point: The point.

    Returns:
        One row a question. The columns are the same for all points, so that tables of several runs join.
    """
    arms = ("dense", "sparse")
    columns = ["setting", "example", "question", "metadata", "reference"]
    columns += [f"{arm} {what}" for what in ("answer", "score", "status") for arm in arms]
    return [*columns, "sparse density"], [_answers(point.name, pair) for pair in point.pairs()]


def _answers(name: str, pair: Pair) -> list[Any]:
    row, both = pair.row, (pair.dense, pair.sparse)
    cells: list[Any] = [name, row.example_key, row.question_index, json.dumps(dict(row.metadata))]
    cells.append(" | ".join(row.answers))
    cells += [None if arm is None else arm.prediction for arm in both]
    cells += [next(iter(scores.values()), None) for scores in (pair.dense_scores, pair.sparse_scores)]
    cells += [None if arm is None else arm.status for arm in both]
    return [*cells, None if pair.sparse is None else pair.sparse.density_measured]


def points_table(data: ReportData) -> Table:
    """Lay out all figures of all points.

    Args:
        data: Finished work.

    Returns:
        One row a point; a figure that has an interval is followed by its ends.
    """
    columns = ["model and data", "setting", "verdict"]
    for column in COLUMNS:
        columns += [column.key] if column.low is None else [column.key, f"{column.key}_low", f"{column.key}_high"]
    columns += ["verdict in words", "point", "command"]
    rows = []
    for title, points in data.groups().items():
        for point in points:
            cells: list[Any] = [title, point.name, verdict_word(point)]
            for column in COLUMNS:
                ends = (read for read in (column.low, column.high) if read is not None)
                cells += [column.read(point), *(read(point) for read in ends)]
            rows.append([*cells, verdict_text(point), point.id, point.command])
    return columns, rows


def point_figures(point: ReportPoint) -> dict[str, dict[str, Any]]:
    """Draw what belongs to one point: its heatmaps of layers and heads.

    Args:
        point: The point.

    Returns:
        Name to Plotly's JSON.
    """
    return {plot.slug: plotly_figure(plot) for plot in head_plots([point])}


def sweep_figures(data: ReportData) -> dict[str, dict[str, Any]]:
    """Draw what compares points.

    Args:
        data: Finished work.

    Returns:
        Name to Plotly's JSON. With points of several models or data sets, `g1/density` and the like.
    """
    parts = sections(data)
    plots: dict[str, Plot] = {}
    for part in parts:
        for plot in (*part.plots, *part.head_plots):
            if isinstance(plot, GridPlot):
                plot = dataclasses.replace(plot, grids=plot.grids[:_MOST_GRIDS])
            name = plot.slug
            if len(parts) > 1:
                name = f"{part.slug}/{plot.slug}"
                plot = dataclasses.replace(plot, title=f"{plot.title}<br><sub>{part.title}</sub>")
            plots[name] = plot
    return {name: plotly_figure(plot) for name, plot in plots.items()}


def sweep_summary(data: ReportData) -> dict[str, Any]:
    """Sum a sweep up.

    Args:
        data: Its finished work.

    Returns:
        JSON data: how many points there are and how many failed, how often each verdict was given, and for each group
        of points that compare a sentence and the sparsest setting that is not worse than dense.
    """
    groups = [{"title": title, **_group_summary(points)} for title, points in data.groups().items()]
    words = [verdict_word(point) for point in data.points]
    verdicts = Counter(word.replace(" ", "_") for word in words if word != DENSE)
    return {
        "finished": len(data.points),
        "failed": len(data.failures),
        "unreadable": len(data.problems),
        "verdicts": dict(verdicts),
        "groups": groups,
    }


def _group_summary(points: Sequence[ReportPoint]) -> Mapping[str, Any]:
    held = []
    for point in points:
        density = curves.number(point.summary.density_measured)
        if verdict_word(point) in (TIED, BETTER) and density is not None:
            held.append((density, point.name))
    sparsest = min(held, default=None)
    return {
        "verdict": headline(points),
        "points": len(points),
        "sparsest_not_worse": None if sparsest is None else {"density_measured": sparsest[0], "setting": sparsest[1]},
    }
