"""How often 95 % intervals hold the true mean, by simulation. With `pytest -s` the long form prints its figures."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from sah.metrics.interval import BoundedMean, ClusteredMean, UnboundedMean

Values = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], Values]
"""Makes the values of one context from its count of questions."""

ERROR = 0.05
CLUSTERS = (3, 5, 11, 50)

SIZES: dict[str, Callable[[np.random.Generator, int], NDArray[np.int64]]] = {
    "one question": lambda rng, count: np.ones(count, np.int64),
    "four questions": lambda rng, count: np.full(count, 4, np.int64),
    "1 to 8 questions": lambda rng, count: rng.integers(1, 9, count),
    "1 or 20 questions": lambda rng, count: np.where(rng.random(count) < 0.15, 20, 1),
}


def all_worse(share: float) -> Draw:
    """Whole contexts are lost."""
    return lambda rng, size: np.full(size, -float(rng.random() < share))


def some_worse(share: float) -> Draw:
    """Single questions are lost."""
    return lambda rng, size: -(rng.random(size) < share).astype(float)


def either_way(rng: np.random.Generator, size: int) -> Values:
    """One question in a hundred is lost, and another one won."""
    place = rng.random(size)
    return (place < 0.01).astype(float) - (place > 0.99)


def two_binary_scores(rng: np.random.Generator, size: int) -> Values:
    """Dense answers 0.7 of the questions, sparse 0.3 of them in one half of the contexts and 0.9 in the other."""
    share = 0.3 if rng.random() < 0.5 else 0.9
    return (rng.random(size) < share).astype(float) - (rng.random(size) < 0.7)


def small_changes(rng: np.random.Generator, size: int) -> Values:
    """Continuous scores: contexts differ by a sigma of 0.15, their questions by 0.1."""
    return np.clip(rng.normal(0, 0.15) + rng.normal(0, 0.1, size), -1, 1)


def skewed_losses(rng: np.random.Generator, size: int) -> Values:
    """Continuous scores: mostly none is lost, now and then much."""
    return -rng.beta(0.2, 2, size) * rng.random()


BOUNDED: dict[str, tuple[Draw, float]] = {
    "0.02 of contexts lost": (all_worse(0.02), -0.02),
    "0.02 of questions lost": (some_worse(0.02), -0.02),
    "0.3 of contexts lost": (all_worse(0.3), -0.3),
    "0.5 of contexts lost": (all_worse(0.5), -0.5),
    "rarely either way": (either_way, 0.0),
    "two binary scores": (two_binary_scores, -0.1),
    "small changes": (small_changes, 0.0),
    "skewed losses": (skewed_losses, -0.5 * 0.2 / 2.2),
}

SYMMETRIC: dict[str, tuple[Draw, float]] = {
    "normal": (lambda rng, size: rng.normal(size=size), 0.0),
    "normal by context": (lambda rng, size: rng.normal() + 0.3 * rng.normal(size=size), 0.0),
    "Laplace": (lambda rng, size: rng.laplace(size=size), 0.0),
}
SKEWED: dict[str, tuple[Draw, float]] = {
    "lognormal by context": (lambda rng, size: np.full(size, math.exp(rng.normal())), math.exp(0.5))
}


def sample(rng: np.random.Generator, draw: Draw, sizes: NDArray[np.int64], *, bounded: bool) -> ClusteredMean:
    """One study."""
    values = np.concatenate([draw(rng, int(size)) for size in sizes]).tolist()
    contexts = np.repeat(np.arange(len(sizes)), sizes).tolist()
    return BoundedMean(values, contexts, (-1.0, 1.0)) if bounded else UnboundedMean(values, contexts)


def coverage(
    draw: Draw, true: float, sizes: str, clusters: int, studies: int, *, bounded: bool, seed: int = 0
) -> float:
    """Share of studies whose interval holds the true mean: neither one-sided test at half the error refuses it."""
    rng = np.random.default_rng(seed)
    held = 0
    for _ in range(studies):
        study = sample(rng, draw, SIZES[sizes](rng, clusters), bounded=bounded)
        held += min(study.p_at_least(true), study.p_at_most(true)) > ERROR / 2
    return held / studies


def least(nominal: float, studies: int) -> float:
    """What a share from so many studies exceeds in all but 1 of 1,000 cases."""
    return nominal - 3.1 * math.sqrt(nominal * (1 - nominal) / studies)


@pytest.mark.parametrize("clusters", CLUSTERS)
@pytest.mark.parametrize(
    "name", ["0.02 of contexts lost", "0.3 of contexts lost", "two binary scores", "small changes"]
)
def test_intervals_of_scores_cover(name: str, clusters: int) -> None:
    draw, true = BOUNDED[name]
    assert coverage(draw, true, "1 to 8 questions", clusters, 150, bounded=True) >= least(1 - ERROR, 150)


@pytest.mark.parametrize("clusters", CLUSTERS)
def test_intervals_without_bounds_cover(clusters: int) -> None:
    draw, true = SYMMETRIC["normal by context"]
    assert coverage(draw, true, "1 to 8 questions", clusters, 400, bounded=False) >= least(0.935, 400)


@pytest.mark.slow
def test_coverage_at_length() -> None:
    studies = 1000
    cases = [
        *(("scores", name, case, True, 1 - ERROR) for name, case in BOUNDED.items()),
        *(("symmetric, no bounds", name, case, False, 0.93) for name, case in SYMMETRIC.items()),
        *(("skewed, no bounds", name, case, False, 0.78) for name, case in SKEWED.items()),
    ]
    lowest: dict[str, tuple[float, str]] = {}
    for kind, name, (draw, true), bounded, floor in cases:
        for sizes in SIZES:
            for clusters in CLUSTERS:
                share = coverage(draw, true, sizes, clusters, studies, bounded=bounded)
                told = f"{name}, {sizes}, {clusters} contexts"
                print(f"{kind}: {told}: {share:.3f}")
                lowest[kind] = min(lowest.get(kind, (1.0, "")), (share, told))
                assert share >= least(floor, studies), told
    print("lowest:", lowest)


@pytest.mark.slow
def test_losses_that_come_with_the_size_of_a_context_are_covered_less() -> None:
    """The limit that the module tells of: what makes a context large also makes it bad, and few are large."""

    def draw(rng: np.random.Generator, size: int) -> Values:
        return some_worse(0.5 if size > 4 else 0.05)(rng, size)

    true = -(0.15 * 20 * 0.5 + 0.85 * 0.05) / (0.15 * 20 + 0.85)
    shares = {count: coverage(draw, true, "1 or 20 questions", count, 2000, bounded=True) for count in CLUSTERS}
    print(shares)
    assert min(shares.values()) >= least(0.88, 2000)
    assert shares[50] >= least(1 - ERROR, 2000)
