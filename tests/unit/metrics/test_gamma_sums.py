from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from sah.metrics.gamma_sums import probability_positive


def positive(weights: list[float], shapes: list[float]) -> float:
    return probability_positive(np.array(weights), np.array(shapes))


@pytest.mark.parametrize("down", [1, 2, 7, 40, 400])
@pytest.mark.parametrize("up", [0, 1, 5, 60])
def test_two_terms_are_the_sign_test(up: int, down: int) -> None:
    """P(Gamma(up + 1) > Gamma(down)) = P(Binomial(up + down, 1/2) <= up), also where that is 1e-100."""
    wanted = float(stats.binom.cdf(up, up + down, 0.5))
    assert positive([-1.0, 1.0], [down, up + 1]) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("count", [2, 3, 11, 300, 1000])
@pytest.mark.parametrize("share", [1e-4, 0.01, 0.1, 0.5, 0.9, 0.999])
def test_two_terms_are_a_beta_distribution(share: float, count: int) -> None:
    for hits in {0, count // 10, count // 2, count - 1}:
        wanted = float(stats.beta.sf(share, hits + 1, count - hits))
        assert positive([1 - share, -share], [hits + 1, count - hits]) == pytest.approx(wanted, rel=1e-6, abs=1e-12)


def test_many_terms_agree_with_drawing_them() -> None:
    rng = np.random.default_rng(0)
    for count in (3, 20, 100):
        weights = rng.normal(-0.2, 1, count)
        drawn = float(np.mean(rng.exponential(size=(100_000, count)) @ weights > 0))
        assert probability_positive(weights, np.ones(count)) == pytest.approx(drawn, abs=0.006)


def test_scale_does_not_matter_and_equal_terms_may_be_counted() -> None:
    alone = positive([-1.0, -1.0, -1.0, 0.5, 0.5, 2.0], [1.0] * 6)
    assert 0 < alone < 1
    assert positive([-1e9, 0.5e9, 2e9], [3, 2, 1]) == pytest.approx(alone, rel=1e-9)
    assert positive([-1e-9, 0.5e-9, 2e-9, 0.0], [3, 2, 1, 5]) == pytest.approx(alone, rel=1e-9)


def test_the_ends() -> None:
    assert positive([-1.0, 0.0], [1, 1]) == 0.0
    assert positive([0.0, 0.0], [1, 1]) == 0.0
    assert positive([1.0, 0.0], [1, 1]) == 1.0
    assert positive([1.0, -0.05], [1, 1e6]) == 0.0
    assert positive([-1.0, 0.05], [1, 1e6]) == 1.0
