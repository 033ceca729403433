"""Intervals and one-sided p-values for a mean of scores that come in clusters (the questions of one context).

Questions about one context rise and fall together, so contexts are what is drawn independently, not questions (Miller,
Adding error bars to evals, arXiv 2411.00640). The mean is that over all values: sum of the clusters' sums over sum of
their sizes. No random numbers are drawn: the same values give the same figures, in any order.

**Scores with bounds**: Gaffke's bound (Gaffke, Three test statistics for a nonparametric one-sided hypothesis on the
mean of a nonnegative variable, Math. Methods Stat. 14, 2005; Learned-Miller and Thomas, arXiv 1905.06208), taken over
clusters: each gets a weight from the flat Dirichlet distribution, and one more cluster, as large as the largest, lies
at the bound itself. It stands for what was not seen, so that equal values give no interval of width zero: no differing
pair among G contexts gives 0 +- 3.7 / G. For single binary scores it is Clopper and Pearson's interval, and for
differences of paired binary scores its p-value for 0 is the exact McNemar (sign) test. That it covers for every
distribution within the bounds is a conjecture (of the second paper, for independent values), which the simulation
below supports for clusters. Differences of scores in [0, 1] have the bounds -1 and 1. The price: scores that all lie
close together get a wider interval than Student's, since a rare large loss might have gone unseen.

**Scores without bounds**: the mean plus or minus Student's t times the jackknife's standard error over the G clusters,
as MacKinnon, Nielsen and Webb advise for few or unequal clusters (Cluster-robust inference: a guide to empirical
practice, J. Econometrics 232, 2023; arXiv 2205.03285). The degrees of freedom are G - 1 for equal sizes, and one less
than the effective number of clusters, (sum of sizes)^2 / sum of sizes^2, for others (the idea of Carter, Schnepel and
Steigerwald, Rev. Econ. Stat. 99, 2017). It knows nothing of what was not seen: rare large values make it cover less.

The usual clustered bootstrap was not taken: with few clusters its intervals are too narrow (Cameron, Gelbach and
Miller, Rev. Econ. Stat. 90, 2008), and with equal values they have width zero.

Shares of 95 % intervals that held the true mean in simulation (`pytest -s -m slow tests/unit/metrics/test_coverage.py`;
3 to 50 contexts of 1 to 20 questions, rare and frequent losses, binary and continuous scores), the lowest case of each
kind: 0.97 for scores with bounds, 0.94 for symmetric values without bounds, 0.82 for lognormal ones. Where the contexts
with many questions are few and also lose more, scores with bounds had 0.90 at 11 contexts: a sample without such a
context knows nothing of it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ndtri, stdtr, stdtrit

from sah.metrics.gamma_sums import probability_positive
from sah.metrics.verdict import CONFIDENCE

Bounds = tuple[float, float]
"""Least and greatest value that a score can have; an infinite one counts as none."""

_TINY = 1e-300
_ROUNDING = 1e-9
_FEWEST = 1.5
"""Effective clusters below which Student's t says nothing."""


@dataclass(frozen=True)
class MeanInterval:
    """A mean with its confidence interval."""

    mean: float
    low: float | None
    """None, as `high`, where the values tell nothing of their spread: one cluster, or equal values without bounds."""

    high: float | None
    values: int
    clusters: int


class ClusteredMean(ABC):
    """The mean of clustered values, and how likely values like these are if the true mean lies elsewhere.

    Args:
        values: Finite numbers.
        clusters: For each value the cluster it belongs to; two or more clusters.
    """

    def __init__(self, values: Sequence[float], clusters: Sequence[Hashable]) -> None:
        members: dict[Hashable, list[float]] = {}
        for value, cluster in zip(values, clusters, strict=True):
            members.setdefault(cluster, []).append(float(value))
        # Exact sums, and sorted by value below: the order of rows changes no digit.
        pairs = [(math.fsum(group), len(group)) for group in members.values()]
        self.clusters = len(pairs)
        self.mean = math.fsum(total for total, _ in pairs) / sum(size for _, size in pairs)
        distinct, counts = np.unique(np.array(pairs, dtype=np.float64), axis=0, return_counts=True)
        self._sums, self._sizes = distinct.T
        self._counts = counts.astype(np.float64)

    @abstractmethod
    def p_at_least(self, value: float, growth: float = 1.0) -> float:
        """Test that the true mean is `value` or more.

        Args:
            value: A possible mean.
            growth: Test as if there were this many times as many clusters, like those that there are.

        Returns:
            The one-sided p-value; small where the values lie below.
        """

    @abstractmethod
    def p_at_most(self, value: float, growth: float = 1.0) -> float:
        """Test that the true mean is `value` or less; arguments and result as for `p_at_least`."""

    @abstractmethod
    def limits(self, confidence: float) -> tuple[float, float]:
        """Compute the two-sided interval: all means that neither one-sided test refuses at half the error."""


