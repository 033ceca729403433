"""`sah compare A B`: two points, or two sweeps, on the questions that both answered."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from sah.errors import ConfigError
from sah.report.load import ReportData
from sah.terminal.command import parser
from sah.terminal.paired import (
    Difference,
    PairedPoints,
    changed,
    configuration_changes,
    correct_all,
    margin_lines,
    match_points,
    paired_scores,
    why_not,
)
from sah.terminal.points import OUTPUTS, read_side, what_is_asked
from sah.terminal.screen import (
    console,
    grid,
    interval,
    shortened,
    show_columns,
    show_json,
    show_line,
    show_title,
)

_EXAMPLES = """\
  sah compare 'topk 0.1' 'random 0.1'              two points of outputs, by name
  sah compare 5396ee57 outputs/points/28575608f97943dd
  sah compare 'topk 0.1' 'topk 0.3' --in outputs/sweeps/2026-11-22/13-47-00
  sah compare outputs/sweeps/2026-11-21/09-00-00 outputs/sweeps/2026-11-22/13-47-00"""

_ANSWER_CHARACTERS = 200
_MOST_LINES = 100


def main(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: What follows `sah compare`.

    Returns:
        The exit code: 1 if nothing of the two can be compared, and why is said.

    Raises:
        StateError: If one of the two cannot be found or read.
        ConfigError: If one of them is a point and the other one several.
    """
    given = _parse(arguments)
    first, second = (read_side(side, given.outputs) for side in (given.a, given.b))
    for written, data in ((given.a, first), (given.b, second)):
        if not data.points:
            raise ConfigError(
                f"{written} has no finished point: {len(data.failures)} failed. sah show {written} tells why"
            )
    if (len(first.points) > 1) != (len(second.points) > 1):
        several, single = (given.a, given.b) if len(first.points) > 1 else (given.b, given.a)
        raise ConfigError(
            f"{several} holds several points and {single} one. Give two points, or two folders of several. For one "
            f"point of a sweep give its name, with --in {several}, or its id"
        )
    whole = len(first.points) > 1
    if given.json:
        pair = _only(first, second)
        show_json(_sweeps_json(first, second) if whole else _points_json(pair, paired_scores(pair), given.examples))
        return 0
    target = console()
    for problem in (*first.problems, *second.problems):
        show_line(target, problem, "yellow")
    if whole:
        return _show_sweeps(first, second, target)
    return _show_points(_only(first, second), given.examples, target)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    built = parser(
        "compare",
        "Compare two points, or two sweeps point by point: what differs in their configuration, and the paired "
        "difference of their scores on the questions that both answered, B minus A.",
        _EXAMPLES,
    )
    built.add_argument("a", metavar="A", help="a folder that sah wrote, or a point's id, name or recipe")
    built.add_argument("b", metavar="B", help="the same")
    built.add_argument(
        "--in",
        dest="outputs",
        type=Path,
        default=OUTPUTS,
        metavar="FOLDER",
        help="where ids and names are looked up (outputs)",
    )
    built.add_argument("--examples", type=int, default=5, metavar="N", help="changed questions shown of each kind (5)")
    built.add_argument("--json", action="store_true", help="everything as JSON")
    return built.parse_args(arguments)


def _only(first: ReportData, second: ReportData) -> PairedPoints:
    return PairedPoints(first.points[0], second.points[0])


def _show_points(pair: PairedPoints, examples: int, target: Console) -> int:
    a, b = pair.a, pair.b
    show_line(target, f"A  {a.name}  {a.id}  {a.model}, {a.dataset}", "bold")
    show_line(target, f"B  {b.name}  {b.id}  {b.model}, {b.dataset}", "bold")
    _show_changes([pair], target)
    compared = paired_scores(pair)
    show_title(target, "Side by side")
    target.print(grid(["", "A", "B", "B - A"], pair.side_by_side(), left=(0,)))
    if not compared:
        show_line(target, why_not(pair), "yellow")
        return 1
    show_title(target, "Paired on the questions that both answered, B minus A")
    target.print(grid(["metric", "A", "B", "difference", "p", "questions", "contexts", "verdict"], _lines(compared)))
    for note in margin_lines([pair], compared):
        show_line(target, note)
    _show_changed(pair, compared[0].metric, examples, target)
    return 0


def _lines(compared: Sequence[Difference]) -> list[list[str]]:
    return [
        [
            found.metric,
            f"{found.result.dense:.3f}",
            f"{found.result.sparse:.3f}",
            interval(found.result.difference, found.result.low, found.result.high, sign=True),
            "-" if found.p_value is None else f"{found.p_value:.3g}",
            str(found.result.pairs),
            str(found.result.contexts),
            found.words(),
        ]
        for found in compared
    ]


