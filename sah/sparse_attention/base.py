"""The interface of sparse attention."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import MutableMapping
from typing import Any

import torch

from sah.config.lookup import named
from sah.errors import ConfigError
from sah.sparse_attention.config import SparseAttentionConfig
from sah.sparse_attention.lanes import LaneStates
from sah.sparse_attention.observe import Last
from sah.sparse_attention.shared import SharedStates


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

    def attend_lanes(
        self,
        module: torch.nn.Module | None,
        queries: torch.Tensor,
        keys: SharedStates,
        values: SharedStates,
        scaling: float,
        states: LaneStates,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Compute attention for rows of several lanes that share a context.

        This plain form takes the lanes one by one, each with its keys written out; faster ones are compared with it.

        Args:
            module: The model's attention module, or None.
            queries: (rows, heads, 1, head_dim); the rows of a lane are its queries in order.
            keys: (rows, kv_heads, kv_len, head_dim).
            values: (rows, kv_heads, kv_len, value_dim).
            scaling: Factor of the dot products.
            states: State of the setting's lanes.
            **kwargs: As for `custom_attention`.

        Returns:
            (rows, heads, value_dim).
        """
        output = queries.new_empty(*queries.shape[:2], values.shape[3])
        for lane in dict.fromkeys(keys.lanes.tolist()):
            rows = (keys.lanes == lane).nonzero().flatten()
            whole = [part.of_lane(lane, int(keys.lengths[rows].max())) for part in (keys, values)]
            mine = queries[rows].squeeze(2).transpose(0, 1)[None]
            found, _ = self.custom_attention(
                module, mine, whole[0], whole[1], None, scaling, 0.0, states.alone[lane], **kwargs
            )
            output[rows] = found[0]
        return output

    def prepare_context(  # noqa: B027 - most methods need nothing
        self,
        context_state: MutableMapping[Any, Any],
        layer_idx: int,
        keys: torch.Tensor,
        values: torch.Tensor | None = None,
    ) -> None:
        """Derive what the method needs of a context's keys and values, once; what is there already stays.

        Args:
            context_state: Of the context cache; written to.
            layer_idx: The layer.
            keys: The context's keys, (1, kv_heads, length, head_dim).
            values: Its values, (1, kv_heads, length, value_dim). Without them methods that need them derive nothing.
        """

    def observed(self, layer_idx: int, *, question: bool = False) -> frozenset[Last]:
        """Tell what a layer's method must see of tokens that run dense; most need nothing.

        Args:
            layer_idx: The layer.
            question: Whether it is about a question's tokens and not a context's.

        Returns:
            How many of the last queries each observation is of, None for all; see `sah.sparse_attention.observe`.
        """
        return frozenset()
