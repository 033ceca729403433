"""Errors that a user can mend.

Every message says what is wrong, where (the config key or the file), what is allowed and what to write instead.
"""

from __future__ import annotations


class SahError(Exception):
    """Base of all errors that sah raises for a mistake outside its own code."""


class ConfigError(SahError, ValueError):
    """A configuration value, or a combination of values, that cannot be run."""

    mistakes: tuple[str, ...] = ()
    """The message of each mistake, where the error tells of several."""


class DataError(SahError, ValueError):
    """A data set, example or prompt that cannot be used as asked."""


class ModelError(SahError, RuntimeError):
    """A model or tokenizer that cannot be found, fetched, loaded or driven."""


class StateError(SahError, RuntimeError):
    """Results, caches or other stored state that do not fit the run at hand."""


class WorkerError(SahError, RuntimeError):
    """Other processes that were to compute rows cannot be had, or do not stay."""


def bad_value(key: str, given: object, allowed: str, instead: str) -> ConfigError:
    """Build the standard message for a wrong configuration value.

    Args:
        key: Dotted config key, e.g. `masker.topk.density`.
        given: The value as the user gave it.
        allowed: What the key accepts, e.g. `a number above 0 and at most 1`.
        instead: What to write, e.g. `masker.topk.density=0.1`.

    Returns:
        The error, to be raised by the caller.
    """
    return ConfigError(f"{key}={given!r} is not allowed. Allowed: {allowed}. Write for example: {instead}")


def missing_extra(package: str, extra: str, purpose: str) -> ConfigError:
    """Build the error for an optional dependency that is not installed.

    Args:
        package: The import name that failed, e.g. `datasets`.
        extra: The extra of sah that brings it, e.g. `data`.
        purpose: What needs it, e.g. `dataset=jsonl`.

    Returns:
        The error, to be raised by the caller.
    """
    return ConfigError(
        f"{purpose} needs the package {package!r}, which is not installed. Run: pip install 'sah[{extra}]'"
    )
