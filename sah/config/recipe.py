"""Builds the recipe of maskers from the composed config."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig

from sah.config.experiment import DENSE
from sah.config.lenient import strict_class
from sah.config.typed import build_section, dotted
from sah.errors import ConfigError
from sah.sparse_attention.config import check_recipe, sharing_a_layer
from sah.sparse_attention.discovery import masker_configs
from sah.sparse_attention.masker_config import MaskerConfig

Recipe = tuple[tuple[str, MaskerConfig], ...]

TARGET_KEY = "_target_"
"""Key by which a YAML file names a config class that sah does not ship."""


def build_recipe(node: object, values: object, density: float | None) -> tuple[Recipe, list[str]]:
    """Build the maskers of a recipe.

    Args:
        node: The composed `masker` node, which remembers each masker's schema.
        values: The same node as plain values, interpolations resolved.
        density: The top-level density for maskers that have no budget of their own; None if it cannot
            be used, which is reported elsewhere.

    Returns:
        Key and config of each masker in recipe order (empty for dense), and the message of every mistake.
    """
    if not isinstance(node, DictConfig) or not isinstance(values, Mapping) or not values:
        return (), [
            "masker: the recipe is left without a masker. An empty recipe would keep nothing. "
            f"Allowed: {', '.join([DENSE, *masker_configs()])}, or a list of them. "
            "Write masker=dense for the dense baseline, or for example masker=topk"
        ]
    if DENSE in values:
        return (), _check_dense(values)
    recipe: list[tuple[str, MaskerConfig]] = []
    mistakes: list[str] = []
    for key, entry in values.items():
        config, found = _build_masker(str(key), node.get(key), entry)
        mistakes += found
        if config is not None:
            recipe.append((str(key), config))
    together = sharing_a_layer([config for _, config in recipe if config.reads_density()])
    if together:
        readers = [key for key, config in recipe if any(config is other for other in together)]
        mistakes.append(
            f"masker: {' and '.join(readers)} both read the top-level density, but it is a target for the "
            "whole mask, so only one masker of a layer can follow it. Give the others a size of their own or other "
            "layers, or remove them"
        )
    elif not mistakes:
        recipe = [(key, config.with_density(density or 1.0)) for key, config in recipe]
        try:
            check_recipe([config for _, config in recipe])
        except ConfigError as error:
            mistakes.append(str(error))
    return tuple(recipe), mistakes


def import_class(path: str, key: str) -> type:
    """Import a class by its dotted path.

    Args:
        path: Such as `my_package.my_config.MyMaskerConfig`.
        key: The config key that named it, for messages.

    Returns:
        The class.

    Raises:
        ConfigError: If there is no such module or class.
    """
    module_name, _, class_name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{key}={path} cannot be imported: {error}. Write the dotted path of a class") from error
    if not isinstance(found, type):
        raise ConfigError(f"{key}={path} is no class. Write the dotted path of a class")
    return found


def section_class(node: object, values: Mapping[str, Any], key: str) -> type | None:
    """Find the dataclass of a group's node: the one of its schema, else the one that `_target_` names.

    Args:
        node: The composed node.
        values: The same node as plain values.
        key: Its dotted key, for messages.

    Returns:
        The class, or None if the node names none.

    Raises:
        ConfigError: If `_target_` cannot be imported.
    """
    target = values.get(TARGET_KEY)
    if target is not None:
        return import_class(str(target), dotted(key, TARGET_KEY))
    return strict_class(node)


def dense_values(given: Iterable[str]) -> str:
    """Say that the dense baseline takes no values.

    Args:
        given: The dotted keys that were given.

    Returns:
        The message.
    """
    return f"{', '.join(given)}: the dense baseline takes no values. Remove them, or write masker=causal"


def _check_dense(values: Mapping[Any, Any]) -> list[str]:
    others = [str(key) for key in values if key != DENSE]
    if others:
        instead = others[0] if len(others) == 1 else f"[{','.join(others)}]"
        return [
            f"masker: dense cannot be combined with {', '.join(others)}: it means no sparse attention. "
            f"Write masker=dense or 'masker={instead}'; masker=causal keeps everything through our attention"
        ]
    if values[DENSE]:
        return [dense_values(f"masker.dense.{key}" for key in values[DENSE])]
    return []


def _build_masker(key: str, node: object, values: object) -> tuple[MaskerConfig | None, list[str]]:
    """Build one masker of a recipe; its class comes from its schema or from `_target_`."""
    where = f"masker.{key}"
    if not isinstance(values, Mapping):
        return None, [
            f"{where}={values!r} holds no masker. Allowed: the keys and values of one masker. "
            "A masker is chosen by its name, e.g. masker=topk"
        ]
    try:
        config_class = section_class(node, values, where)
    except ConfigError as error:
        return None, [str(error)]
    if config_class is None:
        return None, [leftover(key, [dotted(f"masker.{key}", str(name)) for name in values])]
    if not issubclass(config_class, MaskerConfig):
        return None, [f"{where}: {config_class.__name__} is no masker config. Write a subclass of MaskerConfig"]
    fields = {name: value for name, value in values.items() if name != TARGET_KEY}
    config, mistakes = build_section(config_class, fields, where)
    own_prefix = f"masker.{config_class.name}."
    return config, [message.replace(own_prefix, f"{where}.") for message in mistakes]


def leftover(key: str, given: Sequence[str]) -> str:
    """Name a key whose values no masker of the recipe takes, e.g. a preset's for a masker since replaced.

    Args:
        key: The key below `masker`.
        given: The dotted keys that were given.

    Returns:
        The message.
    """
    keys = ", ".join(given) or f"masker.{key}"
    if key in masker_configs():
        return (
            f"{keys} is set, but the recipe has no masker {key!r}. "
            f"Add it to the list, e.g. 'masker=[...,{key}]', or remove these values"
        )
    return (
        f"{keys} is set, but there is no masker {key!r}. Allowed: {', '.join(masker_configs())}. "
        f"For a second instance write for example '+masker/schema@masker.{key}=topk'; a masker of your own "
        f"needs {TARGET_KEY}: <dotted path of its config class>"
    )
