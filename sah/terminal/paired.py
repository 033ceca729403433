"""Pairs points and their questions for `sah compare`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sah.metrics.compare import MARGIN, Comparison, compare_scores, needed_alike
from sah.metrics.scorers import score_bounds
from sah.metrics.verdict import UNDECIDED, Claim, Corrected, correct
from sah.report.curves import Interval, fidelity, number, score
from sah.report.load import ReportData, ReportPoint
from sah.report.verdicts import margin_words
from sah.terminal.points import laid_out
from sah.terminal.screen import interval, shortened

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
        """Write the figures of both, each on all its own questions, in lines of name, A, B and B minus A.

        Figures that other questions would change are written with their intervals where they have one, and without a
        difference: only pairs of questions tell what that is worth.
        """
        lines = []
        for name, digits, read, exact in _FIGURES:
            (a, *ends_a), (b, *ends_b) = read(self.a), read(self.b)
            if a is None and b is None:
                continue
            if exact:
                cells = ["-" if value is None else f"{value:,.{digits}f}" for value in (a, b)]
                gain = "-" if a is None or b is None else f"{b - a:+,.{digits}f}"
            else:
                cells = [
                    "-" if value is None else interval(value, ends[0], ends[1], digits)
                    for value, ends in ((a, ends_a), (b, ends_b))
                ]
                gain = ""
            lines.append([name, *cells, gain])
        return lines

    def margin(self) -> tuple[float, bool]:
        """Tell within which margin the two count as tied: their verdicts' own, else their runs'; the smaller of two.

        Returns:
            The margin, and whether both have the same.
        """
        points = (self.a, self.b)
        judged = {point.summary.margin for point in points} - {None}
        found = judged or {number(point.main.config.get("margin")) for point in points}
        known = [margin for margin in found if margin is not None]
        return min(known, default=MARGIN), len(known) < 2

    def densities(self) -> list[str]:
        """Write the measured densities of A and B."""
        found = [point.summary.density_measured for point in (self.a, self.b)]
        return ["-" if value is None else f"{value:.4f}" for value in found]

    def to_json(self) -> dict[str, Any]:
        """Give names and figures of both as JSON data."""
        sides = {}
        for side, point in (("a", self.a), ("b", self.b)):
            figures = {name: read(point)[0] for name, _, read, _ in _FIGURES}
            sides[side] = {"id": point.id, "name": point.name, "folder": str(point.main.folder), "figures": figures}
        return sides


@dataclass(frozen=True)
class Difference:
    """The comparison on one metric; A stands where `Comparison` says dense, and B where it says sparse."""

    metric: str
    result: Comparison
    compared: int = 1
    """Comparisons that it is one of."""

    corrected: Corrected | None = None
    """What is left of it among them; None where it stands alone."""

    @property
    def verdict(self) -> str:
        """The corrected verdict where there is one."""
        return self.result.verdict if self.corrected is None else self.corrected.verdict

    @property
    def p_value(self) -> float | None:
        """The corrected one where there is one."""
        return self.result.p_value if self.corrected is None else self.corrected.p_value

    def questions_needed(self) -> int | None:
        """Estimate how many questions would give a verdict that holds among all that are compared."""
        if self.corrected is None or self.verdict != UNDECIDED:
            return self.result.questions_needed if self.verdict == UNDECIDED else None
        result = self.result
        confidence = 1 - (1 - result.confidence) / self.compared
        needed = needed_alike(result.outcomes, result.span, result.margin, confidence)
        return None if needed is None else needed[1]

    def words(self) -> str:
        """Write the verdict on B, with what would settle it where the questions do not."""
        needed = self.questions_needed()
        return self.verdict + (f" (about {needed:,} questions would settle it)" if needed else "")

    def to_json(self) -> dict[str, Any]:
        """Give it as JSON data, with `a` and `b` for the means and their intervals."""
        values = dataclasses.asdict(self.result)
        for name in ("outcomes", "span"):
            del values[name]
        named = {name.replace("dense", "a").replace("sparse", "b"): value for name, value in values.items()}
        if self.corrected is not None:
            named |= {"compared": self.compared, "p_corrected": self.p_value, "verdict_corrected": self.verdict}
            named["questions_needed_corrected"] = self.questions_needed()
        return named


def correct_all(compared: Sequence[Difference]) -> list[Difference]:
    """Correct comparisons for being many, one alone stays as it is; see `sah.metrics.verdict.correct`."""
    claims = [Claim(found.result.difference, found.result.p_value, found.result.p_tied) for found in compared]
    count = sum(claim.p_value is not None for claim in claims)
    if count < 2:
        return list(compared)
    return [
        dataclasses.replace(found, compared=count, corrected=corrected)
        for found, corrected in zip(compared, correct(claims), strict=True)
    ]


def margin_lines(pairs: Sequence[PairedPoints], compared: Sequence[Difference]) -> list[str]:
    """Say what the verdicts of comparisons stand on: for how many they are corrected, and within which margin.

    Args:
        pairs: What was compared.
        compared: The comparisons that are shown.

    Returns:
        Lines.
    """
    lines = []
    count = max((found.compared for found in compared), default=1)
    if count > 1:
        lines.append(
            f"p-values and verdicts are corrected for {count} comparisons by Holm's method; intervals are those of "
            "each alone."
        )
    margins = dict.fromkeys(margin_words(found.result.margin, found.metric) for found in compared)
    mixed = [pair.a.name for pair in pairs if not pair.margin()[1]]
    if margins:
        told = " or ".join(margins)
        several = ", that of each one's own runs" if len(margins) > 1 else ""
        lines.append(f"Tied means that the interval lies within the margin of {told} around 0{several}.")
    if mixed:
        lines.append(f"A and B were run with different margins; the smaller one is taken: {', '.join(mixed)}.")
    return lines


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
                margin=pair.margin()[0],
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


def _score(point: ReportPoint) -> Interval:
    if not point.is_dense:
        return score(point)
    low, high = point.summary.dense_range
    return number(point.summary.dense), number(low), number(high)


def _alone(name: str) -> Callable[[ReportPoint], Interval]:
    return lambda point: (number(getattr(point.summary, name)), None, None)


def _fidelity(name: str) -> Callable[[ReportPoint], Interval]:
    return lambda point: fidelity(point, name)


_FIGURES: tuple[tuple[str, int, Callable[[ReportPoint], Interval], bool], ...] = (
    ("score, each on its own questions", 3, _score, False),
    ("questions", 0, _alone("questions"), True),
    ("density requested", 4, _alone("density_requested"), True),
    ("density measured", 4, _alone("density_measured"), True),
    ("KV bytes read a decoded token", 0, _alone("decode_kv_bytes"), True),
    ("KV bytes held", 0, _alone("held_kv_bytes"), True),
    ("output error of attention", 4, _alone("output_error"), False),
    ("KL to dense, nats a token", 4, _fidelity("kl"), False),
    ("top-1 agreement with dense", 4, _fidelity("top1_agreement"), False),
    ("log-likelihood of dense's answer - dense", 4, _fidelity("log_likelihood_difference"), False),
)
"""Name, decimals, how to read it, and whether it is a setting or a cost, so that its difference is no estimate."""
