"""Single values, and the base of the dataclasses that hold them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from sah.config.base import ValidatedConfig
from sah.config.schema import GenerationOptions
from sah.config.values import check_count, check_share, check_size
from sah.errors import ConfigError


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), np.float64(0.5), np.float16(0.5), Fraction(1, 2)])
def test_a_share_may_be_a_number_of_any_kind(value):
    for taken in (check_share("density", value), check_size("size", value)):
        assert type(taken) is float
        assert taken == 0.5


@pytest.mark.parametrize("value", [1, np.int64(1), np.uint8(1)])
def test_an_int_stays_a_number_of_keys(value):
    for taken in (check_size("size", value), check_count("seed", value)):
        assert type(taken) is int
        assert taken == 1
    assert check_share("density", value) == 1.0


@pytest.mark.parametrize("value", [True, np.True_, "1", None, [1], np.float32("nan"), np.int64(-1), np.float32(2), 1j])
def test_no_size_and_no_share(value):
    for check in (check_size, check_share, check_count):
        with pytest.raises(ConfigError, match="key="):
            check("key", value)


@dataclass
class Holder(ValidatedConfig):
    density: Any = 0.5
    size: Any = 1


def test_numbers_of_other_kinds_become_plain_ones():
    holder = Holder(np.float32(0.5), np.int64(3))
    holder.density = np.float64(0.25)
    assert json.dumps(vars(holder)).startswith('{"density": 0.25, "size": 3')
    assert type(Holder(True).density) is bool


def test_a_mistyped_field_is_refused():
    holder = Holder()
    with pytest.raises(ConfigError, match=r"Holder has no field 'densty'. Allowed: density, size. .*: density"):
        holder.densty = 0.1
    assert not hasattr(holder, "densty")
    with pytest.raises(ConfigError, match="no field 'x'"):
        GenerationOptions().x = 1
