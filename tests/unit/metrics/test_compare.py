from __future__ import annotations

import dataclasses
import json
import math
import random
import time

import pytest
from scipy import stats

from sah.metrics.compare import MARGIN, Comparison, compare_scores, needed_alike
from sah.metrics.verdict import BETTER, TIED, UNDECIDED, VERDICTS, WORSE


def pairs(lost: int, won: int, equal: int) -> Comparison:
    """Binary scores, one question a context."""
    dense = [1.0] * lost + [0.0] * won + [1.0] * equal
    sparse = [0.0] * lost + [1.0] * won + [1.0] * equal
    return compare_scores(dense, sparse, range(len(dense)))


def test_a_clear_loss_and_a_clear_gain() -> None:
    loss = pairs(29, 0, 3)
    assert loss.verdict == WORSE and loss.high is not None and loss.high < 0
    assert (loss.dense, loss.sparse) == (1.0, 3 / 32)
    assert (loss.difference, loss.pairs, loss.contexts) == (pytest.approx(-29 / 32), 32, 32)
    assert loss.contexts_needed is None and loss.questions_needed is None
    gain = pairs(0, 29, 3)
    assert gain.verdict == BETTER
    assert (gain.low, gain.high) == pytest.approx((-(loss.high or 0), -(loss.low or 0)))
    assert gain.p_value == pytest.approx(stats.binomtest(29, 29).pvalue, rel=1e-6)


def test_no_difference_among_few_is_not_called_a_tie() -> None:
    found = pairs(0, 0, 11)
    assert (found.difference, found.p_value, found.verdict) == (0.0, 1.0, UNDECIDED)
    assert (found.low, found.high) == pytest.approx((-0.285, 0.285), abs=1e-3)


def test_what_would_settle_it_settles_it() -> None:
    needed = pairs(0, 0, 11).contexts_needed
    assert needed == 72 == math.ceil(math.log(0.025) / math.log(1 - MARGIN))
    assert pairs(0, 0, needed).verdict == TIED
    assert pairs(0, 0, needed - 1).verdict == UNDECIDED
    unclear = pairs(3, 0, 29)
    assert unclear.verdict == UNDECIDED and unclear.contexts_needed == unclear.questions_needed == 57
    times = 2
    assert pairs(3 * times, 0, 29 * times).verdict == WORSE


