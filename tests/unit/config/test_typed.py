"""Conversion of plain values to the annotations of a dataclass, and collecting its mistakes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from sah.config.base import ValidatedConfig
from sah.config.typed import WrongTypeError, build_section, convert, describe
from sah.errors import ConfigError


@dataclass
class Inner:
    size: int = 1


@dataclass
class Outer(ValidatedConfig):
    path: str
    low: int = 0
    high: int = 10
    inner: Inner = field(default_factory=Inner)

    def validate(self) -> None:
        if self.low < 0:
            raise ConfigError(f"low={self.low} is below 0")
        if self.high > 99:
            raise ConfigError(f"high={self.high} is above 99")
        if self.low > self.high:
            raise ConfigError(f"low={self.low} is above high={self.high}")


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (1, float, 1.0),
        (1, int | float | None, 1),
        (1.0, int | float | None, 1.0),
        (None, int | float | None, None),
        (3, str, "3"),
        ("3", int | str, "3"),
        ([1, 2], list[float], [1.0, 2.0]),
        ([1, 2], tuple[int, ...], (1, 2)),
        ({"a": 1}, dict[str, Any], {"a": 1}),
        ("a", Literal["a", "b"], "a"),
        ("x/y", Path, Path("x/y")),
        (True, bool, True),
        ("anything", Any, "anything"),
    ],
)
def test_convert(value, hint, expected):
    converted = convert(value, hint)
    assert converted == expected
    assert type(converted) is type(expected)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("1", int),
        (1.5, int),
        (True, int),
        (True, float),
        ("x", float),
        (None, float),
        (1, bool),
        ("a", list[str]),
        ([1.5], list[int]),
        ("c", Literal["a", "b"]),
        ([1], dict[str, int]),
        ({"a": 1}, str),
        (3, Path),
        ("x", int | float | None),
    ],
)
def test_convert_refuses(value, hint):
    with pytest.raises(WrongTypeError):
        convert(value, hint)


def test_describe():
    assert describe(int | float | None) == "a whole number or a number or null"
    assert describe(list[str]) == "a list, each entry a text"
    assert describe(Literal["a", "b"]) == "one of a, b"


def test_a_good_section_is_built_with_its_nested_ones():
    built, mistakes = build_section(Outer, {"path": "x", "low": 2, "inner": {"size": 3}}, "outer")
    assert mistakes == []
    assert built == Outer(path="x", low=2, inner=Inner(size=3))


def test_every_mistake_of_a_section_is_found():
    values = {"path": "x", "low": -1, "high": 100, "inner": {"size": "big", "colour": 1}, "other": 1}
    built, mistakes = build_section(Outer, values, "outer")
    assert built is None
    text = "\n".join(mistakes)
    for expected in ("low=-1", "high=100", "outer.inner.size='big'", "outer.inner.colour", "outer.other"):
        assert expected in text
    assert len(mistakes) == 5


def test_a_mistake_of_two_values_together_is_named_once():
    assert build_section(Outer, {"path": "x", "low": 20}, "outer")[1] == ["low=20 is above high=10"]


@pytest.mark.parametrize("values", [{}, {"path": "???"}], ids=["absent", "marked"])
def test_a_value_without_default_must_be_given(values):
    built, mistakes = build_section(Outer, values, "outer")
    assert built is None
    assert len(mistakes) == 1
    assert mistakes[0].startswith("outer.path must be given")
