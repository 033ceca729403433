"""Models that sah can make without a model hub: embedded checkpoints from a package index, and tiny ones.

Every module in this package that has a `SOURCES` tuple offers models; there is no list of them elsewhere.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path

from sah.adapters.sources.base import ModelSource
from sah.errors import ModelError

__all__ = ["ModelSource", "all_sources", "fetch", "fetchable", "find_source"]


@functools.cache
def all_sources() -> Mapping[str, ModelSource]:
    """Find every model source by walking this package.

    Returns:
        Source by full name, e.g. `embedded:smollm2-135m-instruct`.
    """
    found: dict[str, ModelSource] = {}
    for module in pkgutil.iter_modules(__path__):
        for source in getattr(importlib.import_module(f"{__name__}.{module.name}"), "SOURCES", ()):
            found[source.name] = source
    return found


def find_source(name: str) -> ModelSource | None:
    """Look a source up.

    Args:
        name: A full name (`embedded:smollm2-135m-instruct`) or the name of its file in conf/model (`llama`).

    Returns:
        The source, or None if no source has that name.
    """
    sources = all_sources()
    return sources.get(name) or next((source for source in sources.values() if source.alias == name), None)


def fetchable() -> list[str]:
    """List what `fetch` takes.

    Returns:
        The aliases of all sources, then their full names.
    """
    sources = all_sources().values()
    return sorted(source.alias for source in sources if source.alias) + sorted(source.name for source in sources)


def fetch(name: str) -> Path:
    """Make a model ready for use without network, as `sah fetch` does.

    Args:
        name: One of `fetchable()`, e.g. `llama`, `gemma3_270m`, `tiny`.

    Returns:
        The checkpoint's folder in the cache, complete and checked.

    Raises:
        ModelError: If no source has that name, or it cannot be fetched or converted.
    """
    source = find_source(name)
    if source is None:
        raise ModelError(f"There is no model {name!r} to fetch. Known: {', '.join(fetchable())}.")
    return source.ensure()
