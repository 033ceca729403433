"""Checks of single configuration values, shared by every config dataclass."""

from __future__ import annotations

import math

from sah.errors import bad_value


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)


def check_share(key: str, value: object) -> float:
    """Check a share: a number above 0 and at most 1.

    Args:
        key: The config key, for the message.
        value: The value as given.

    Returns:
        The value as a float.

    Raises:
        ConfigError: If it is no number, NaN, not above 0, or above 1.
    """
    if not _is_number(value) or not 0 < value <= 1:  # type: ignore[operator]
        raise bad_value(key, value, "a number above 0 and at most 1", f"{key}=0.1")
    return float(value)  # type: ignore[arg-type]


def check_size(key: str, value: object, *, minimum: int = 1) -> int | float:
    """Check a size: an int is a number of keys, a float a share of the allowed keys.

    Args:
        key: The config key, for the message.
        value: The value as given.
        minimum: Smallest int that makes sense; with 0 the float 0.0 is allowed as well.

    Returns:
        The value, its type kept: 1 is one key and 1.0 is all of them.

    Raises:
        ConfigError: If it is neither.
    """
    if _is_number(value):
        if isinstance(value, int) and value >= minimum:
            return value
        if isinstance(value, float) and (0 < value <= 1 or (minimum == 0 and value == 0)):
            return value
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
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise bad_value(key, value, f"a whole number of at least {minimum}", f"{key}={max(minimum, 1)}")
    return value
