"""Prefilled contexts, and a bounded store that lets all points of a process share them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache

from sah.adapters.kv_cache import cut_back, memory_bytes
from sah.adapters.prompt import ContextPrompt
from sah.sparse_attention.key_state import ContextPart

if TYPE_CHECKING:
    from sah.adapters.context_files import ContextFiles


@dataclass
class ContextCache:
    """A context after its dense prefill.

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
    """What methods derive from the context's keys alone; questions are given a view that refuses writes."""

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
        derived = [part.units for part in self.context_state.values() if isinstance(part, ContextPart)]
        return memory_bytes(self.past_key_values) + sum(units.nbytes for units in derived)

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
        self._entries: dict[tuple[Hashable, str], ContextCache] = {}

    def get(self, group: Hashable, context: str, prefill: Callable[[str], ContextCache]) -> tuple[ContextCache, bool]:
        """Return a prefilled context, prefilling it if it is not kept.

        Args:
            group: Everything beside the text that the cache depends on: the model and the data set.
            context: The text.
            prefill: Computes the cache. Files are used where it is `prefill` of an adapter, and of no wrapper: they
                are kept by the model, whatever the group.

        Returns:
            The cache, and whether it was there already, in memory or on disk.
        """
        key = (group, hashlib.sha256(context.encode()).hexdigest())
        self._drop_states(asked=key)
        if key in self._entries:
            return self._entries[key], True
        cache = None if self.files is None else self.files.load(context, prefill)
        found = cache is not None
        if cache is None:
            cache = prefill(context)
            if self.files is not None:
                self.files.save(cache, prefill)
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

    def holds(self, group: Hashable, context: str) -> bool:
        """Tell whether a prefilled context is in memory."""
        return (group, hashlib.sha256(context.encode()).hexdigest()) in self._entries

    def nbytes(self) -> int:
        """Return the bytes of all kept contexts."""
        return sum(cache.nbytes() for cache in self._entries.values())

    def _drop_states(self, asked: tuple[Hashable, str]) -> None:
        """Drop derived state while there is too much, that of the context asked for last: it may be used at once."""
        for key in sorted(self._entries, key=lambda key: key == asked):
            if self.nbytes() <= self.capacity_bytes:
                break
            self._entries[key].context_state.clear()

    def clear(self) -> None:
        """Forget all contexts."""
        self._entries.clear()


def ids_digest(ids: list[int]) -> str:
    """Hash token ids; equal ids give equal digests on every machine."""
    return hashlib.sha256(torch.tensor(ids, dtype=torch.int64).numpy().tobytes()).hexdigest()[:32]
