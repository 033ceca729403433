from __future__ import annotations

import pytest
from scipy import stats

from sah.metrics.verdict import BETTER, TIED, UNDECIDED, WORSE, Claim, correct, holm, verdict


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, None, 0.005]) == pytest.approx([0.03, 0.06, 0.06, None, 0.02])
    assert holm([]) == [] and holm([None]) == [None]
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_verdicts() -> None:
    assert verdict(0.2, 0.01, 1.0) == BETTER
    assert verdict(-0.2, 0.01, 1.0) == WORSE
    assert verdict(-0.01, 0.01, 0.001) == TIED
    assert verdict(-0.2, 0.06, 1.0) == verdict(-0.2, None, None) == UNDECIDED


def test_what_does_not_survive_among_many_is_not_claimed() -> None:
    weak, strong = Claim(-0.1, 0.03, 1.0), Claim(-0.9, 1e-9, 1.0)
    tied, barely = Claim(0.0, 1.0, 1e-4), Claim(0.0, 1.0, 0.04)
    small = Claim(-0.02, 1e-5, 0.04)
    unknown = Claim(-1.0, None, None)
    assert [c.verdict for c in correct([weak])] == [WORSE]
    found = correct([weak, strong, tied, barely, small, unknown])
    assert [c.verdict for c in found] == [UNDECIDED, WORSE, TIED, UNDECIDED, WORSE, UNDECIDED]
    assert found[0].p_value == pytest.approx(0.09) and found[-1].p_value is None
    assert found[2].p_tied == pytest.approx(5e-4)


def test_points_without_p_values_do_not_count() -> None:
    assert correct([Claim(-0.1, 0.04, 1.0), *[Claim(-1.0, None, None)] * 9])[0].verdict == WORSE


def test_no_sweep_of_equals_claims_more_than_it_may() -> None:
    """Of 400 sweeps of 10 methods that are like dense, at most one in twenty calls any of them better or worse."""
    rng = stats.uniform.rvs(size=(400, 10), random_state=0)
    alone = sum(any(p <= 0.05 for p in sweep) for sweep in rng)
    claims = [[Claim(0.01, float(p), 1.0) for p in sweep] for sweep in rng]
    corrected = sum(any(c.verdict != UNDECIDED for c in correct(sweep)) for sweep in claims)
    assert alone > 120 and corrected <= 20 + 3 * (400 * 0.05 * 0.95) ** 0.5
