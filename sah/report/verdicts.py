"""Verdicts of a sweep, corrected for being many, and each point's in one sentence."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from sah.metrics.verdict import BETTER, CONFIDENCE, TIED, UNDECIDED, WORSE, Claim, correct
from sah.report.summary import PointSummary

_WORDS = {BETTER: "is better than dense", WORSE: "is worse than dense", TIED: "is tied with dense"}


def correct_points(points: Sequence[PointSummary]) -> list[PointSummary]:
    """Correct the verdicts of one sweep; see `sah.metrics.verdict.correct`.

    Args:
        points: All that the sweep compared, each once.

    Returns:
        The same, `compared`, `p_corrected` and `verdict_corrected` filled in where there is a verdict. `compared`
        counts those that have a p-value: more than one context, in general.
    """
    judged = [place for place, point in enumerate(points) if point.verdict is not None and point.difference is not None]
    claims = [Claim(points[place].difference or 0.0, points[place].p_value, points[place].p_tied) for place in judged]
    compared = sum(claim.p_value is not None for claim in claims)
    corrected = list(points)
    confidence = max((points[place].confidence or CONFIDENCE for place in judged), default=CONFIDENCE)
    for place, result in zip(judged, correct(claims, confidence), strict=True):
        corrected[place] = dataclasses.replace(
            points[place], compared=compared, p_corrected=result.p_value, verdict_corrected=result.verdict
        )
    return corrected


def correction_note(points: Sequence[PointSummary]) -> str:
    """Say how many comparisons the verdicts of a table are corrected for.

    Args:
        points: From `correct_points`.

    Returns:
        A sentence; empty where nothing was corrected.
    """
    compared = max((point.compared or 0 for point in points), default=0)
    if compared < 2:
        return ""
    percent = _percent(next(point for point in points if point.compared))
    return (
        f"Verdicts are corrected for {compared} comparisons by Holm's method: the probability that any better or worse "
        f"is wrong is at most {100 - percent:g} %, and that any tied is wrong as well. Intervals ({percent:g} %, "
        "clustered by context) are those of each point alone."
    )


def sentence(point: PointSummary) -> str:
    """Say in one sentence how a sparse point compares with dense, by its corrected verdict where it has one.

    Args:
        point: A point.

    Returns:
        The sentence; empty for a dense point.
    """
    if point.sparse_in is None:
        return ""
    name = _name(point)
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
        f", within the margin of {point.margin:g}." if verdict == TIED else "."
    )


def _what_is_missing(point: PointSummary) -> str:
    if point.verdict != UNDECIDED:
        return f"alone it would be {point.verdict}, but that does not survive among {point.compared} comparisons"
    if point.contexts_needed is None:
        return "more contexts like these would not settle it"
    needed = f"about {point.contexts_needed} contexts"
    if point.questions_needed != point.contexts_needed:
        needed += f" with {point.questions_needed} questions"
    return f"{needed} would settle it if they came out like these"


def _name(point: PointSummary) -> str:
    density = point.density_requested
    return point.label if density is None else f"{point.label} at density {density:g}"


def _percent(point: PointSummary) -> float:
    return round(100 * (point.confidence or CONFIDENCE), 6)
