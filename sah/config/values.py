"""Checks of single configuration values, shared by every config dataclass."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from numbers import Integral, Real

from sah.errors import bad_value

DEFAULT_MAX_NEW_TOKENS = 50
"""Answer length where neither the command line nor the question sets one."""


def _number(value: object) -> int | float | None:
    """Take a number of any kind, numpy's included, as a plain int or float; None if it is none or NaN."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    plain = int(value) if isinstance(value, Integral) else float(value)
    return None if math.isnan(plain) else plain


def check_share(key: str, value: object, *, or_zero: bool = False) -> float:
    """Check a share: a number above 0 and at most 1.

    Args:
        key: The config key, for the message.
        value: The value as given.
        or_zero: Whether 0 is allowed as well.

    Returns:
        The value as a float.

    Raises:
        ConfigError: If it is no number, NaN, below 0, 0 where that is not allowed, or above 1.
    """
    number = _number(value)
    if number is None or not (0 < number <= 1 or (or_zero and number == 0)):
        allowed = "a number from 0 to 1" if or_zero else "a number above 0 and at most 1"
        raise bad_value(key, value, allowed, f"{key}=0.1")
    return float(number)


def check_size(key: str, value: object, *, minimum: int = 1) -> int | float:
    """Check a size: an int is a number of keys, a float a share of the allowed keys.

    Args:
        key: The config key, for the message.
        value: The value as given.
        minimum: Smallest int that makes sense; with 0 the float 0.0 is allowed as well.

    Returns:
        The value as a plain int or float, which it was: 1 is one key and 1.0 is all of them.

    Raises:
        ConfigError: If it is neither.
    """
    number = _number(value)
    if isinstance(number, int) and number >= minimum:
        return number
    if isinstance(number, float) and (0 < number <= 1 or (minimum == 0 and number == 0)):
        return number
    raise bad_value(
        key,
        value,
        f"an int of at least {minimum} (a number of keys) or a float above 0 and at most 1.0 (a share of the allowed "
        "keys)",
        f"{key}=64 or {key}=0.05",
    )


def check_count(key: str, value: object, *, minimum: int = 0) -> int:
    """Check a whole number.

    Args:
        key: The config key, for the message.
        value: The value as given.
        minimum: Smallest allowed value.

    Returns:
        The value.

    Raises:
        ConfigError: If it is no whole number or below the minimum.
    """
    number = _number(value)
    if not isinstance(number, int) or number < minimum:
        raise bad_value(key, value, f"a whole number of at least {minimum}", f"{key}={max(minimum, 1)}")
    return number


def closest(given: str, known: Iterable[str]) -> str | None:
    """Find the name that was probably meant.

    Args:
        given: The name as given.
        known: The names that exist.

    Returns:
        The most similar one, or None if none is similar.
    """
    return next(iter(difflib.get_close_matches(given, list(known), 1)), None)
