"""Choosing layers of a model by number. Imports no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from sah.errors import ConfigError, bad_value

Layers = int | str | list[int] | tuple[int, ...]
"""What a config may hold: `3`, `[0, 16]`, `"0-1"`, `"2-"` (layer 2 and all after it), `"0,16,20-"`."""

_ALLOWED = "layer numbers from 0 and ranges: [0,16], '0-1', '2-' (layer 2 and all after it), '0,16,20-'"
_RANGE = re.compile(r"(\d+)(?:-(\d*))?")


@dataclass(frozen=True)
class LayerSet:
    """Layers of a model, whose number is not known yet.

    Args:
        listed: Layers named one by one or by closed ranges.
        onwards: First layer of a range without an end, or None.
    """

    listed: frozenset[int]
    onwards: int | None = None

    def __contains__(self, layer: int) -> bool:
        return layer in self.listed or (self.onwards is not None and layer >= self.onwards)

    def overlaps(self, other: LayerSet) -> bool:
        """Tell whether some layer of a model large enough is in both."""
        both_open = self.onwards is not None and other.onwards is not None
        return both_open or any(x in other for x in self.listed) or any(x in self for x in other.listed)

    def __str__(self) -> str:
        """Write the layers in one way, whichever way they were given in: `0-1,16,20-`; empty for none."""
        onwards = self.onwards
        while onwards is not None and onwards - 1 in self.listed:
            onwards -= 1
        ranges: list[list[int]] = []
        for layer in sorted(x for x in self.listed if onwards is None or x < onwards):
            if ranges and ranges[-1][1] == layer - 1:
                ranges[-1][1] = layer
            else:
                ranges.append([layer, layer])
        pieces = [str(first) if first == last else f"{first}-{last}" for first, last in ranges]
        return ",".join(pieces if onwards is None else [*pieces, f"{onwards}-"])

    @property
    def largest_named(self) -> int:
        """The largest layer that is named, -1 for none; a model must have it."""
        return max([*self.listed, -1 if self.onwards is None else self.onwards], default=-1)


EVERY_LAYER = LayerSet(frozenset(), 0)


def parse_layers(key: str, value: Layers | None) -> LayerSet:
    """Read the layers that a config names.

    Args:
        key: The config key, for messages.
        value: What it holds; None means every layer.

    Returns:
        The layers.

    Raises:
        ConfigError: If it names no layers.
    """
    if value is None:
        return EVERY_LAYER
    if isinstance(value, bool) or not isinstance(value, (int, str, list, tuple)):
        raise _bad(key, value)
    if isinstance(value, (list, tuple)):
        if any(isinstance(entry, bool) or not isinstance(entry, int) or entry < 0 for entry in value):
            raise _bad(key, value)
        return LayerSet(frozenset(value))
    return _parse_text(key, str(value))


@lru_cache(maxsize=256)
def _parse_text(key: str, text: str) -> LayerSet:
    listed: set[int] = set()
    onwards: int | None = None
    for piece in text.replace(" ", "").split(","):
        match = _RANGE.fullmatch(piece)
        if match is None:
            raise _bad(key, text)
        first, last = int(match[1]), match[2]
        if last is None:
            listed.add(first)
        elif last == "":
            onwards = first if onwards is None else min(first, onwards)
        elif int(last) < first:
            raise _bad(key, text)
        else:
            listed.update(range(first, int(last) + 1))
    return LayerSet(frozenset(listed), onwards)


def _bad(key: str, value: object) -> ConfigError:
    return bad_value(key, value, _ALLOWED, f"'{key}=\"2-\"'")
