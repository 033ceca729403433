"""The Pareto set against its definition."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sah.metrics.pareto import pareto_front

# Few values, so that ties and equal points are common.
VALUES = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(-1e6, 1e6))


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[tuple[float, ...]], list[str]]:
    directions = draw(st.lists(st.sampled_from(["maximize", "minimize"]), min_size=1, max_size=3))
    points = draw(st.lists(st.tuples(*[VALUES] * len(directions)), max_size=12))
    return points, directions


def better(one: float, other: float, direction: str) -> bool:
    return one > other if direction == "maximize" else one < other


@given(problems())
def test_a_point_is_in_the_set_if_and_only_if_none_dominates_it(problem):
    points, directions = problem
    front = pareto_front(points, directions)
    assert front == sorted(set(front))
    for place, mine in enumerate(points):
        beaten = False
        for other in points:
            nowhere_worse = not any(better(m, o, d) for m, o, d in zip(mine, other, directions, strict=True))
            somewhere_better = any(better(o, m, d) for m, o, d in zip(mine, other, directions, strict=True))
            beaten |= nowhere_worse and somewhere_better
        assert (place in front) == (not beaten)


@given(problems())
def test_every_point_outside_is_dominated_by_one_inside(problem):
    points, directions = problem
    front = pareto_front(points, directions)
    assert bool(front) == bool(points)
    for place, mine in enumerate(points):
        inside = [points[chosen] for chosen in front]
        assert place in front or any(
            not any(better(m, o, d) for m, o, d in zip(mine, other, directions, strict=True)) for other in inside
        )


def test_equal_points_are_in_the_set_together():
    points = [(1.0, 0.1), (1.0, 0.1), (0.5, 0.1), (1.0, 0.2), (0.0, 0.01)]
    assert pareto_front(points, ["maximize", "minimize"]) == [0, 1, 4]


def test_one_objective_gives_all_that_are_best():
    assert pareto_front([(0.0,), (1.0,), (1.0,)], ["maximize"]) == [1, 2]


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="upwards"):
        pareto_front([(1.0,)], ["upwards"])
    with pytest.raises(ValueError):
        pareto_front([(1.0, 2.0)], ["maximize"])
