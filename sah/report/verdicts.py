"""Verdicts of a sweep, corrected for being many, and each point's in one sentence."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from sah.metrics.verdict import BETTER, CONFIDENCE, TIED, UNDECIDED, WORSE, Claim, correct
from sah.report.summary import UNITS, PointSummary

_MOST_NAMED = 3
_WORDS = {BETTER: "is better than dense", WORSE: "is worse than dense", TIED: "is tied with dense"}


def correct_points(points: Sequence[PointSummary]) -> list[PointSummary]:
    """Correct the verdicts of one sweep; see `sah.metrics.verdict.correct`.

    Args:
        points: All that the sweep compared, each once.

    Returns:
        The same, `compared`, `p_corrected`, `verdict_corrected` and what that would need filled in where there is a
        verdict. `compared` counts those that have a p-value: more than one context, in general.
    """
    judged = [place for place, point in enumerate(points) if point.verdict is not None and point.difference is not None]
    claims = [Claim(points[place].difference or 0.0, points[place].p_value, points[place].p_tied) for place in judged]
    compared = sum(claim.p_value is not None for claim in claims)
    corrected = list(points)
    confidence = max((points[place].confidence or CONFIDENCE for place in judged), default=CONFIDENCE)
    for place, result in zip(judged, correct(claims, confidence), strict=True):
        needed = _needed(points[place], compared, confidence) if result.verdict == UNDECIDED else None
        corrected[place] = dataclasses.replace(
            points[place],
            compared=compared,
            p_corrected=result.p_value,
            verdict_corrected=result.verdict,
            contexts_needed_corrected=None if needed is None else needed[0],
            questions_needed_corrected=None if needed is None else needed[1],
        )
    return corrected


def _needed(point: PointSummary, compared: int, confidence: float) -> tuple[int, int] | None:
    if point.spread is None or point.margin is None or compared < 1:
        return None
    # SciPy is slow to import, and not every table has an open verdict.
    from sah.metrics.compare import needed_alike

    return needed_alike(point.spread.outcomes, point.spread.span, point.margin, 1 - (1 - confidence) / compared)


def correction_note(points: Sequence[PointSummary]) -> str:
    """Say how many comparisons the verdicts of a table are corrected for, and within which margin points are tied.

    Args:
        points: From `correct_points`.

    Returns:
        One to three sentences; empty where there is no verdict.
    """
    compared = max((point.compared or 0 for point in points), default=0)
    if compared < 2:
        return _margin_note(points)
    percent = _percent(next(point for point in points if point.compared))
    return (
        f"Verdicts are corrected for {compared} comparisons by Holm's method: the probability that any better or worse "
        f"is wrong is at most {100 - percent:g} %, and that any tied is wrong as well. Intervals ({percent:g} %, "
        f"clustered by context) are those of each point alone. {_margin_note(points)}"
    ).rstrip()


def margin_words(margin: float, metric: str) -> str:
    """Write a margin with the unit of its metric: `0.05 nats a token`; a score's has none."""
    return f"{margin:g} {UNITS.get(metric, '')}".rstrip()


def _margin_note(points: Sequence[PointSummary]) -> str:
    names: dict[tuple[str, float], list[str]] = {}
    for point in points:
        if point.verdict is not None and point.margin is not None:
            names.setdefault((point.metric, point.margin), []).append(point.name)
    if not names:
        return ""
    metrics = {metric for metric, _ in names}
    if len(metrics) == len(names):
        told = [margin_words(margin, metric) + (f" ({metric})" if len(metrics) > 1 else "") for metric, margin in names]
        return f"Tied means that the interval lies within the margin of {' and '.join(told)} around 0."
    told = []
    for (metric, margin), members in names.items():
        rest = len(members) - _MOST_NAMED
        listed = ", ".join(members[:_MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")
        told.append(f"{margin_words(margin, metric)} for {listed}")
    return f"Margins are mixed, so that verdicts of different ones do not compare: {'; '.join(told)}."


def sentence(point: PointSummary) -> str:
    """Say in one sentence how a sparse point compares with dense, by its corrected verdict where it has one.

    Args:
        point: A point.

    Returns:
        The sentence; empty for a dense point.
    """
    if point.sparse_in is None:
        return ""
    name = point.named(" at density ")
    if point.difference is None:
        return f"{name} has no answers in common with dense to compare."
    found = f"difference {point.difference:+.3f}"
    verdict = point.shown_verdict
    if verdict is None:
        return f"{name}: {found}, stored without an interval; running the same command again adds it."
    if point.contexts == 1:
        return f"{name}: not enough data: {found} in one context, which does not tell how others would come out."
    contexts = f"over {point.contexts} contexts"
    if point.low is None or point.high is None:
        return f"{name}: not enough data: {found} {contexts}, which give no interval."
    found += f", {_percent(point):g} % interval {point.low:+.2f} to {point.high:+.2f} {contexts}"
    if verdict == UNDECIDED:
        return f"{name}: not enough data: {found}; {_what_is_missing(point)}."
    return f"{name} {_WORDS[verdict]}: {found}" + (
        f", within the margin of {margin_words(point.margin or 0.0, point.metric)}." if verdict == TIED else "."
    )


def _what_is_missing(point: PointSummary) -> str:
    many = (point.compared or 0) > 1
    lost = ""
    if point.verdict != UNDECIDED:
        lost = f"alone it would be {point.verdict}, but that does not survive among {point.compared} comparisons"
    if many and point.spread is not None:
        told = _settled(point.contexts_needed_corrected, point.questions_needed_corrected)
        return f"{lost}; {told}" if lost else f"{told}, as one of {point.compared} comparisons"
    if lost:
        return lost
    told = _settled(point.contexts_needed, point.questions_needed)
    # An older version kept no more than the number for this comparison alone.
    more = many and point.contexts_needed is not None
    return f"{told}, alone; among {point.compared} comparisons it takes more" if more else told


def _settled(contexts: int | None, questions: int | None) -> str:
    if contexts is None:
        return "more contexts like these would not settle it"
    with_questions = "" if questions == contexts else f" with {questions} questions"
    return f"about {contexts} contexts{with_questions} would settle it if they came out like these"


def _percent(point: PointSummary) -> float:
    return round(100 * (point.confidence or CONFIDENCE), 6)
