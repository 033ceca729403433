"""Checks of the command line that Hydra leaves out: what may be chosen from a group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException

from sah.config.mistakes import all_mistakes
from sah.errors import bad_value

GROUPS = ("model", "masker", "prefill", "dataset", "tracker")
"""Groups of which every point has a choice; a list of choices is for `masker` alone."""


def check_choices(arguments: Sequence[str]) -> None:
    """Check the choices of groups on a command line, the points of a sweep included.

    Hydra merges a list of choices of any group, takes a choice given twice for one, and fails on null and numbers.

    Args:
        arguments: The command line without the program. What is no override of a group is left to Hydra.

    Raises:
        ConfigError: If a group is given no name, a list where one choice is meant, or the same masker twice.
    """
    mistakes = []
    for argument in arguments:
        override = _group_override(argument)
        if override is None or override.key_or_group not in GROUPS:
            continue
        for choice in _choices(override):
            message = _mistake(override.key_or_group, choice)
            if message is not None:
                mistakes.append(message)
    if mistakes:
        raise all_mistakes(mistakes)


@lru_cache(maxsize=4096)  # the jobs of a sweep share most of their overrides
def _group_override(argument: str) -> Override | None:
    if argument.startswith(("-", "~")) or "=" not in argument:
        return None
    try:
        return OverridesParser.create().parse_override(argument)
    except HydraException:
        return None


def _choices(override: Override) -> list[Any]:
    if not override.is_sweep_override():
        return [override.value()]
    if override.value_type not in (ValueType.CHOICE_SWEEP, ValueType.SIMPLE_CHOICE_SWEEP):
        return []
    return list(override.sweep_iterator())


def _mistake(group: str, choice: Any) -> str | None:
    if choice is None or isinstance(choice, (bool, int, float)):
        dense = group in ("masker", "prefill")
        instead = f"{group}=dense" if dense else f"{group}=<name>, or leave it out for the default"
        return str(bad_value(group, choice, "a name; --help lists them", instead))
    if not isinstance(choice, list):
        return None
    names = [str(name) for name in choice]
    if group != "masker":
        return str(bad_value(group, ",".join(names), "one name; only masker takes a list", f"{group}={names[0]}"))
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        return (
            f"masker: {', '.join(twice)} stands more than once in [{','.join(names)}], but a key holds one "
            "masker. Write it once; a second instance is added by for example "
            f"'+masker/schema@masker.{twice[0]}_2={twice[0]}'"
        )
    return None
