"""A report as a sequence of blocks, for places with blocks of their own: W&B, or one HTML file.

It tells verdicts in words, density curves with their intervals, Pareto scatter, scores by task, layers and heads,
answers, what sets the runs apart, and the commands.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sah.metrics.interval import mean_interval
from sah.metrics.scorers import score_bounds
from sah.report import curves
from sah.report.load import ReportData, ReportPoint
from sah.report.tracked import PREDICTIONS, sweep_figures
from sah.report.tracked import points_table as tracked_points
from sah.report.verdict_lines import DENSE, headline, judged, verdict_text
from sah.results.store import flat

_MOST_COMPARED = 12
_MOST_COMMANDS = 50
_HEADS = "heads-"


@dataclass(frozen=True)
class Heading:
    """Begins a part."""

    text: str


@dataclass(frozen=True)
class Words:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Items:
    """A list of sentences."""

    texts: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A table of short cells."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Figures:
    """Figures that the sweep's run holds; `of_points` are those that each point's run holds."""

    names: tuple[str, ...]
    of_points: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scatter:
    """Points over two of their numbers, where the place has charts of its own."""

    title: str
    x: str
    y: str
    log_x: bool = False


@dataclass(frozen=True)
class RunTable:
    """A table that runs hold, where the place can show it; `table` stands for it elsewhere."""

    name: str
    of_points: bool
    table: Table | None = None


@dataclass(frozen=True)
class Comparer:
    """What sets runs apart; `table` says it where the place has no such view."""

    table: Table


@dataclass(frozen=True)
class Commands:
    """Lines for a shell."""

    lines: tuple[str, ...]


Block = Heading | Words | Items | Table | Figures | Scatter | RunTable | Comparer | Commands


@dataclass(frozen=True)
class Story:
    """A whole report."""

    title: str
    description: str
    blocks: tuple[Block, ...]
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Plotly's JSON of the figures that blocks name."""


def make_story(data: ReportData) -> Story:
    """Make a report of finished work.

    Args:
        data: The work.

    Returns:
        Its blocks; parts of which nothing was measured are left out.
    """
    data = judged(data)
    groups = data.groups()
    figures = sweep_figures(data)
    curve_names = [name for name in figures if _is(name, "density", "difference", "kl", "top1", "perplexity")]
    fronts = [name for name in figures if _is(name, "pareto-density", "pareto-bytes")]
    heads = [name for name in figures if _HEADS in name]
    rest = [name for name in figures if name not in (*curve_names, *fronts, *heads)]
    blocks: list[Block] = [Heading("Verdicts")]
    for title, points in groups.items():
        blocks.append(Words(f"{title}: {headline(points)}"))
        blocks.append(Items(tuple(map(verdict_text, points))))
    if data.failures or data.problems:
        failed = [f"Failed: {overrides}: {error}" for overrides, error in data.failures]
        blocks += [Heading("What is missing"), Items((*failed, *data.problems))]
    if curve_names:
        blocks += [Heading("Density curves"), Words("Whiskers and bands are 95 % intervals, where they were computed.")]
        blocks.append(Figures(tuple(curve_names)))
    if fronts:
        blocks += [
            Heading("What a score costs"),
            Scatter("Score against measured density", "density_measured", "score", log_x=True),
            Scatter("Score against KV bytes read a decoded token", "decode_kv_bytes", "score", log_x=True),
            Figures(tuple(fronts)),
        ]
    told = "Means with their 95 % intervals, clustered by context, on all questions that each setting answered."
    blocks += [Heading("Scores by task"), Words(told), _task_table(data), RunTable("points", False, _points(data))]
    if heads:
        slugs = tuple(dict.fromkeys(name.rpartition("/")[2] for name in heads))
        blocks += [Heading("Layers and heads"), Figures(tuple(heads), slugs)]
    if rest:
        blocks += [Heading("Further figures"), Figures(tuple(rest))]
    blocks += [Heading("Answers, dense and sparse side by side"), RunTable(PREDICTIONS, True)]
    blocks += [Heading("What sets the runs apart"), Comparer(_differences(data.points))]
    commands = list(dict.fromkeys(point.command for point in data.points))
    blocks += [Heading("Commands"), Commands(tuple(commands[:_MOST_COMMANDS]))]
    if len(commands) > _MOST_COMMANDS:
        blocks.append(Words(f"{len(commands) - _MOST_COMMANDS} more are in the table of points."))
    title = "; ".join(groups) or "no finished point"
    return Story(
        title=_short(f"Sparse attention of {title}", 120),
        description=f"{len(data.points)} points, {len(data.failures)} failed. Every point against dense attention on "
        "the same examples.",
        blocks=tuple(blocks),
        figures=figures,
    )