def _show_changes(pairs: Sequence[PairedPoints], target: Console) -> None:
    changes = configuration_changes(pairs)
    show_title(target, "Configuration")
    if not changes:
        show_line(target, "  nothing differs" + (" between points of the same name" if len(pairs) > 1 else ""))
    else:
        target.print(grid(["", "A", "B"], changes, left=(0, 1, 2)))


def _show_changed(pair: PairedPoints, metric: str, examples: int, target: Console) -> None:
    worse, better = changed(pair, metric)
    for name, kind, keys in (("Worse", "right to wrong", worse), ("Better", "wrong to right", better)):
        scores = [{pair.a.main.scores[key].scores[metric], pair.b.main.scores[key].scores[metric]} for key in keys]
        turned = sum(ends == {0.0, 1.0} for ends in scores)
        show_title(target, f"{name} in B: {len(keys)}" + (f", {turned} of them from {kind}" if turned else ""))
        for key in keys[:examples]:
            rows = pair.a.main.predictions[key], pair.b.main.predictions[key]
            show_line(target, f"  {key}  {what_is_asked(rows[0].metadata)}".rstrip())
            lines = [("    reference", "", " | ".join(rows[0].answers))]
            for name, point, row in (("A", pair.a, rows[0]), ("B", pair.b, rows[1])):
                score = point.main.scores[key].scores[metric]
                lines.append((f"    {name}", f"{score:.3f}", shortened(row.prediction, _ANSWER_CHARACTERS)))
            show_columns(target, lines, style="dim")
        if len(keys) > examples:
            show_line(target, f"  and {len(keys) - examples} more: --examples {len(keys)}")


def _show_sweeps(first: ReportData, second: ReportData, target: Console) -> int:
    show_line(target, f"A  {first.folder}: {len(first.points)} points", "bold")
    show_line(target, f"B  {second.folder}: {len(second.points)} points", "bold")
    matched, only_a, only_b = match_points(first, second)
    if matched:
        _show_changes(matched, target)
    together, primary, reasons = [], [], []
    for pair in matched:
        compared = paired_scores(pair)
        if compared:
            together.append(pair)
            primary.append(compared[0])
        else:
            reasons.append(f"{pair.a.name}: {why_not(pair)}")
    primary = correct_all(primary)
    # The names in its first columns, then the figures of the primary metric.
    lines = [
        [pair.a.name, pair.a.dataset, *line, *pair.densities()]
        for pair, line in zip(together, _lines(primary), strict=True)
    ]
    if lines:
        show_title(target, "Points of the same name, on the questions that both answered, B minus A")
        names = ["setting", "data set", "metric", "A", "B", "difference", "p", "questions", "contexts", "verdict"]
        target.print(grid([*names, "density A", "density B"], lines[:_MOST_LINES], left=(0, 1, 2, 9)))
        if len(lines) > _MOST_LINES:
            show_line(target, f"and {len(lines) - _MOST_LINES} more: --json has all")
        for note in margin_lines(together, primary):
            show_line(target, note)
    for reason in reasons:
        show_line(target, reason, "yellow")
    for name, points in (("A", only_a), ("B", only_b)):
        if points:
            show_line(target, f"Only in {name}: {', '.join(point.name for point in points)}")
    if not lines:
        show_line(
            target,
            "No point of A has a partner in B: partners have the same name, and questions in common.",
            "yellow",
        )
    return 0 if lines else 1


def _points_json(pair: PairedPoints, compared: Sequence[Difference], examples: int) -> dict[str, Any]:
    worse, better = changed(pair, compared[0].metric) if compared else ([], [])
    return {
        **pair.to_json(),
        "configuration": [dict(zip(("key", "a", "b"), line, strict=True)) for line in configuration_changes([pair])],
        "scores": {found.metric: found.to_json() for found in compared},
        "worse": worse,
        "better": better,
        "reason": None if compared else why_not(pair),
    }


def _sweeps_json(first: ReportData, second: ReportData) -> dict[str, Any]:
    matched, only_a, only_b = match_points(first, second)
    scores = [paired_scores(pair) for pair in matched]
    primary = iter(correct_all([compared[0] for compared in scores if compared]))
    scores = [[next(primary), *compared[1:]] if compared else [] for compared in scores]
    return {
        "points": [_points_json(pair, compared, 0) for pair, compared in zip(matched, scores, strict=True)],
        "only_a": [point.id for point in only_a],
        "only_b": [point.id for point in only_b],
    }
