"""The paired comparison of two settings on the same questions, clustered by context (see `sah.metrics.interval`)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scipy.optimize import brentq
from scipy.special import ndtri

from sah.metrics.interval import BoundedMean, Bounds, UnboundedMean, average, clustered_mean, mean_interval
from sah.metrics.verdict import CONFIDENCE, UNDECIDED, verdict

MARGIN = 0.05
"""Difference of scores, in their own unit, within which two settings count as tied, unless the user says otherwise."""

Outcome = tuple[float, int, int]
"""The sum of the differences of a context's questions, how many questions these are, and how many contexts are so."""

MOST_CONTEXTS = 1_000_000
"""Where more contexts than this would be needed, no number is given."""

_TINY = 1e-300


@dataclass(frozen=True)
class Comparison:
    """Sparse against dense. None stands for what the pairs cannot tell."""

    dense: float
    sparse: float
    difference: float
    """Mean of the differences, sparse minus dense."""

    low: float | None
    high: float | None
    confidence: float
    p_value: float | None
    """Two-sided, for the difference 0: at most 1 - confidence where the interval leaves out 0."""

    p_tied: float | None
    """Twice the larger of the one-sided p-values for differences of at least `margin` and of at most -`margin`: at most
    1 - confidence where the interval lies within the margin."""

    margin: float
    verdict: str
    pairs: int
    contexts: int
    contexts_needed: int | None
    """For another verdict than `not enough data`; None where there is one, or no number can be given."""

    questions_needed: int | None
    """The same in questions, at the present number a context."""

    dense_low: float | None
    """Interval of the dense score of these questions, clustered by context."""

    dense_high: float | None
    sparse_low: float | None
    sparse_high: float | None
    outcomes: tuple[Outcome, ...]
    """How the contexts came out: all that `needed_alike` asks of the pairs. Empty where a score is not finite."""

    span: Bounds | None
    """Least and greatest possible difference; None where there are none."""

    def to_json(self) -> dict[str, Any]:
        """Give it as JSON data, with lists for tuples."""
        listed = {
            "outcomes": [list(outcome) for outcome in self.outcomes],
            "span": None if self.span is None else list(self.span),
        }
        return asdict(self) | listed


def compare_scores(
    dense: Sequence[float],
    sparse: Sequence[float],
    contexts: Sequence[Hashable],
    *,
    bounds: Bounds | None = (0.0, 1.0),
    margin: float = MARGIN,
    confidence: float = CONFIDENCE,
) -> Comparison:
    """Compare the scores of two settings on the same questions.

    `contexts_needed` is the least number of contexts at which the verdict would be another, if further contexts came
    out like those that there are: the same shares of the same differences and questions. Contexts come out
    differently, so it is an estimate; one context alone gives none.

    Args:
        dense: A score for each question, at least one.
        sparse: The other setting's scores of the same questions.
        contexts: For each question the context that it belongs to.
        bounds: Least and greatest possible score; None, or an infinite one, where there are none.
        margin: Difference of scores within which the two count as tied.
        confidence: Of the interval.

    Returns:
        The comparison; the same for any order of the questions.

    Raises:
        ValueError: If there are no scores, not as many of each, or one outside the bounds.
    """
    differences = [after - before for before, after in zip(dense, sparse, strict=True)]
    # Rounding of a difference may lead past the bounds by as little as they allow for.
    span = None if bounds is None else (bounds[0] - bounds[1], bounds[1] - bounds[0])
    if span is not None and not all(map(math.isfinite, span)):
        span = None
    mean = mean_interval(differences, contexts, span, confidence)
    of_dense, of_sparse = (mean_interval(scores, contexts, bounds, confidence) for scores in (dense, sparse))
    sample = clustered_mean(differences, contexts, span)
    p_value = None if sample is None else _p_value(sample)
    p_tied = None if sample is None else _p_tied(sample, margin)
    judged = verdict(mean.mean, p_value, p_tied, confidence)
    needed = contexts_needed(sample, margin, confidence) if sample is not None and judged == UNDECIDED else None
    return Comparison(
        dense=average(dense),
        sparse=average(sparse),
        difference=mean.mean,
        low=mean.low,
        high=mean.high,
        confidence=confidence,
        p_value=p_value,
        p_tied=p_tied,
        margin=margin,
        verdict=judged,
        pairs=mean.values,
        contexts=mean.clusters,
        contexts_needed=needed,
        questions_needed=None if needed is None else math.ceil(needed * mean.values / mean.clusters),
        dense_low=of_dense.low,
        dense_high=of_dense.high,
        sparse_low=of_sparse.low,
        sparse_high=of_sparse.high,
        outcomes=_outcomes(differences, contexts),
        span=span,
    )