def _is(name: str, *slugs: str) -> bool:
    return name.rpartition("/")[2] in slugs


def _task_table(data: ReportData) -> Table:
    """Lay out mean scores with their intervals by setting and task: a row a point, and one of dense a group."""
    rows: list[tuple[str, str, dict[str, str]]] = []
    for title, points in data.groups().items():
        dense: dict[str, dict[str, tuple[str, float]]] = {}
        lines: list[tuple[str, dict[str, dict[str, tuple[str, float]]]]] = [(DENSE, dense)]
        for point in points:
            sparse: dict[str, dict[str, tuple[str, float]]] = {}
            for pair in point.pairs():
                task = str(pair.row.metadata.get("task") or point.dataset)
                for arm, scores in ((dense, pair.dense_scores), (sparse, pair.sparse_scores)):
                    value = curves.number(scores.get(point.summary.metric))
                    if value is not None:
                        # By the question: points share dense answers.
                        arm.setdefault(task, {})[pair.key] = (pair.row.example_key, value)
            lines.append((point.name, sparse))
        metric = curves.main_metric(points)
        for name, found in lines:
            if found:
                cells = {task: _mean_of(list(values.values()), metric) for task, values in found.items()}
                rows.append((title, name, cells))
    tasks = tuple(dict.fromkeys(task for *_, cells in rows for task in cells))
    written = [(title, name, *(cells.get(task, "-") for task in tasks)) for title, name, cells in rows]
    return Table(("model and data", "setting", *tasks), tuple(written))


def _mean_of(scores: Sequence[tuple[str, float]], metric: str) -> str:
    """Write the mean of (context, score) with its 95 % interval, where the contexts give one."""
    contexts, values = zip(*scores, strict=True)
    try:
        found = mean_interval(values, contexts, score_bounds(metric))
    except ValueError:
        return f"{sum(values) / len(values):.3f}"  # scores that the metric cannot have give no interval
    written = f"{found.mean:.3f}"
    return written if found.low is None or found.high is None else f"{written} [{found.low:.2f}, {found.high:.2f}]"


def _points(data: ReportData) -> Table:
    """Write the table of points with what was measured alone."""
    columns, rows = tracked_points(data)
    left_out = ("verdict in words", "command", "point")
    measured = [place for place in range(len(columns)) if any(row[place] is not None for row in rows)]
    kept = [place for place in measured if columns[place] not in left_out]
    return Table(tuple(columns[place] for place in kept), tuple(tuple(_cell(row[p]) for p in kept) for row in rows))


def _differences(points: Sequence[ReportPoint]) -> Table:
    """Lay out the values in which the points' identities differ."""
    shown = points[:_MOST_COMPARED]
    values = [{name: str(value) for name, value in flat(dict(point.main.identity)).items()} for point in shown]
    names = dict.fromkeys(name for found in values for name in found)
    telling = [name for name in names if len({found.get(name) for found in values}) > 1]
    rows = [(name, *(_short(found.get(name, "-"), 60) for found in values)) for name in telling]
    return Table(("value", *(point.name for point in shown)), tuple(rows))


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
