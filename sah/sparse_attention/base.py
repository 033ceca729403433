"""The interface of sparse attention."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import MutableMapping
from typing import Any

import torch

from sah.config.lookup import named
from sah.errors import ConfigError
from sah.sparse_attention.config import SparseAttentionConfig


class SparseAttention(ABC):
    """Computes attention over the keys that a method keeps. Knows nothing of models or libraries."""

    @classmethod
    def create_from_config(cls, config: SparseAttentionConfig) -> SparseAttention:
        """Build the sparse attention that a config describes.

        Args:
            config: A config whose class names its attention class.

        Returns:
            The attention.

        Raises:
            ConfigError: If the config is none of sparse attention, or of another class than asked for.
        """
        if not isinstance(config, SparseAttentionConfig) or not config.attention:
            raise ConfigError(
                f"{config!r} describes no sparse attention. Allowed: ResearchAttentionConfig(masker_configs=[...]) or "
                "EfficientAttentionConfig(masker_configs=[...])"
            )
        built: type[SparseAttention] = named(config.attention)
        if not issubclass(built, cls):
            raise ConfigError(
                f"{type(config).__name__} builds {built.__name__}, not {cls.__name__}. "
                f"Write {built.__name__}.create_from_config(config)"
            )
        # What a config's class takes is the config; the interface itself has no constructor of its own.
        return built(config)  # type: ignore[call-arg]

    @abstractmethod
    def custom_attention(
        self,
        module: torch.nn.Module | None,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float,
        dropout: float,
        sparse_meta_data: dict[Any, Any],
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Compute attention for one layer.

        Args:
            module: The model's attention module, or None.
            queries: (batch, heads, q_len, head_dim).
            keys: (batch, kv_heads, kv_len, head_dim), never repeated.
            values: (batch, kv_heads, kv_len, value_dim).
            attention_mask: Boolean or additive, broadcastable to (batch, heads, q_len, kv_len); None means causal.
            scaling: Factor of the dot products.
            dropout: Share of weights dropped.
            sparse_meta_data: State of the question at hand; the attention keeps its per-layer state in it.
            **kwargs: `layer_idx` (required), and what the model passes on: `s_aux` (learned sink logits, (heads,)),
                `softcap` (cap on logits).

        Returns:
            Output (batch, q_len, heads, value_dim), and the weights (batch, heads, q_len, kv_len) or None.
        """

    def prepare_context(  # noqa: B027 - most methods need nothing
        self, context_state: MutableMapping[Any, Any], layer_idx: int, keys: torch.Tensor
    ) -> None:
        """Derive what the method needs of a context's keys, once; what is there already stays.

        Args:
            context_state: Of the context cache; written to.
            layer_idx: The layer.
            keys: The context's keys, (1, kv_heads, length, head_dim).
        """
