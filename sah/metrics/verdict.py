"""What a comparison with dense comes to, alone and among the many of a sweep. Pure Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

BETTER = "better"
WORSE = "worse"
TIED = "tied"
UNDECIDED = "not enough data"
VERDICTS = (BETTER, WORSE, TIED, UNDECIDED)

CONFIDENCE = 0.95
"""Of intervals; verdicts may be wrong with the rest of the probability."""


def verdict(difference: float, p_value: float | None, p_tied: float | None, confidence: float = CONFIDENCE) -> str:
    """Judge a difference.

    Args:
        difference: Sparse minus dense.
        p_value: Two-sided, for the difference 0; None where nothing is known of the spread.
        p_tied: For a difference of the margin or more, see `sah.metrics.compare`.
        confidence: Of the interval that the p-values belong to.

    Returns:
        `TIED` where the interval lies within the margin, even if it leaves out 0: a difference that small counts as
        none. Else `BETTER` or `WORSE` where it leaves out 0, else `UNDECIDED`.
    """
    error = 1 - confidence
    if p_tied is not None and p_tied <= error:
        return TIED
    if p_value is not None and p_value <= error and difference != 0:
        return BETTER if difference > 0 else WORSE
    return UNDECIDED


@dataclass(frozen=True)
class Claim:
    """One comparison of a sweep."""

    difference: float
    p_value: float | None
    p_tied: float | None


@dataclass(frozen=True)
class Corrected:
    """What is left of a claim among all of its sweep."""

    p_value: float | None
    p_tied: float | None
    verdict: str


def correct(claims: Sequence[Claim], confidence: float = CONFIDENCE) -> list[Corrected]:
    """Correct the verdicts of one sweep for being many.

    Holm's step-down method (Scand. J. Statist. 6, 1979), once over the p-values for no difference and once over those
    for a difference beyond the margin. So the probability that any `better` or `worse` of the sweep is wrong is at most
    1 - confidence, and the probability that any `tied` is wrong as well. Holm's method holds however the comparisons
    depend on each other, and those of a sweep do: they share their contexts and the dense answers. Methods that find
    more under independence, or that bound only the share of wrong claims, would promise less than a table of verdicts
    says.

    Args:
        claims: One a comparison. Those without p-values claim nothing and count for nothing.
        confidence: As for the verdicts of single comparisons.

    Returns:
        In the same order. A verdict that does not survive becomes `UNDECIDED`; a `tied` that does not, but whose
        difference from 0 does, becomes `better` or `worse`.
    """
    differences = holm([claim.p_value for claim in claims])
    ties = holm([claim.p_tied for claim in claims])
    return [
        Corrected(p_value, p_tied, verdict(claim.difference, p_value, p_tied, confidence))
        for claim, p_value, p_tied in zip(claims, differences, ties, strict=True)
    ]


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjust p-values by Holm's method.

    Args:
        p_values: None stands for a test that was not done.

    Returns:
        Adjusted values in the same order, at most 1; None stays None.
    """
    known = sorted((p_value, place) for place, p_value in enumerate(p_values) if p_value is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for done, (p_value, place) in enumerate(known):
        largest = max(largest, min(1.0, p_value * (len(known) - done)))
        adjusted[place] = largest
    return adjusted
