"""State that a method derives from keys: built once for a context, grown key by key behind it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch

from sah.sparse_attention.shared import SharedStates

CONTEXT_STATE_KEY = "context_state"
"""Key of `sparse_meta_data` that holds what was derived from the context's keys, read-only."""

CONTEXT_LENGTH_KEY = "context_length"
"""Key of `sparse_meta_data` that holds the number of keys that are the context. Where it is missing, the keys before
the first call's queries are; the two differ where the question ran dense (`phases=[decode]`)."""


@dataclass(frozen=True)
class ContextPart:
    """What a method derived from a context's keys in one layer."""

    fitted: Any
    """What `KeyStateMasker.fit` gave."""

    units: torch.Tensor
    """What `KeyStateMasker.derive` gave for the context's complete units, (batch, kv_heads, units, width)."""


class OwnPart:
    """What a question derived from the keys behind the context, in a buffer that grows.

    Args:
        fitted: What `KeyStateMasker.fit` gave.
        first: Number of the first unit held here.
    """

    def __init__(self, fitted: Any, first: int) -> None:
        self.fitted = fitted
        self.first = first
        self.count = 0
        self._buffer: torch.Tensor | None = None

    @property
    def end(self) -> int:
        """Number of the unit behind the last one."""
        return self.first + self.count

    def append(self, units: torch.Tensor) -> None:
        """Write units (batch, kv_heads, n, width) behind the last one."""
        end = self.count + units.shape[2]
        if self._buffer is None or end > self._buffer.shape[2]:
            grown = units.new_empty(*units.shape[:2], end + max(64, end // 8), units.shape[3])
            if self._buffer is not None:
                grown[:, :, : self.count] = self._buffer[:, :, : self.count]
            self._buffer = grown
        self._buffer[:, :, self.count : end] = units
        self.count = end

    def units(self) -> list[torch.Tensor]:
        """Return the units as a view, in a list that is empty where there are none."""
        return [] if self._buffer is None else [self._buffer[:, :, : self.count]]

    def nbytes(self) -> int:
        """Return the bytes of the units held, without room to grow."""
        return sum(view.numel() * view.element_size() for view in self.units())


class KeyStateMasker:
    """Mixin for maskers that summarise keys: page bounds, labels, signatures.

    Keys are taken in units of `unit` keys; a unit is derived once, when its last key is there. Units of the context
    lie in `context_state`, shared and never written to by a question; later ones in `sparse_meta_data[layer_idx][key]`.
    """

    key: str
    unit: int = 1

    @abstractmethod
    def state_identity(self) -> Hashable:
        """Name everything in the config that the state depends on; maskers that agree in it share a context's state."""

    @abstractmethod
    def derive(self, keys: torch.Tensor, fitted: Any, layer_idx: int) -> torch.Tensor:
        """Summarise complete units.

        Args:
            keys: (batch, kv_heads, n * unit, head_dim).
            fitted: What `fit` gave for the context.
            layer_idx: The layer.

        Returns:
            (batch, kv_heads, n, width), a new tensor.
        """

    def fit(self, keys: torch.Tensor, layer_idx: int) -> Any:
        """Learn what all units of a layer share (a mean, a codebook) from the context's keys; most methods need none.

        Args:
            keys: (batch, kv_heads, context length, head_dim); the length may be 0.
            layer_idx: The layer.

        Returns:
            Anything that `derive` reads.
        """
        return None

    def prepare_context(
        self,
        context_state: MutableMapping[Any, Any],
        keys: torch.Tensor,
        layer_idx: int,
        values: torch.Tensor | None = None,
    ) -> None:
        """Derive the state of a context's keys, unless it is there.

        Args:
            context_state: Of the context cache; written to.
            keys: The context's keys, (1, kv_heads, length, head_dim).
            layer_idx: The layer.
            values: The context's values, (1, kv_heads, length, value_dim), for maskers that read them; most do not.
        """
        name = (self.state_identity(), layer_idx)
        if name not in context_state:
            fitted = self.fit(keys, layer_idx)
            complete = keys.shape[2] // self.unit * self.unit
            context_state[name] = ContextPart(fitted, self.derive(keys[:, :, :complete], fitted, layer_idx))

    def key_state(
        self, keys: torch.Tensor, sparse_meta_data: dict[Any, Any], layer_idx: int, q_len: int
    ) -> tuple[Any, list[torch.Tensor]]:
        """Bring the state up to the keys at hand.

        Args:
            keys: All keys, (batch, kv_heads, kv_len, head_dim).
            sparse_meta_data: State of the question at hand.
            layer_idx: The layer.
            q_len: Queries of this call. Where neither a context was prepared nor `CONTEXT_LENGTH_KEY` tells its
                length, the keys before the first call's queries are taken for it.

        Returns:
            What `fit` gave, and the units of all keys as tensors (batch, kv_heads, n, width) in order; together they
            cover kv_len // unit units.
        """
        context = self._context_part(sparse_meta_data, layer_idx)
        own_states = sparse_meta_data.setdefault(layer_idx, {})
        own: OwnPart | None = own_states.get(self.key)
        complete = keys.shape[2] // self.unit
        if own is None or own.end > complete:
            # Fewer keys than before: the sequence was cut back, and what was derived behind the cut is void.
            if context is not None:
                own = OwnPart(context.fitted, context.units.shape[2])
            else:
                length = sparse_meta_data.get(CONTEXT_LENGTH_KEY, keys.shape[2] - q_len)
                own = OwnPart(self.fit(keys[:, :, :length], layer_idx), 0)
            own_states[self.key] = own
        if complete > own.end:
            own.append(self.derive(keys[:, :, own.end * self.unit : complete * self.unit], own.fitted, layer_idx))
        return own.fitted, [*([] if context is None else [context.units]), *own.units()]

    def lane_state(
        self, keys: SharedStates, sparse_meta_data: dict[Any, Any], layer_idx: int
    ) -> tuple[ContextPart, torch.Tensor]:
        """Bring the state of all lanes of a setting up to the keys at hand.

        Args:
            keys: All keys, (rows, kv_heads, kv_len, head_dim).
            sparse_meta_data: State of the setting's lanes.
            layer_idx: The layer.

        Returns:
            What was derived from the context, and what `derive_own` gives for every place behind it,
            (lanes, kv_heads, room, width).

        Raises:
            ValueError: If the context's state was not prepared.
        """
        context = self._context_part(sparse_meta_data, layer_idx)
        if context is None:
            raise ValueError("lanes need the state of their context: call prepare_context first")
        states = sparse_meta_data.setdefault(layer_idx, {})
        own: torch.Tensor | None = states.get(self.key)
        if own is None or not keys.one_each:
            # A question's chunk, or the first call after a question that ran dense.
            whole = self.derive_own(keys, None, context.fitted, layer_idx)
            if own is None:
                own = whole.new_zeros(*whole.shape[:2], keys.own.shape[2], whole.shape[3])
                states[self.key] = own
            own[:, :, : keys.used] = whole
        else:
            own[keys.lanes, :, keys.slots] = self.derive_own(keys, own, context.fitted, layer_idx)
        return context, own

    def derive_own(self, keys: SharedStates, before: torch.Tensor | None, fitted: Any, layer_idx: int) -> torch.Tensor:
        """Summarise keys behind the context place by place; for units of one key as `derive` does.

        Args:
            keys: All keys, (rows, kv_heads, kv_len, head_dim).
            before: What was summarised so far, (lanes, kv_heads, room, width), or None for all places anew.
            fitted: What `fit` gave for the context.
            layer_idx: The layer.

        Returns:
            (lanes, kv_heads, used, width) for all places, or (rows, kv_heads, width) for each row's own key.
        """
        if before is None:
            return self.derive(keys.own[:, :, : keys.used], fitted, layer_idx)
        return self.derive(keys.fresh(), fitted, layer_idx).squeeze(2)

    def context_length(self, before: int, sparse_meta_data: dict[Any, Any], layer_idx: int) -> int:
        """Return how many of the keys are the context, for maskers with units of one key.

        Where nobody says it, it is the keys before the question's first call.

        Args:
            before: Keys before the queries at hand.
            sparse_meta_data: State of the question; a number found out here is kept in it.
            layer_idx: The layer.
        """
        if CONTEXT_LENGTH_KEY in sparse_meta_data:
            return int(sparse_meta_data[CONTEXT_LENGTH_KEY])
        prepared = self._context_part(sparse_meta_data, layer_idx)
        if prepared is not None:
            return int(prepared.units.shape[2])
        states = sparse_meta_data.setdefault(layer_idx, {})
        name = f"{self.key}.context"
        if states.setdefault(name, before) > before:
            # The sequence was cut back into its context: what was fitted is to be fitted anew.
            states[name] = before
            states.pop(self.key, None)
        return int(states[name])

    def _context_part(self, sparse_meta_data: dict[Any, Any], layer_idx: int) -> ContextPart | None:
        contexts: Mapping[Any, Any] = sparse_meta_data.get(CONTEXT_STATE_KEY) or {}
        return contexts.get((self.state_identity(), layer_idx))
