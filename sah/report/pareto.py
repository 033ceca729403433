"""What a search found: its points with the values that were optimised, and which of them are the Pareto set."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table

from sah.metrics.pareto import MAXIMIZE, pareto_front
from sah.report.summary import OBJECTIVES
from sah.report.table import number

_HEADS = {"score": "score", "density": "density measured", "bytes": "KV bytes a token"}
_DIGITS = {"score": 3, "density": 4, "bytes": 0}


@dataclass(frozen=True)
class SearchPoint:
    """A finished point of a search."""

    label: str
    """Its recipe, with the overrides that tell it from others."""

    density_requested: float | None
    values: Mapping[str, float]
    """Objective to value."""

    jobs: int
    """Trials that turned out to be this point."""

    overrides: tuple[str, ...]
    """Of the first of them."""

    point: str
    """Its id."""

    folder: str
    """Where its rows are."""


@dataclass(frozen=True)
class SearchResult:
    """The points of a search.

    Attributes:
        front: The Pareto set, best in the first objective first; points with equal values are all in it.
        dominated: All others, in the order of their trials.
    """

    objectives: tuple[str, ...]
    front: tuple[SearchPoint, ...]
    dominated: tuple[SearchPoint, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the content of `pareto.json`."""
        return {
            "objectives": {name: OBJECTIVES[name] for name in self.objectives},
            "front": [vars(point) for point in self.front],
            "dominated": [vars(point) for point in self.dominated],
        }

    def headline(self) -> str:
        """Say in one line how many points are in the set."""
        wanted = ", ".join(f"{name} ({OBJECTIVES[name]})" for name in self.objectives)
        return f"Pareto set of {wanted}: {len(self.front)} of {len(self.front) + len(self.dominated)} points"


def search_result(points: Sequence[SearchPoint], objectives: Sequence[str]) -> SearchResult:
    """Part points into the Pareto set and the rest.

    Args:
        points: Finished points, each once, with a value for every objective.
        objectives: Names out of `OBJECTIVES`.

    Returns:
        The two parts.
    """
    directions = [OBJECTIVES[name] for name in objectives]
    rows = [[point.values[name] for name in objectives] for point in points]
    front = pareto_front(rows, directions)
    signs = [-1 if direction == MAXIMIZE else 1 for direction in directions]
    ordered = sorted(front, key=lambda place: list(map(operator.mul, signs, rows[place])))
    dominated = [point for place, point in enumerate(points) if place not in front]
    return SearchResult(tuple(objectives), tuple(points[place] for place in ordered), tuple(dominated))


def front_table(result: SearchResult) -> Table:
    """Build the table of the Pareto set for a terminal."""
    table = Table(title=result.headline(), box=box.SIMPLE_HEAD, title_justify="left")
    names, *lines = _lines(result)
    for place, name in enumerate(names):
        table.add_column(name, justify="right" if place else "left", overflow="fold")
    for line in lines:
        table.add_row(*line)
    return table


def front_markdown(result: SearchResult) -> str:
    """Build the table of the Pareto set as Markdown, its headline above and a newline at its end."""
    names, *lines = _lines(result)
    rule = ["---", *["---:"] * (len(names) - 1)]
    return f"{result.headline()}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in [names, rule, *lines])


def _lines(result: SearchResult) -> list[list[str]]:
    """Write all cells, the columns' names in the first line."""
    names = ["setting", "density requested", *(_HEADS[name] for name in result.objectives), "trials"]
    return [names, *(_cells(point, result.objectives) for point in result.front)]


def _cells(point: SearchPoint, objectives: Sequence[str]) -> list[str]:
    values = [number(point.values[name], _DIGITS[name]) for name in objectives]
    return [point.label, number(point.density_requested, 3), *values, str(point.jobs)]
