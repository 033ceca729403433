"""`ResearchAttention`: the plain masked form of a recipe, differentiable and fully visible."""

from __future__ import annotations

from typing import Any

import torch

from sah.errors import ConfigError
from sah.sparse_attention.allowed import allowed_keys
from sah.sparse_attention.base import SparseAttention
from sah.sparse_attention.config import MaskedAttentionConfig
from sah.sparse_attention.kernels.masked import masked_attention
from sah.sparse_attention.mask import Mask
from sah.sparse_attention.maskers.base import ResearchMasker, build_maskers
from sah.sparse_attention.statistics import STATISTICS_KEY, AttentionStatistics


class ResearchAttention(SparseAttention):
    """Builds a dense mask from the recipe and runs attention over it with every logit at hand.

    It is the twin that every faster execution is tested against.

    Args:
        config: The recipe and the seed.

    Raises:
        ConfigError: If the recipe cannot be run.
    """

    chooses_indices = False
    """Whether maskers are asked for their fast form."""

    def __init__(self, config: MaskedAttentionConfig) -> None:
        config.validate()
        self.config = config
        self.maskers: list[ResearchMasker] = build_maskers(config)

    def build_mask(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        attention_mask: torch.Tensor,
        scaling: float,
        dropout: float,
        sparse_meta_data: dict[Any, Any],
        **kwargs: Any,
    ) -> Mask:
        """Apply the recipe in order to an empty mask.

        Args:
            queries: (batch, heads, q_len, head_dim).
            keys: (batch, kv_heads, kv_len, head_dim).
            values: (batch, kv_heads, kv_len, value_dim).
            attention_mask: Boolean, broadcastable to (batch, heads, q_len, kv_len).
            scaling: Factor of the dot products.
            dropout: Passed on to the maskers.
            sparse_meta_data: State of the question at hand.
            **kwargs: `layer_idx` and what the model passes on.

        Returns:
            The keys that each query reads.
        """
        mask = Mask.empty((*queries.shape[:3], keys.shape[2]), queries.device)
        for masker in self.maskers:
            add = masker.add_indices if self.chooses_indices else masker.add_mask
            mask = add(queries, keys, values, attention_mask, scaling, dropout, sparse_meta_data, mask, **kwargs)
        return mask

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
        """Compute attention over the recipe's mask; see `SparseAttention.custom_attention`.

        Raises:
            ConfigError: If a query that may read keys keeps none.
        """
        allowed = allowed_keys(attention_mask, queries, keys)
        mask = self.build_mask(queries, keys, values, allowed, scaling, dropout, sparse_meta_data, **kwargs)
        return attend_densely(queries, keys, values, mask, allowed, scaling, dropout, sparse_meta_data, **kwargs)


def attend_densely(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: Mask,
    allowed: torch.Tensor,
    scaling: float,
    dropout: float,
    sparse_meta_data: dict[Any, Any],
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend over a mask with every logit computed, and record what was kept.

    Args:
        queries: (batch, heads, q_len, head_dim).
        keys: (batch, kv_heads, kv_len, head_dim).
        values: (batch, kv_heads, kv_len, value_dim).
        mask: The keys that each query reads.
        allowed: Boolean, broadcastable to (batch, heads, q_len, kv_len).
        scaling: Factor of the dot products.
        dropout: Share of weights dropped.
        sparse_meta_data: State of the question at hand.
        **kwargs: `layer_idx`, `s_aux`, `softcap`.

    Returns:
        Output (batch, q_len, heads, value_dim) and weights (batch, heads, q_len, kv_len).

    Raises:
        ConfigError: If a query that may read keys keeps none.
    """
    inclusion = mask.to_dense() * allowed
    record_density(sparse_meta_data, kwargs["layer_idx"], (inclusion > 0).sum(-1), allowed.sum(-1))
    output, weights = masked_attention(
        queries,
        keys,
        values,
        inclusion,
        scaling,
        dropout=dropout,
        sinks=kwargs.get("s_aux"),
        softcap=kwargs.get("softcap"),
    )
    return output.transpose(1, 2).contiguous(), weights


def record_density(sparse_meta_data: dict[Any, Any], layer_idx: int, kept: torch.Tensor, allowed: torch.Tensor) -> None:
    """Check that every query reads something, and record what it reads where the run asked for it.

    Args:
        sparse_meta_data: State of the question at hand.
        layer_idx: The layer.
        kept: Keys kept, broadcastable to (batch, heads, q_len).
        allowed: Keys allowed, broadcastable to (batch, heads, q_len).

    Raises:
        ConfigError: If a query that may read keys keeps none.
    """
    if bool(((kept == 0) & (allowed > 0)).any()):
        raise ConfigError(
            f"The recipe keeps no key for some query of layer {layer_idx}. "
            "Allowed: a recipe that keeps at least one key for every query, e.g. with masker.local.window_size=1"
        )
    statistics = sparse_meta_data.get(STATISTICS_KEY)
    if isinstance(statistics, AttentionStatistics):
        statistics.record(layer_idx, kept, allowed)
