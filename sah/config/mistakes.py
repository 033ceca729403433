"""Several mistakes in one error, and the words for the commonest one."""

from __future__ import annotations

from collections.abc import Iterable

from sah.config.values import closest
from sah.errors import ConfigError

PRESETS = "experiment"
"""The group of presets, which is no key of the config."""


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
    error = ConfigError(f"The config has {len(unique)} mistakes:\n{lines}")
    error.mistakes = tuple(unique)
    return error


def unknown_key(key: str, known: Iterable[str]) -> str:
    """Say that a section of the config has no such key.

    Args:
        key: Dotted key, e.g. `masker.topk.foo`.
        known: The keys that its section has.

    Returns:
        The message.
    """
    section, _, name = key.rpartition(".")
    known = sorted(known)
    meant = closest(name, known)
    instead = f"Write for example: {section}{'.' * bool(section)}{meant}=..." if meant else f"Remove {key}"
    if not section and not meant and closest(name, [PRESETS]):
        instead = f"Write for example: +{PRESETS}=smoke"
    return f"{key} is not a key of {section or 'the config'}. Allowed: {', '.join(known) or 'none'}. {instead}"
