"""Finds a class or function by its dotted path, so that configs can name what they configure without importing it."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def named(path: str) -> Any:
    """Import a module's member.

    Args:
        path: Dotted path that a config class of this code holds, e.g. `sah.data.niah.generate.generate_examples`.

    Returns:
        The member.

    Raises:
        ImportError: If the module cannot be imported.
        AttributeError: If it has no such member.
    """
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)
