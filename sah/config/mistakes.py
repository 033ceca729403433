"""Several mistakes in one error."""

from __future__ import annotations

from collections.abc import Iterable

from sah.errors import ConfigError


def all_mistakes(messages: Iterable[str]) -> ConfigError:
    """Put every mistake into one error.

    Args:
        messages: One complete sentence or more for each mistake; repeated ones are shown once.

    Returns:
        The error, to be raised by the caller.
    """
    unique = list(dict.fromkeys(messages))
    if len(unique) == 1:
        return ConfigError(unique[0])
    lines = "\n".join(f"  {number}. {message}" for number, message in enumerate(unique, start=1))
    return ConfigError(f"The config has {len(unique)} mistakes:\n{lines}")
