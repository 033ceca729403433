"""Finds every prefill pattern's config by walking this package, so that no list exists. Imports no torch."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from sah.sparse_attention.prefill.config import PrefillConfig


@cache
def prefill_configs() -> dict[str, type[PrefillConfig]]:
    """Find the config class of every prefill pattern that ships with sah.

    Returns:
        Command-line name to config class, in alphabetical order. A dense prefill has none.
    """
    import sah.sparse_attention.prefill as package

    found: dict[str, type[PrefillConfig]] = {}
    for info in pkgutil.iter_modules(package.__path__):
        if not info.name.endswith("_config"):
            continue
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for value in vars(module).values():
            own = isinstance(value, type) and value.__module__ == module.__name__
            if own and issubclass(value, PrefillConfig) and value.name:
                found[value.name] = value
    return dict(sorted(found.items()))


@cache
def prefill_names() -> dict[str, str]:
    """Map each public class of the patterns (config and pattern) to its dotted path."""
    names: dict[str, str] = {}
    for config in prefill_configs().values():
        names[config.__name__] = f"{config.__module__}.{config.__name__}"
        if config.pattern:
            names[config.pattern.rpartition(".")[2]] = config.pattern
    return names