def needed_alike(
    outcomes: Sequence[Outcome], span: Bounds | None, margin: float, confidence: float
) -> tuple[int, int] | None:
    """Find how many contexts like those of a comparison would give a verdict at another confidence.

    One of `count` comparisons keeps its verdict by Holm's method, whatever the others come to, where it has it at the
    confidence `1 - (1 - confidence) / count`.

    Args:
        outcomes: Of the comparison.
        span: Of the comparison.
        margin: Of the comparison.
        confidence: Of the verdict.

    Returns:
        Contexts, and questions at the present number a context; None where no number can be given, or none are needed.
    """
    values: list[float] = []
    contexts: list[tuple[int, int]] = []
    for kind, (total, questions, alike) in enumerate(outcomes):
        for number in range(alike):
            values += [total / questions] * questions
            contexts += [(kind, number)] * questions
    sample = clustered_mean(values, contexts, span)
    needed = None if sample is None else contexts_needed(sample, margin, confidence)
    if sample is None or needed is None:
        return None
    return needed, math.ceil(needed * len(values) / sample.clusters)


def _outcomes(differences: Sequence[float], contexts: Sequence[Hashable]) -> tuple[Outcome, ...]:
    if not all(map(math.isfinite, differences)):
        return ()
    members: dict[Hashable, list[float]] = {}
    for difference, context in zip(differences, contexts, strict=True):
        members.setdefault(context, []).append(difference)
    counts = Counter((math.fsum(group), len(group)) for group in members.values())
    return tuple((total, questions, alike) for (total, questions), alike in sorted(counts.items()))


def contexts_needed(sample: BoundedMean | UnboundedMean, margin: float, confidence: float) -> int | None:
    """Find how many contexts like those of a sample would give a verdict.

    Args:
        sample: Differences that give none.
        margin: As for the comparison.
        confidence: As for the comparison.

    Returns:
        The least number; None beyond `MOST_CONTEXTS`.
    """
    found = []
    most = math.log(max(1.0, MOST_CONTEXTS / sample.clusters))
    target = ndtri((1 - confidence) / 2)

    def distance(growth: float, tied: bool) -> float:
        times = math.exp(growth)
        p_value = _p_tied(sample, margin, times) if tied else _p_value(sample, times)
        return float(ndtri(max(p_value / 2, _TINY)) - target)

    for tied in (True, False):
        if distance(most, tied) < 0 < distance(0.0, tied):
            growth = math.exp(brentq(distance, 0.0, most, args=(tied,), xtol=1e-7))
            found.append(math.ceil(sample.clusters * growth - 1e-3))
    return min(found, default=None)


def _p_value(sample: BoundedMean | UnboundedMean, growth: float = 1.0) -> float:
    return min(1.0, 2 * min(sample.p_at_least(0.0, growth), sample.p_at_most(0.0, growth)))


def _p_tied(sample: BoundedMean | UnboundedMean, margin: float, growth: float = 1.0) -> float:
    return min(1.0, 2 * max(sample.p_at_least(margin, growth), sample.p_at_most(-margin, growth)))
