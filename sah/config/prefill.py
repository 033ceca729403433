"""Builds the prefill's pattern from the composed config, and tells which maskers it cannot stand under."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from sah.config.recipe import TARGET_KEY, Recipe, section_class
from sah.config.typed import MISSING_MARK, build_section
from sah.errors import ConfigError, bad_value
from sah.sparse_attention.discovery import masker_configs
from sah.sparse_attention.masker_config import MaskerConfig
from sah.sparse_attention.prefill.config import PrefillConfig
from sah.sparse_attention.prefill.discovery import prefill_configs

PREFILL = "prefill"
"""The group's name."""

DENSE = "dense"

_WHOLE = "mass"
"""What `MaskerConfig.observes` says of a masker that must see all attention of the prefill."""


def build_prefill(node: object, values: object) -> tuple[PrefillConfig | None, list[str]]:
    """Build the prefill's config; its class comes from its schema or from `_target_`.

    Args:
        node: The composed `prefill` node, which remembers its schema.
        values: The same node as plain values, interpolations resolved.

    Returns:
        The config, None for a dense prefill, and the message of every mistake.
    """
    if values is None or values in ({}, MISSING_MARK):
        return None, []
    allowed = ", ".join([DENSE, *prefill_configs()])
    if not isinstance(values, Mapping):
        return None, [str(bad_value(PREFILL, values, allowed, f"{PREFILL}={DENSE}"))]
    try:
        config_class = section_class(node, values, PREFILL)
    except ConfigError as error:
        return None, [str(error)]
    if config_class is None:
        return None, [_dense_values(f"{PREFILL}.{name}" for name in values)]
    if not issubclass(config_class, PrefillConfig):
        return None, [
            f"{PREFILL} names no prefill config. Allowed: {allowed}, or {TARGET_KEY}: <dotted path of a subclass of "
            "PrefillConfig>"
        ]
    return build_section(config_class, {k: v for k, v in values.items() if k != TARGET_KEY}, PREFILL)


def _dense_values(given: Iterable[str]) -> str:
    """Say that a dense prefill takes no values."""
    names = list(prefill_configs())
    keys = ", ".join(given)
    return (
        f"{keys} is set, but the prefill is dense and takes no values. Choose a pattern as well, one of "
        f"{', '.join(names)}, for example prefill={names[0] if names else '<pattern>'}, or remove {keys}"
    )


def check_pair(prefill: PrefillConfig | None, maskers: Recipe) -> list[str]:
    """Check that the maskers of a recipe can stand behind a sparse prefill.

    Args:
        prefill: The prefill's config, None for a dense one.
        maskers: Key and config of each masker.

    Returns:
        A message for every masker that cannot.
    """
    if prefill is None:
        return []
    pattern = prefill.name or type(prefill).__name__
    others = _seeing_less()
    instead = f", or another method for the answer, for example masker={others[0]}" if others else ""
    return [
        f"masker: {key} cannot stand behind prefill={pattern}: it adds up the attention that every key of the context "
        f"gets in the prefill, and {pattern} leaves most of it out. Write prefill={DENSE}{instead}"
        for key, config in maskers
        if _observes(config) == _WHOLE
    ]


def _observes(config: MaskerConfig | type[MaskerConfig]) -> str:
    return config.observes


def _seeing_less() -> Sequence[str]:
    """Name the maskers that look at a part of the prefill, as the closest to those that look at all of it."""
    return [name for name, config in masker_configs().items() if _observes(config) not in ("", _WHOLE)]
