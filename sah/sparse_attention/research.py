"""`ResearchAttention`: the plain masked form of a recipe, differentiable and fully visible."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import torch

from sah.config.lookup import named
from sah.errors import ConfigError
from sah.sparse_attention.allowed import allowed_keys
from sah.sparse_attention.attention_errors import observe_queries
from sah.sparse_attention.base import SparseAttention
from sah.sparse_attention.config import MaskedAttentionConfig
from sah.sparse_attention.kernels.masked import masked_attention
from sah.sparse_attention.key_state import KeyStateMasker
from sah.sparse_attention.mask import Mask
from sah.sparse_attention.maskers.base import ResearchMasker
from sah.sparse_attention.maskers.evicting import EvictingMasker
from sah.sparse_attention.observe import Last
from sah.sparse_attention.statistics import STATISTICS_KEY, AttentionStatistics
from sah.sparse_attention.times import ATTENTION, SELECTION, Laps


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
        self._recipes: dict[int, list[ResearchMasker]] = {}

    def recipe_of(self, layer_idx: int) -> list[ResearchMasker]:
        """Return the maskers that work in a layer, in order; none for a dense layer.

        Raises:
            ConfigError: If a layer that is not dense has none.
        """
        if layer_idx not in self._recipes:
            self._recipes[layer_idx] = [self.maskers[i] for i in self.config.recipe_of(layer_idx)]
        return self._recipes[layer_idx]

    def prepare_context(
        self,
        context_state: MutableMapping[Any, Any],
        layer_idx: int,
        keys: torch.Tensor,
        values: torch.Tensor | None = None,
    ) -> None:
        """Derive what the recipe needs of a context; see `SparseAttention.prepare_context`."""
        if not self.chooses_indices:
            return
        for masker in self.recipe_of(layer_idx):
            if isinstance(masker, KeyStateMasker):
                masker.prepare_context(context_state, keys, layer_idx, values)

    def observed(self, layer_idx: int, *, question: bool = False) -> frozenset[Last]:
        """Tell what must be seen of tokens that run dense; see `SparseAttention.observed`."""
        evicting = [masker for masker in self.recipe_of(layer_idx) if isinstance(masker, EvictingMasker)]
        if question:
            return frozenset(masker.observed for masker in evicting if masker.observes_question)
        return frozenset(masker.observed for masker in evicting if masker.needs_context)

    def build_mask(
        self,
        queries: torch.Tensor,
        keys: Any,
        values: Any,
        attention_mask: torch.Tensor,
        scaling: float,
        dropout: float,
        sparse_meta_data: dict[Any, Any],
        **kwargs: Any,
    ) -> Mask:
        """Apply the layer's recipe in order to an empty mask; a dense layer keeps everything.

        Args:
            queries: (batch, heads, q_len, head_dim).
            keys: (batch, kv_heads, kv_len, head_dim); `SharedStates` where all maskers of the layer work in lanes.
            values: (batch, kv_heads, kv_len, value_dim), like keys.
            attention_mask: Boolean, broadcastable to (batch, heads, q_len, kv_len).
            scaling: Factor of the dot products.
            dropout: Passed on to the maskers.
            sparse_meta_data: State of the question at hand.
            **kwargs: `layer_idx` and what the model passes on.

        Returns:
            The keys that each query reads.
        """
        shape = (*queries.shape[:3], keys.shape[2])
        recipe = self.recipe_of(kwargs["layer_idx"])
        mask = Mask.empty(shape, queries.device) if recipe else Mask.full(shape, queries.device)
        for masker in recipe:
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
        laps = Laps(sparse_meta_data, queries.device)
        allowed = allowed_keys(attention_mask, queries, keys)
        mask = self.build_mask(queries, keys, values, allowed, scaling, dropout, sparse_meta_data, **kwargs)
        laps.end(SELECTION)
        self.record_density(mask, allowed, sparse_meta_data, kwargs["layer_idx"])
        output = self.attend(queries, keys, values, mask, allowed, scaling, dropout, **kwargs)
        laps.end(ATTENTION)
        observe_queries(sparse_meta_data, output[0], queries, keys, values, mask, allowed, scaling, **kwargs)
        return output

    def attend(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        mask: Mask,
        allowed: torch.Tensor,
        scaling: float,
        dropout: float,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend over a mask, with every logit computed.

        Args:
            queries: (batch, heads, q_len, head_dim).
            keys: (batch, kv_heads, kv_len, head_dim).
            values: (batch, kv_heads, kv_len, value_dim).
            mask: The keys that each query reads.
            allowed: Boolean, broadcastable to (batch, heads, q_len, kv_len).
            scaling: Factor of the dot products.
            dropout: Share of weights dropped.
            **kwargs: `s_aux`, `softcap`.

        Returns:
            Output (batch, q_len, heads, value_dim), and weights (batch, heads, q_len, kv_len) or None.
        """
        output, weights = masked_attention(
            queries,
            keys,
            values,
            mask.to_dense() * allowed,
            scaling,
            dropout=dropout,
            sinks=kwargs.get("s_aux"),
            softcap=kwargs.get("softcap"),
        )
        return output.transpose(1, 2).contiguous(), weights

    @staticmethod
    def check_kept(kept: torch.Tensor, layer_idx: int) -> None:
        """Check that every query keeps something.

        Args:
            kept: Number of keys of each query.
            layer_idx: The layer.

        Raises:
            ConfigError: If one keeps none.
        """
        if bool((kept == 0).any()):
            raise ConfigError(
                f"The recipe keeps no key for some query of layer {layer_idx}. "
                "Allowed: a recipe that keeps at least one key for every query, e.g. with masker.local.window_size=1"
            )

    def record_density(
        self, mask: Mask, allowed: torch.Tensor, sparse_meta_data: dict[Any, Any], layer_idx: int
    ) -> None:
        """Check that every query reads something, and record what it reads where the run asked for it.

        Args:
            mask: The keys that each query reads.
            allowed: Boolean, broadcastable to (batch, heads, q_len, kv_len).
            sparse_meta_data: State of the question at hand.
            layer_idx: The layer.

        Raises:
            ConfigError: If a query that may read keys keeps none.
        """
        kept, may_read = mask.count(allowed), allowed.sum(-1)
        self.check_kept(torch.where(may_read > 0, kept, 1), layer_idx)
        statistics = sparse_meta_data.get(STATISTICS_KEY)
        if isinstance(statistics, AttentionStatistics):
            statistics.record(layer_idx, kept, may_read, dense=not self.recipe_of(layer_idx))


def build_maskers(config: MaskedAttentionConfig) -> list[ResearchMasker]:
    """Build the maskers of a recipe in its order.

    Args:
        config: The recipe.

    Returns:
        One masker a step; two of one class have different keys.
    """
    maskers: list[ResearchMasker] = []
    for position, masker_config in enumerate(config.masker_configs):
        masker_class: type[ResearchMasker] = named(masker_config.masker)
        maskers.append(masker_class(masker_config, key=f"{position}.{masker_config.name}", seed=config.seed))
    return maskers
