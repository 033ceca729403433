"""What a page says of points in words."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

from sah.metrics.verdict import BETTER, TIED, UNDECIDED, WORSE
from sah.report.load import ReportData, ReportPoint
from sah.report.table import fidelity_note
from sah.report.verdicts import correct_points, correction_note, sentence

NO_VERDICT = "no verdict"
"""Of a point whose comparison was stored without an interval, or that has none."""

DENSE = "dense"


def judged(data: ReportData) -> ReportData:
    """Correct the verdicts of a report for being many: over a whole sweep, else over each group by itself."""
    families = [list(data.points)] if data.sweep else list(data.groups().values())
    corrected = {}
    for points in families:
        for point, summary in zip(points, correct_points([point.summary for point in points]), strict=True):
            corrected[id(point)] = dataclasses.replace(point, summary=summary)
    return dataclasses.replace(data, points=tuple(corrected[id(point)] for point in data.points))


def verdict_word(point: ReportPoint) -> str:
    """Name a point's verdict: `better`, `worse`, `tied`, `not enough data`, `no verdict`, or `dense`."""
    return DENSE if point.is_dense else point.summary.shown_verdict or NO_VERDICT


def verdict_text(point: ReportPoint) -> str:
    """Say in one sentence how a point compares with dense."""
    if not point.is_dense:
        return sentence(point.summary)
    told = "was not scored" if point.summary.dense is None else f"scores {point.summary.dense:.3f}"
    return f"Dense attention {told} on {point.summary.questions} questions."


def headline(points: Sequence[ReportPoint]) -> str:
    """Count the verdicts of points, and say what they are corrected for and which figures lack questions."""
    sparse = [point for point in points if not point.is_dense]
    if not sparse:
        return "Dense attention alone: there is nothing to compare."
    counts = Counter(verdict_word(point) for point in sparse)
    told = ", ".join(f"{counts[word]} {word}" for word in (BETTER, TIED, WORSE, UNDECIDED, NO_VERDICT) if counts[word])
    settings = "One sparse setting" if len(sparse) == 1 else f"{len(sparse)} sparse settings"
    summaries = [point.summary for point in points]
    notes = filter(None, (correction_note(summaries), fidelity_note(summaries)))
    return " ".join([f"{settings} against dense: {told}.", *notes])