def test_what_would_settle_it_among_many_settles_it_there() -> None:
    sixth = 1 - 0.05 / 6
    tie = pairs(0, 0, 32)
    needed = needed_alike(tie.outcomes, tie.span, tie.margin, sixth)
    assert needed == (107, 107) == (math.ceil(math.log(0.05 / 12) / math.log(1 - MARGIN)),) * 2
    assert 6 * (pairs(0, 0, 107).p_tied or 1) <= 0.05 < 6 * (pairs(0, 0, 106).p_tied or 1)
    assert 6 * (pairs(0, 0, tie.contexts_needed or 0).p_tied or 1) > 0.05, "enough alone is not enough here"
    loss = pairs(6, 0, 26)
    assert loss.verdict == WORSE and loss.contexts_needed is None
    assert (loss.outcomes, loss.span) == (((-1.0, 1, 6), (0.0, 1, 26)), (-1.0, 1.0))
    contexts, questions = needed_alike(loss.outcomes, loss.span, loss.margin, sixth) or (0, 0)
    assert 32 < contexts == questions <= 64 and 6 * (pairs(12, 0, 52).p_value or 1) <= 0.05
    assert needed_alike(loss.outcomes, loss.span, loss.margin, 0.95) is None, "nothing is missing"
    assert needed_alike((), None, MARGIN, 0.95) is None
    stored = json.loads(
        json.dumps(dataclasses.asdict(compare_scores([1.0] * 20, [1.0] * 20, [n // 4 for n in range(20)])))
    )
    assert needed_alike(stored["outcomes"], stored["span"], MARGIN, 0.95) == (72, 288)


@pytest.mark.parametrize("bounds", [(0.0, 1.0), None])
def test_what_a_comparison_keeps_of_its_contexts_tells_the_same(bounds: tuple[float, float] | None) -> None:
    rng = random.Random(3)
    open_ones = 0
    for _ in range(20):
        contexts = sorted(rng.randrange(12) for _ in range(40))
        dense = [rng.random() for _ in contexts]
        found = compare_scores(
            dense, [min(1.0, max(0.0, d + rng.gauss(0, 0.2))) for d in dense], contexts, bounds=bounds
        )
        if found.contexts_needed is not None:
            open_ones += 1
            assert needed_alike(found.outcomes, found.span, found.margin, found.confidence) == (
                found.contexts_needed,
                found.questions_needed,
            )
    assert open_ones > 5


def test_intervals_of_both_scores_are_of_the_same_questions() -> None:
    found = pairs(6, 0, 26)
    assert found.dense_low == pytest.approx(0.025 ** (1 / 32)) and found.dense_high == 1.0
    assert found.sparse_low is not None and found.sparse_high is not None
    assert found.sparse_low < 26 / 32 < found.sparse_high < 1


def test_questions_needed_are_those_of_the_contexts() -> None:
    found = compare_scores([1.0] * 20, [1.0] * 20, [place // 4 for place in range(20)])
    assert (found.pairs, found.contexts) == (20, 5)
    assert (found.contexts_needed, found.questions_needed) == (72, 288)


def test_a_margin_of_nothing_never_ties_and_a_wide_one_always_does() -> None:
    strict = compare_scores([1.0] * 100, [1.0] * 100, range(100), margin=0.0)
    assert (strict.verdict, strict.contexts_needed) == (UNDECIDED, None)
    wide = compare_scores([1.0] * 100, [1.0] * 100, range(100), margin=1.0)
    assert wide.verdict == TIED
    one = compare_scores([1.0, 0.0], [1.0, 1.0], range(2), margin=1.0)
    assert one.verdict in VERDICTS


def test_a_small_but_certain_difference_within_the_margin_is_a_tie() -> None:
    dense = [0.5] * 2000
    sparse = [0.48] * 2000
    found = compare_scores(dense, sparse, range(2000))
    assert found.p_value is not None and found.p_value < 1e-6 and found.high is not None and found.high < 0
    assert found.verdict == TIED


@pytest.mark.parametrize("bounds", [(0.0, 1.0), None])
def test_verdict_interval_and_p_values_agree(bounds: tuple[float, float] | None) -> None:
    rng = random.Random(1)
    seen = set()
    for _ in range(60):
        count = rng.choice([2, 5, 20, 120])
        shift = rng.choice([-0.3, -0.05, 0.0, 0.0, 0.2])
        dense = [rng.uniform(0.3, 0.7) for _ in range(count)]
        sparse = [min(1.0, max(0.0, value + rng.gauss(shift, 0.03))) for value in dense]
        found = compare_scores(dense, sparse, range(count), bounds=bounds)
        assert None not in (found.low, found.high, found.p_value, found.p_tied)
        low, high = found.low or 0.0, found.high or 0.0
        assert low <= found.difference <= high
        assert (found.p_value or 0.0) <= 0.05 if low > 0 or high < 0 else (found.p_value or 0.0) > 0.05
        inside = low >= -MARGIN and high <= MARGIN
        assert found.verdict == (TIED if inside else BETTER if low > 0 else WORSE if high < 0 else UNDECIDED)
        assert (found.contexts_needed is None) == (found.verdict != UNDECIDED)
        assert found.contexts_needed is None or found.contexts_needed > count
        seen.add(found.verdict)
    assert seen == set(VERDICTS)


def test_one_context_gives_no_interval() -> None:
    found = compare_scores([1.0, 1.0], [0.0, 0.0], ["a", "a"])
    assert found.verdict == UNDECIDED and found.difference == -1.0
    assert [found.low, found.high, found.p_value, found.p_tied, found.contexts_needed] == [None] * 5


def test_equal_likelihoods_prove_nothing_without_bounds() -> None:
    found = compare_scores([-2.0, -3.0], [-2.0, -3.0], range(2), bounds=None)
    assert (found.verdict, found.low, found.p_value) == (UNDECIDED, None, None)


def test_the_result_is_plain_data_and_the_order_does_not_matter() -> None:
    rng = random.Random(2)
    rows = [(rng.random(), rng.random(), rng.randrange(7)) for _ in range(40)]
    found = compare_scores(*map(list, zip(*rows, strict=True)))  # type: ignore[arg-type]
    again = compare_scores(*map(list, zip(*rng.sample(rows, 40), strict=True)))  # type: ignore[arg-type]
    assert found == again
    assert json.loads(json.dumps(found.to_json())) == found.to_json()
    with pytest.raises(ValueError):
        compare_scores([1.0], [1.0, 0.0], [0])


def test_a_comparison_takes_milliseconds() -> None:
    """500 points of 100 pairs are to take seconds: 25 of them in well under one, on a loaded machine too."""
    rng = random.Random(3)
    dense = [rng.random() for _ in range(100)]
    start = time.process_time()
    for _ in range(25):
        compare_scores(dense, [min(1.0, value * rng.random() * 2) for value in dense], range(100))
    assert time.process_time() - start < 1.5
