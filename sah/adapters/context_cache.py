"""Prefilled contexts, and a bounded store that lets all points of a process share them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache

from sah.adapters.kv_cache import cut_back, memory_bytes
from sah.adapters.prefill import observe_again
from sah.adapters.prompt import ContextPrompt
from sah.sparse_attention.key_state import ContextPart

if TYPE_CHECKING:
    from sah.adapters.context_files import ContextFiles
    from sah.adapters.huggingface import ModelAdapterHF
    from sah.sparse_attention.prefill.config import PrefillConfig

_EntryKey = tuple[Hashable, str, str]
"""Group, digest of the text, and what is known of the prefill."""


@dataclass
class ContextCache:
    """A context after its prefill.

    Between questions the cache holds exactly the context; `answer` appends to it while it runs and cuts it back.
    """

    model_name: str
    """The model that prefilled it; no other can use it."""

    prompt: ContextPrompt
    """The context and its token ids."""

    past_key_values: DynamicCache
    """Keys and values of the context, (1, kv_heads, length, head_dim) a layer."""

    prefill_seconds: float = 0.0
    """Wall seconds of the prefill."""

    prefill_cpu_seconds: float = 0.0
    """CPU seconds of the prefill."""

    context_state: dict[Any, Any] = field(default_factory=dict)
    """What methods derive from the context's keys, or saw of its prefill; questions are given a view that refuses
    writes."""

    prefill: PrefillConfig | None = None
    """What a sparse prefill kept; None for a dense one."""

    seeing_seconds: float = 0.0
    """Wall seconds that methods spent on seeing the prefill, until a setting reports them as its own."""

    prefill_density: float = 1.0
    """Share of the allowed keys that the prefill's queries read, mean over the layers that attend to the whole
    sequence."""

    @property
    def length(self) -> int:
        """Number of context tokens in the cache."""
        return len(self.prompt.ids)

    @property
    def digest(self) -> str:
        """Hash of the context's token ids."""
        return ids_digest(self.prompt.ids)

    def nbytes(self) -> int:
        """Return the bytes of memory that the cached keys and values hold, and what was derived from them."""
        derived = [part.units if isinstance(part, ContextPart) else part for part in self.context_state.values()]
        return memory_bytes(self.past_key_values) + sum(states.nbytes for states in derived)

    def cut_back(self) -> None:
        """Remove everything behind the context."""
        cut_back(self.past_key_values, self.length)


class ContextStore:
    """Keeps prefilled contexts in memory, up to a number of bytes, and on disk where it is given a folder for them.

    Sweeps read contexts in the same order again and again, for which keeping the first ones that fit is best: the
    least recently used one would always be the next one needed. Contexts of another group (model and data
    set) make room. What settings derive from a kept context adds to it until the next `get`, which drops such state,
    to be built again when needed, for as long as the store holds too much.

    Args:
        capacity_bytes: Most bytes to keep at each `get`; 0 keeps none.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.files: ContextFiles | None = None
        """Where contexts are looked for that are not in memory, and written to."""
        self._entries: dict[_EntryKey, ContextCache] = {}

    def get(
        self,
        group: Hashable,
        context: str,
        prefill: Callable[..., ContextCache],
        pattern: PrefillConfig | None = None,
        observers: Sequence[ModelAdapterHF] = (),
    ) -> tuple[ContextCache, bool]:
        """Return a prefilled context, prefilling it if it is not kept.

        Args:
            group: Everything beside the text and the pattern that the cache depends on: the model and the data set.
            context: The text.
            prefill: Computes the cache, called as `prefill` of an adapter is. Files are used where it is that, and no
                wrapper: they are kept by the model, whatever the group.
            pattern: What a sparse prefill keeps; None for a dense one.
            observers: Adapters whose methods see something of the prefill. Where a cache that is there lacks it, the
                context runs a second time, once for all of them.

        Returns:
            The cache, and whether it was there already, in memory or on disk.
        """
        key = _entry_key(group, context, pattern)
        self._drop_states(asked=key)
        if key in self._entries:
            observe_again(observers, self._entries[key])
            return self._entries[key], True
        cache = None if self.files is None else self.files.load(context, prefill, pattern)
        found = cache is not None
        if cache is None:
            plain = pattern is None and not observers
            cache = prefill(context) if plain else prefill(context, pattern, observers=observers)
            if self.files is not None:
                self.files.save(cache, prefill, pattern)
        observe_again(observers, cache)
        size = cache.nbytes()
        if size > self.capacity_bytes:
            return cache, found
        for other in [k for k in self._entries if k[0] != group]:
            if self.nbytes() + size <= self.capacity_bytes:
                break
            del self._entries[other]
        if self.nbytes() + size <= self.capacity_bytes:
            self._entries[key] = cache
        return cache, found

    def holds(self, group: Hashable, context: str, pattern: PrefillConfig | None = None) -> bool:
        """Tell whether a prefilled context is in memory."""
        return _entry_key(group, context, pattern) in self._entries

    def nbytes(self) -> int:
        """Return the bytes of all kept contexts."""
        return sum(cache.nbytes() for cache in self._entries.values())

    def _drop_states(self, asked: _EntryKey) -> None:
        """Drop derived state while there is too much, that of the context asked for last: it may be used at once."""
        for key in sorted(self._entries, key=lambda key: key == asked):
            if self.nbytes() <= self.capacity_bytes:
                break
            self._entries[key].context_state.clear()

    def clear(self) -> None:
        """Forget all contexts."""
        self._entries.clear()


def prefill_identity(pattern: PrefillConfig | None) -> dict[str, Any] | str:
    """Say what of a prefill decides the keys and values of a context, as plain data.

    Args:
        pattern: What a sparse prefill keeps; None for a dense one.

    Returns:
        The pattern's values with its name, or its dotted path where it has none; `dense`.
    """
    if pattern is None:
        return "dense"
    return {**pattern.identity(), "name": pattern.name or f"{type(pattern).__module__}.{type(pattern).__qualname__}"}


def _entry_key(group: Hashable, context: str, pattern: PrefillConfig | None) -> _EntryKey:
    digest = hashlib.sha256(context.encode()).hexdigest()
    return group, digest, json.dumps(prefill_identity(pattern), sort_keys=True)


def ids_digest(ids: list[int]) -> str:
    """Hash token ids; equal ids give equal digests on every machine."""
    return hashlib.sha256(torch.tensor(ids, dtype=torch.int64).numpy().tobytes()).hexdigest()[:32]
