"""The KV cache of a context: grows without copying, and can be cut back exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

HEADROOM = 256
"""Tokens of room kept behind a context, so that questions and answers seldom need a larger buffer."""


ALIGNMENT = 128
"""Buffers hold a multiple of this many tokens."""


class GrowingLayer(DynamicLayer):  # type: ignore[no-untyped-call]  # the base is not annotated
    """A layer whose keys and values are views of larger buffers.

    `DynamicLayer` concatenates at every token and so copies the whole context each time; here a token is written behind
    the last one. Cutting back only shortens the views.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._buffers: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values.

        Args:
            key_states: (batch, kv_heads, q_len, head_dim).
            value_states: (batch, kv_heads, q_len, value_dim).
            *args: Not used.
            **kwargs: Not used.

        Returns:
            All keys and values, (batch, kv_heads, kv_len, dim), as views.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if self._buffers is None or end > self._buffers[0].shape[-2] or not self._owns_view():
            old = (self.keys, self.values)
            self._buffers = (self._grown(key_states, old[0], end), self._grown(value_states, old[1], end))
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., start:end, :] = states
        self.keys, self.values = (buffer[..., :end, :] for buffer in self._buffers)
        return self.keys, self.values

    def _owns_view(self) -> bool:
        # Beam search replaces `keys` by a reordered copy; writing behind the old buffer would then be wrong.
        if self._buffers is None or self.keys is None:
            return False
        return bool(self.keys.data_ptr() == self._buffers[0].data_ptr())

    @staticmethod
    def _grown(states: torch.Tensor, old: torch.Tensor | None, end: int) -> torch.Tensor:
        growing = old is not None and old.numel() > 0
        # A buffer that proved too small once grows by a share of its size, so that long answers seldom copy it.
        room = end + HEADROOM + (end // 8 if growing else 0)
        # A multiple of the usual page sizes: whole pages of all heads then lie at even distances.
        room = -(-room // ALIGNMENT) * ALIGNMENT
        buffer = states.new_empty(*states.shape[:-2], room, states.shape[-1])
        if old is not None and growing:
            buffer[..., : old.shape[-2], :] = old
        return buffer


def new_cache(config: Any) -> DynamicCache:
    """Make an empty cache for a model.

    Args:
        config: The model's config.

    Returns:
        A cache whose full-attention layers grow in place; sliding-window layers remember what a cut has to restore.
    """
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    if hasattr(cache, "layer_class_to_replicate") and cache.layer_class_to_replicate is DynamicLayer:
        cache.layer_class_to_replicate = GrowingLayer
    for layer in cache.layers:
        if hasattr(layer, "activate_past_recording"):
            layer.activate_past_recording()
    return cache


def cut_back(cache: DynamicCache, length: int) -> None:
    """Cut a cache back to its first tokens.

    Args:
        cache: The cache; every layer must hold at least `length` tokens. After a forward that failed midway the layers
            may hold different numbers.
        length: Tokens to keep.
    """
    layers: list[Any] = cache.layers
    for layer in layers:
        # Zero is no no-op: it also makes a sliding-window layer forget what lies behind its window.
        layer.crop(length - layer.get_seq_length())


def holds_everything(layer: Any, longest: float | None) -> bool:
    """Tell whether a layer of a cache belongs to attention to the whole sequence.

    As `attention_switch.is_full_attention`: a window that never cuts anything off is none.

    Args:
        layer: The layer.
        longest: Longest sequence the model allows, in tokens; None if it names none.

    Returns:
        Whether it does.
    """
    return isinstance(layer, GrowingLayer) or getattr(layer, "sliding_window", 0) >= (longest or float("inf"))


@dataclass(frozen=True)
class KVShape:
    """What a token's keys and values take in a model."""

    layers: tuple[int, ...]
    """Layers that attend to the whole sequence. Sliding-window layers are left out: they read their window alone."""

    kv_heads: int
    head_dim: int
    itemsize: int
    """Bytes of an entry."""

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's keys and values over all these layers."""
        return 2 * len(self.layers) * self.kv_heads * self.head_dim * self.itemsize


def kv_shape(model: Any) -> KVShape:
    """Read from a model what a token's keys and values take.

    Args:
        model: A causal language model of transformers; its cache is taken to have the type of its weights.

    Returns:
        The shape.
    """
    config = model.config.get_text_config(decoder=True)
    longest = getattr(config, "max_position_embeddings", None)
    layers = [number for number, x in enumerate(new_cache(model.config).layers) if holds_everything(x, longest)]
    heads = config.num_attention_heads
    return KVShape(
        layers=tuple(layers),
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        itemsize=model.dtype.itemsize,
    )


def memory_bytes(cache: DynamicCache) -> int:
    """Return the bytes of memory that keys and values hold, headroom included."""
    storages = [states.untyped_storage() for states in _states(cache)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _states(cache: DynamicCache) -> list[torch.Tensor]:
    layers: list[Any] = cache.layers
    return [states for layer in layers for states in (layer.keys, layer.values) if states is not None]
