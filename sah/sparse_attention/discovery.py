"""Finds every masker config by walking the maskers package, so that no list of methods exists. Imports no torch."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from sah.sparse_attention.masker_config import MaskerConfig


@cache
def masker_configs() -> dict[str, type[MaskerConfig]]:
    """Find the config class of every masker that ships with sah.

    Returns:
        Command-line name to config class, in alphabetical order.
    """
    import sah.sparse_attention.maskers as package

    found: dict[str, type[MaskerConfig]] = {}
    for info in pkgutil.iter_modules(package.__path__):
        if not info.name.endswith("_config"):
            continue
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for value in vars(module).values():
            own = isinstance(value, type) and value.__module__ == module.__name__
            if own and issubclass(value, MaskerConfig) and value.name:
                found[value.name] = value
    return dict(sorted(found.items()))


@cache
def public_names() -> dict[str, str]:
    """Map each public class of the maskers (config and masker) to its dotted path."""
    names: dict[str, str] = {}
    for config in masker_configs().values():
        names[config.__name__] = f"{config.__module__}.{config.__name__}"
        if config.masker:
            names[config.masker.rpartition(".")[2]] = config.masker
    return names
