"""The Pareto set: what no other point beats in every objective."""

from __future__ import annotations

from collections.abc import Sequence

MAXIMIZE, MINIMIZE = DIRECTIONS = ("maximize", "minimize")


def pareto_front(points: Sequence[Sequence[float]], directions: Sequence[str]) -> list[int]:
    """Find the points that no other point dominates.

    A point dominates another one if it is at least as good in every objective and better in one. Points with the same
    values do not dominate each other: all of them are in the set, or none.

    Args:
        points: The values of each point, one an objective, all of them finite.
        directions: For each objective `maximize` or `minimize`.

    Returns:
        Places of the points in the set, in the order given.

    Raises:
        ValueError: If a direction is neither, or a point has another number of values than there are directions.
    """
    for direction in directions:
        if direction not in DIRECTIONS:
            raise ValueError(f"the direction {direction!r} is none of {', '.join(DIRECTIONS)}")
    costs = []
    for values in points:
        pairs = zip(values, directions, strict=True)
        costs.append(tuple(-value if direction == MAXIMIZE else value for value, direction in pairs))
    return [place for place, cost in enumerate(costs) if not any(_dominates(other, cost) for other in costs)]


def _dominates(cost: Sequence[float], other: Sequence[float]) -> bool:
    return cost != other and all(mine <= theirs for mine, theirs in zip(cost, other, strict=True))
