"""Puts needles into a haystack at the depths asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from sah.data.niah.haystack import Haystack

LINE_TOLERANCE = 0.05
"""A needle goes between two lines if one ends this near to its depth, otherwise between two sentences."""


@dataclass(frozen=True)
class Needle:
    """One needle.

    Attributes:
        key: What the question names.
        value: What it asks for.
        sentence: The sentence that is hidden.
        depth: Where it belongs, from 0 (before the haystack) to 1 (after it).
    """

    key: str
    value: str
    sentence: str
    depth: float


def lay_out(haystack: Haystack, pieces: Sequence[str], needles: Sequence[Needle]) -> tuple[str, list[float]]:
    """Write the haystack with its needles.

    Args:
        haystack: Tells how sentences are joined.
        pieces: Consecutive sentences; the last one may be cut short.
        needles: In any order; needles at the same place keep the given order.

    Returns:
        The text, and for each needle the depth it really has: the share of the haystack's characters before
        it.
    """
    offsets = list(accumulate((len(piece) + 1 for piece in pieces), initial=0))
    boundaries = [_nearest_boundary(offsets, needle.depth, haystack.per_line) for needle in needles]
    at: dict[int, list[str]] = {}
    for boundary, needle in zip(boundaries, needles, strict=True):
        at.setdefault(boundary, []).append(needle.sentence)
    lines: list[str] = []
    line: list[str] = []
    for index in range(len(pieces) + 1):
        if line and (index in at or index % haystack.per_line == 0 or index == len(pieces)):
            lines.append(" ".join(line))
            line = []
        lines.extend(at.get(index, ()))
        if index < len(pieces):
            line.append(pieces[index])
    total = offsets[-1]
    return haystack.separator.join(lines), [offsets[boundary] / total if total else 0.0 for boundary in boundaries]


def _nearest_boundary(offsets: Sequence[int], depth: float, per_line: int) -> int:
    """Choose the end of a line, or else of a sentence, that is nearest to a depth."""
    target = depth * offsets[-1]
    last = len(offsets) - 1

    def distance(boundary: int) -> float:
        return abs(offsets[boundary] - target)

    line_ends = [boundary for boundary in range(last + 1) if boundary % per_line == 0 or boundary == last]
    best = min(line_ends, key=distance)
    if per_line > 1 and distance(best) > LINE_TOLERANCE * offsets[-1]:
        best = min(range(last + 1), key=distance)
    return best
