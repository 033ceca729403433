from __future__ import annotations

import math
import random

import pytest
from scipy import stats

from sah.metrics.interval import BoundedMean, UnboundedMean, clustered_mean, mean_interval


@pytest.mark.parametrize(("hits", "count"), [(0, 11), (1, 11), (5, 11), (11, 11), (3, 200)])
def test_single_binary_scores_have_the_interval_of_clopper_and_pearson(hits: int, count: int) -> None:
    found = mean_interval([1.0] * hits + [0.0] * (count - hits), range(count))
    wanted = stats.binomtest(hits, count).proportion_ci(method="exact")
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=1e-6)
    assert (found.mean, found.values, found.clusters) == (pytest.approx(hits / count), count, count)


@pytest.mark.parametrize(("down", "up", "equal"), [(6, 0, 5), (9, 2, 40), (1, 1, 3), (0, 30, 0)])
def test_paired_binary_scores_have_the_exact_mcnemar_test(down: int, up: int, equal: int) -> None:
    values = [-1.0] * down + [1.0] * up + [0.0] * equal
    sample = BoundedMean(values, range(len(values)), (-1.0, 1.0))
    p_value = min(1.0, 2 * min(sample.p_at_least(0.0), sample.p_at_most(0.0)))
    assert p_value == pytest.approx(stats.binomtest(down, down + up).pvalue, rel=1e-6)


def test_a_limit_is_where_the_test_begins_to_refuse() -> None:
    values, clusters = [0.3, 0.9, 0.4, 0.45, 0.8], ["a", "a", "b", "c", "c"]
    sample = BoundedMean(values, clusters, (0.0, 1.0))
    low, high = sample.limits(0.9)
    assert sample.p_at_least(high) == pytest.approx(0.05, rel=1e-4)
    assert sample.p_at_most(low) == pytest.approx(0.05, rel=1e-4)
    assert sample.mean == pytest.approx(0.57) and low < sample.mean < high


def test_without_bounds_and_one_value_a_context_it_is_students_interval() -> None:
    values = [-1.2, -0.7, -3.1, -2.0]
    found = mean_interval(values, range(4), None)
    wanted = stats.ttest_1samp(values, 0).confidence_interval()
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))
    cut = mean_interval([0.1, 0.2, 1.5], range(3), (0.0, math.inf))
    assert cut.low == 0.0 and cut.high is not None and cut.high > 1.5


def test_questions_of_one_context_are_no_new_contexts() -> None:
    once = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0]
    for bounds in ((0.0, 1.0), None):
        alone = mean_interval(once, range(6), bounds)
        repeated = mean_interval(once * 5, list(range(6)) * 5, bounds)
        assert (repeated.low, repeated.high) == pytest.approx((alone.low, alone.high))
        assert repeated.clusters == 6 and repeated.values == 30


def test_the_order_of_rows_changes_no_digit() -> None:
    rng = random.Random(0)
    rows = [(rng.random(), f"context {rng.randrange(9)}") for _ in range(60)]
    shuffled = rng.sample(rows, len(rows))
    renamed = [(value, "other " + context[::-1]) for value, context in shuffled]
    for bounds in ((0.0, 1.0), None):
        found = {
            mean_interval([value for value, _ in rows_], [context for _, context in rows_], bounds)
            for rows_ in (rows, shuffled, renamed)
        }
        assert len(found) == 1


def test_what_tells_nothing_of_the_spread_has_no_interval() -> None:
    one = mean_interval([0.5, 1.0], ["a", "a"])
    assert (one.mean, one.low, one.high, one.clusters) == (0.75, None, None, 1)
    equal = mean_interval([-1.5, -1.5, -1.5], range(3), None)
    assert (equal.mean, equal.low, equal.high) == (-1.5, None, None)
    rounding = mean_interval([0.1 + 0.2, 0.3, 0.3], range(3), None)
    assert rounding.low is None
    outweighed = mean_interval([1.0, *[-1.0] * 500], [0] + [1] * 500, None)
    assert (outweighed.low, outweighed.clusters) == (None, 2)
    broken = mean_interval([0.5, math.nan, 1.0], range(3), None)
    assert math.isnan(broken.mean) and broken.low is None
    infinite = mean_interval([-math.inf, -1.0], range(2), None)
    assert infinite.mean == -math.inf and infinite.low is None


def test_equal_scores_with_bounds_have_an_interval_all_the_same() -> None:
    found = mean_interval([0.0] * 11, range(11), (-1.0, 1.0))
    reach = 1 - 0.025 ** (1 / 11)
    assert (found.low, found.high) == pytest.approx((-reach, reach), abs=1e-6)
    full = mean_interval([1.0] * 11, range(11))
    assert (full.low, full.high) == (pytest.approx(1 - reach, abs=1e-6), 1.0)


def test_values_outside_their_bounds_are_refused_and_rounding_is_not() -> None:
    with pytest.raises(ValueError, match="outside their bounds"):
        mean_interval([0.5, 1.2], range(2))
    assert mean_interval([1.0 + 1e-12, 0.5], range(2)).high is not None
    with pytest.raises(ValueError, match="needs a value"):
        mean_interval([], [])


def test_unequal_contexts_count_for_less_without_bounds() -> None:
    sizes = [6, 1, 1, 1]
    values = [value for size, mean in zip(sizes, (0.3, -0.5, 0.2, 0.1), strict=True) for value in [mean] * size]
    clusters = [context for context, size in enumerate(sizes) for _ in range(size)]
    sample = clustered_mean(values, clusters, None)
    assert isinstance(sample, UnboundedMean)
    low, high = sample.limits(0.95)
    naive = stats.ttest_1samp(values, 0).confidence_interval()
    assert high - low > 3 * (naive.high - naive.low)
