"""Adapters: a language model with a sparse attention. Names are loaded on first use."""

from __future__ import annotations

from typing import Any

from sah.config.lookup import named

_NAMES = {
    "Answer": "sah.adapters.generation",
    "ContextCache": "sah.adapters.context_cache",
    "ModelAdapter": "sah.adapters.base",
    "ModelAdapterHF": "sah.adapters.huggingface",
    "ModelHubAdapterInterface": "sah.adapters.base",
    "Request": "sah.adapters.base",
    "RequestResponse": "sah.adapters.base",
    "SparseAttentionAdapterInterface": "sah.adapters.base",
    "create_adapter": "sah.adapters.factory",
}


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return named(f"{_NAMES[name]}.{name}")


def __dir__() -> list[str]:
    return sorted(_NAMES)
