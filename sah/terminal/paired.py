"""Pairs points and their questions for `sah compare`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sah.metrics.compare import Comparison, compare_scores
from sah.metrics.scorers import score_bounds
from sah.report.curves import fidelity, number
from sah.report.load import ReportData, ReportPoint
from sah.terminal.points import laid_out
from sah.terminal.screen import shortened

_ABSENT = "(absent)"
_VALUE_CHARACTERS = 40
_ALL_POINTS = "(differs from point to point)"


@dataclass(frozen=True)
class PairedPoints:
    """Two points to compare."""

    a: ReportPoint
    b: ReportPoint

    def common_questions(self) -> list[str]:
        """List the questions that both scored, in the order of A."""
        wanted = [None if point.keys is None else set(point.keys) for point in (self.a, self.b)]
        return [
            key
            for key, row in self.a.main.scores.items()
            if row.status == "ok"
            and (other := self.b.main.scores.get(key)) is not None
            and other.status == "ok"
            and key in self.a.main.predictions
            and key in self.b.main.predictions
            and all(keys is None or key in keys for keys in wanted)
        ]

    def side_by_side(self) -> list[list[str]]:
        """Write the figures of both, each on all its own questions, in lines of name, A, B and B minus A."""
        lines = []
        for name, digits, read in _FIGURES:
            a, b = read(self.a), read(self.b)
            if a is None and b is None:
                continue
            gain = "-" if a is None or b is None else f"{b - a:+,.{digits}f}"
            lines.append([name, *("-" if value is None else f"{value:,.{digits}f}" for value in (a, b)), gain])
        return lines

    def densities(self) -> list[str]:
        """Write the measured densities of A and B."""
        found = [point.summary.density_measured for point in (self.a, self.b)]
        return ["-" if value is None else f"{value:.4f}" for value in found]

    def to_json(self) -> dict[str, Any]:
        """Give names and figures of both as JSON data."""
        sides = {}
        for side, point in (("a", self.a), ("b", self.b)):
            figures = {name: read(point) for name, _, read in _FIGURES}
            sides[side] = {"id": point.id, "name": point.name, "folder": str(point.main.folder), "figures": figures}
        return sides


@dataclass(frozen=True)
class Difference:
    """The comparison on one metric; A stands where `Comparison` says dense, and B where it says sparse."""

    metric: str
    result: Comparison

    def words(self) -> str:
        """Write the verdict on B, with what would settle it where the questions do not."""
        needed = self.result.questions_needed
        return self.result.verdict + (f" (about {needed:,} questions would settle it)" if needed else "")

    def to_json(self) -> dict[str, Any]:
        """Give it as JSON data, with `a` and `b` for the means."""
        values = dataclasses.asdict(self.result)
        return {"a": values.pop("dense"), "b": values.pop("sparse"), **values}


def paired_scores(pair: PairedPoints) -> list[Difference]:
    """Compare two points on the questions that both answered.

    Args:
        pair: The points.

    Returns:
        One comparison for each metric that both have, A's main metric first; none if they share no question or metric.
    """
    keys = pair.common_questions()
    a, b = pair.a.main, pair.b.main
    metrics = dict.fromkeys([pair.a.summary.metric, *(name for key in keys for name in a.scores[key].scores)])
    found = []
    for metric in metrics:
        having = [key for key in keys if metric in a.scores[key].scores and metric in b.scores[key].scores]
        if having:
            result = compare_scores(
                [a.scores[key].scores[metric] for key in having],
                [b.scores[key].scores[metric] for key in having],
                [a.predictions[key].example_key for key in having],
                bounds=score_bounds(metric),
            )
            found.append(Difference(metric, result))
    return found


def why_not(pair: PairedPoints) -> str:
    """Say why two points have no scores to compare."""
    a, b = pair.a, pair.b
    if pair.common_questions():
        a_names, b_names = (
            ", ".join(sorted({name for row in point.main.scores.values() for name in row.scores})) or "none"
            for point in (a, b)
        )
        return (
            f"They have no metric in common: A has {a_names}, B has {b_names}. "
            "dataset.metrics says what is scored; the same command scores stored answers anew"
        )
    scored = [sum(row.status == "ok" for row in point.main.scores.values()) for point in (a, b)]
    if 0 in scored:
        return f"They have no question in common that both answered: A scored {scored[0]}, B {scored[1]}"
    data = [laid_out(point.main.identity.get("dataset", {})) for point in (a, b)]
    telling = [key for key in dict.fromkeys([*data[0], *data[1]]) if data[0].get(key) != data[1].get(key)]
    if telling:
        values = [[shortened(side.get(key, _ABSENT), _VALUE_CHARACTERS) for side in data] for key in telling]
        told = ", ".join(f"{key} ({a} / {b})" for key, (a, b) in zip(telling, values, strict=True))
        reason = f"their data sets differ in {told}"
    elif a.main.identity.get("model") != b.main.identity.get("model"):
        reason = "examples are made to length for a model's tokenizer, and their models differ"
    else:
        reason = "they asked for different examples of it"
    return f"They have no question in common ({scored[0]} in A, {scored[1]} in B): {reason}"


def changed(pair: PairedPoints, metric: str) -> tuple[list[str], list[str]]:
    """List the questions whose score changed.

    Args:
        pair: The points.
        metric: Of the score.

    Returns:
        Keys of the questions that are worse in B, and of those that are better, the largest changes first.
    """
    gains: dict[str, float] = {}
    for key in pair.common_questions():
        a, b = (point.main.scores[key].scores.get(metric) for point in (pair.a, pair.b))
        if a is not None and b is not None and a != b:
            gains[key] = b - a
    ordered = sorted(gains, key=lambda key: -abs(gains[key]))
    return [key for key in ordered if gains[key] < 0], [key for key in ordered if gains[key] > 0]


def configuration_changes(pairs: Sequence[PairedPoints]) -> list[tuple[str, str, str]]:
    """Find what differs in the configuration that decides results.

    Args:
        pairs: One or more pairs of points.

    Returns:
        Dotted key and the values of A and B, for every key that differs in some pair; where pairs have other values
        than each other, that is said in place of the values.
    """
    found: dict[str, dict[tuple[str, str], None]] = {}
    for pair in pairs:
        a, b = (laid_out(point.main.identity) for point in (pair.a, pair.b))
        for key in dict.fromkeys([*a, *b]):
            if a.get(key) != b.get(key):
                found.setdefault(key, {})[(a.get(key, _ABSENT), b.get(key, _ABSENT))] = None
    lines = []
    for key, values in found.items():
        (a_value, b_value), *others = values
        lines.append((key, _ALL_POINTS, _ALL_POINTS) if others else (key, a_value, b_value))
    return lines


def match_points(
    first: ReportData, second: ReportData
) -> tuple[list[PairedPoints], list[ReportPoint], list[ReportPoint]]:
    """Find the partners of two sweeps: points of the same id, else of the same name and alike in the rest.

    Args:
        first: A.
        second: B.

    Returns:
        The pairs in the order of A, and what has no partner in A and in B.
    """
    left = list(second.points)
    pairs: list[PairedPoints] = []
    alone: list[ReportPoint] = []
    for a in first.points:
        alike = [b for b in left if b.id == a.id] or [b for b in left if b.name == a.name]
        if not alike:
            alone.append(a)
            continue
        here = laid_out(a.main.identity)
        b = min(alike, key=lambda other: _distance(here, laid_out(other.main.identity)))
        left.remove(b)
        pairs.append(PairedPoints(a, b))
    return pairs, alone, left


def _distance(a: dict[str, str], b: dict[str, str]) -> int:
    return sum(a.get(key) != b.get(key) for key in a.keys() | b.keys())


def _score(point: ReportPoint) -> float | None:
    return number(point.summary.dense if point.is_dense else point.summary.sparse)


_FIGURES = (
    ("score, each on its own questions", 3, _score),
    ("questions", 0, lambda point: number(point.summary.questions)),
    ("density requested", 4, lambda point: number(point.summary.density_requested)),
    ("density measured", 4, lambda point: number(point.summary.density_measured)),
    ("KV bytes read a decoded token", 0, lambda point: number(point.summary.decode_kv_bytes)),
    ("output error of attention", 4, lambda point: number(point.summary.output_error)),
    ("KL to dense, nats a token", 4, lambda point: fidelity(point, "kl")[0]),
    ("top-1 agreement with dense", 4, lambda point: fidelity(point, "top1_agreement")[0]),
    ("log-likelihood of dense's answer - dense", 4, lambda point: fidelity(point, "log_likelihood_difference")[0]),
)