class BoundedMean(ClusteredMean):
    """By Gaffke's bound; see the module.

    Args:
        values: Numbers within the bounds.
        clusters: For each value its cluster; two or more of them.
        bounds: Finite.
    """

    def __init__(self, values: Sequence[float], clusters: Sequence[Hashable], bounds: Bounds) -> None:
        super().__init__(values, clusters)
        self._low, self._high = bounds

    def p_at_least(self, value: float, growth: float = 1.0) -> float:
        """See `ClusteredMean`."""
        return self._tail(value, self._high, 1.0, growth)

    def p_at_most(self, value: float, growth: float = 1.0) -> float:
        """See `ClusteredMean`."""
        return self._tail(value, self._low, -1.0, growth)

    def limits(self, confidence: float) -> tuple[float, float]:
        """See `ClusteredMean`."""
        error = (1 - confidence) / 2
        return self._limit(self.p_at_most, self._low, error), self._limit(self.p_at_least, self._high, error)

    def _tail(self, value: float, bound: float, sign: float, growth: float) -> float:
        """Probability that the weighted mean, the cluster at the bound among them, lies beyond `value`."""
        weights = sign * np.append(self._sums - self._sizes * value, self._sizes.max() * (bound - value))
        return probability_positive(weights, np.append(self._counts * growth, 1.0))

    def _limit(self, p_value: Callable[[float], float], bound: float, error: float) -> float:
        if abs(self.mean - bound) <= _ROUNDING:
            return bound
        target = ndtri(error)

        # Nearly straight on this scale, so that few steps find the root.
        def distance(value: float) -> float:
            return float(ndtri(max(p_value(value), _TINY)) - target)

        return float(brentq(distance, self.mean, bound, xtol=1e-7 * abs(bound - self.mean)))


class UnboundedMean(ClusteredMean):
    """By Student's t over the jackknife's standard error; see the module. Equal values have none, which is 0 here."""

    def __init__(self, values: Sequence[float], clusters: Sequence[Hashable]) -> None:
        super().__init__(values, clusters)
        total, size = self._counts @ self._sums, self._counts @ self._sizes
        without: NDArray[np.float64] = (total - self._sums) / (size - self._sizes)
        spread = self._counts @ (without - self.mean) ** 2 * (self.clusters - 1) / self.clusters
        self.standard_error = math.sqrt(spread)
        self.effective = float(size**2 / (self._counts @ self._sizes**2))

    def p_at_least(self, value: float, growth: float = 1.0) -> float:
        """See `ClusteredMean`."""
        return self._tail(self.mean - value, growth)

    def p_at_most(self, value: float, growth: float = 1.0) -> float:
        """See `ClusteredMean`."""
        return self._tail(value - self.mean, growth)

    def limits(self, confidence: float) -> tuple[float, float]:
        """See `ClusteredMean`."""
        half = float(stdtrit(self.effective - 1, (1 + confidence) / 2)) * self.standard_error
        return self.mean - half, self.mean + half

    def _tail(self, distance: float, growth: float) -> float:
        return float(stdtr(self.effective * growth - 1, distance * math.sqrt(growth) / self.standard_error))


def clustered_mean(
    values: Sequence[float], clusters: Sequence[Hashable], bounds: Bounds | None
) -> BoundedMean | UnboundedMean | None:
    """Choose the method.

    Args:
        values: Numbers.
        clusters: For each value its cluster.
        bounds: Of a value; None where there are none.

    Returns:
        The mean with its tests; None where the values tell nothing of their spread: fewer than two clusters, values
        that are not finite, or, without bounds, clusters that are all alike or of which one outweighs the others.

    Raises:
        ValueError: If a value lies outside the bounds.
    """
    if len(set(clusters)) < 2 or not all(map(math.isfinite, values)):
        return None
    if bounds is not None:
        low, high = bounds
        slack = _ROUNDING * max(1.0, abs(low), abs(high)) if math.isfinite(low) and math.isfinite(high) else 0.0
        if min(values) < low - slack or max(values) > high + slack:
            raise ValueError(f"values from {min(values)} to {max(values)} lie outside their bounds {low} to {high}")
        if slack:
            return BoundedMean([min(max(value, low), high) for value in values], clusters, bounds)
    sample = UnboundedMean(values, clusters)
    # Clusters alike but for rounding tell no more of their spread than equal ones, and one that outweighs all others no
    # more than one alone.
    tells = sample.standard_error > _ROUNDING * max(map(abs, values)) and sample.effective >= _FEWEST
    return sample if tells else None


def average(values: Sequence[float]) -> float:
    """Average one or more values, the same for any order of them; not finite where one of them is not."""
    return (math.fsum(values) if all(map(math.isfinite, values)) else sum(values)) / len(values)


def mean_interval(
    values: Sequence[float],
    clusters: Sequence[Hashable],
    bounds: Bounds | None = (0.0, 1.0),
    confidence: float = CONFIDENCE,
) -> MeanInterval:
    """Compute the mean of clustered values with its confidence interval.

    Args:
        values: One or more numbers.
        clusters: For each value the cluster (context) it belongs to.
        bounds: Least and greatest possible value, None where there are none; with one of them infinite the method is
            that for no bounds, and the interval is cut at the other.
        confidence: Above 0, below 1.

    Returns:
        The interval.

    Raises:
        ValueError: If there is no value, or one outside the bounds.
    """
    if not values:
        raise ValueError("a mean needs a value")
    sample = clustered_mean(values, clusters, bounds)
    low: float | None = None
    high: float | None = None
    if sample is not None:
        low, high = sample.limits(confidence)
        if bounds is not None:
            low, high = max(low, bounds[0]), min(high, bounds[1])
    return MeanInterval(average(values), low, high, len(values), len(set(clusters)))
