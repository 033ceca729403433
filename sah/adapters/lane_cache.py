"""The KV cache of lanes: one context, which all of them read, and what each lane has behind it."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin, DynamicSlidingWindowLayer

from sah.adapters.kv_cache import GrowingLayer


class LaneLayer(CacheLayerMixin):
    """Keys and values of one layer.

    Args:
        layer: The layer of the prefilled context; read, never written to.
        length: Tokens of the context.
        lanes: Lanes that may come.
        room: Most tokens that a lane may put behind the context.

    Attributes:
        context: Keys and values of the context, (1, kv_heads, n, dim) each; a sliding-window layer holds the last ones.
        own: Keys and values behind it, (lanes, kv_heads, room, dim) each.
        hidden: Tokens of the context that the layer no longer holds.
    """

    def __init__(self, layer: Any, length: int, lanes: int, room: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.is_sliding = isinstance(layer, DynamicSlidingWindowLayer)
        states = (layer.keys, layer.values)
        self.context = tuple(part if self.is_sliding else part[:, :, :length] for part in states)
        self.hidden = length - self.context[0].shape[2]
        # Zeros: what nobody has written yet takes part in products whose result is thrown away, and must be finite.
        self.own = tuple(part.new_zeros(lanes, part.shape[1], room, part.shape[3]) for part in states)
        self.length = length
        self.place: tuple[torch.Tensor, torch.Tensor] | None = None
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Do nothing: all buffers are there."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put the keys and values of the call's rows where they belong.

        Args:
            key_states: (1, kv_heads, rows, head_dim).
            value_states: (1, kv_heads, rows, value_dim).
            *args: Not used.
            **kwargs: Not used.

        Returns:
            What was given; attention takes keys and values from `context` and `own`.
        """
        if self.place is None:
            raise ValueError("a cache of lanes was called outside a model call of lanes")
        lanes, slots = (part.to(key_states.device) for part in self.place)
        for own, states in zip(self.own, (key_states, value_states), strict=True):
            own[lanes, :, slots] = states[0].transpose(0, 1)
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return sizes that fit the rows alone; the mask itself is ours."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Return the tokens of the context."""
        return self.length

    def get_max_length(self) -> int:
        """Return -1: there is no maximum."""
        return -1


class LaneCache(Cache):
    """The layers of all lanes over one context.

    Args:
        past: The prefilled context's cache.
        length: Tokens of the context.
        lanes: Lanes that may come.
        room: Most tokens that a lane may put behind the context.
    """

    def __init__(self, past: Any, length: int, lanes: int, room: int) -> None:
        self.lane_layers = [LaneLayer(layer, length, lanes, room) for layer in past.layers]
        super().__init__(layers=[*self.lane_layers])

    def put(self, lanes: torch.Tensor, slots: torch.Tensor) -> None:
        """Say which lane and which place behind the context each row of the next call belongs to, (rows,) each."""
        for layer in self.lane_layers:
            layer.place = (lanes, slots)


def can_hold(past: Any, num_layers: int) -> bool:
    """Tell whether every layer of a context's cache is of a kind that lanes can share."""
    layers: list[Any] = past.layers
    known = all(type(layer) in (GrowingLayer, DynamicSlidingWindowLayer) for layer in layers)
    return known and len(layers) == num_layers and all(layer.keys is not None for layer in layers)


def bytes_a_token(past: Any) -> int:
    """Return the bytes that one more token takes in all layers."""
    layers: list[Any] = past.layers
    parts = [part for layer in layers for part in (layer.keys, layer.values)]
    return sum(part.shape[1] * part.shape[3] * part.element_size() for part in parts)
