"""StreamingLLM: attention sinks and a sliding window.

Based on "Efficient Streaming Language Models with Attention Sinks" (Xiao et al. 2023, arXiv 2309.17453).
Deviations: the paper evicts keys and re-numbers positions inside its cache; here the cache stays whole, positions are
the model's own, and the pattern says only which keys a query reads. A density counts sinks and window together.
State: none. Bytes read per decoded token: the keys and values of the sinks and the window.
"""

from __future__ import annotations

from typing import Any

import torch

from sah.sparse_attention.budget import keys_to_add, size_in_keys, target_keys
from sah.sparse_attention.grouping import keeps_by_group
from sah.sparse_attention.mask import Mask
from sah.sparse_attention.maskers.base import FixedMasker, best_of_residual
from sah.sparse_attention.maskers.streaming_llm_config import StreamingLLMMaskerConfig
from sah.sparse_attention.shared import SharedStates


class StreamingLLMMasker(FixedMasker):
    """Keeps the first `sink_size` keys and a window; under a density the window takes what the sinks leave of it.

    A density too small for both keeps the window's last key first, so that a query always reads its own.
    """

    config: StreamingLLMMaskerConfig

    def spans(self, allowed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return sinks and window where nothing is kept before; see `FixedMasker.spans`."""
        sinks = size_in_keys(self.config.sink_size, allowed)
        if self.config.density is None:
            return sinks, size_in_keys(self.config.window_size or 0, allowed)
        target = target_keys(self.config.density, allowed)
        sinks = torch.minimum(sinks, (target - 1).clamp(min=0))
        return sinks, target - sinks

    def add_mask(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        attention_mask: torch.Tensor,
        scaling: float,
        dropout: float,
        sparse_meta_data: dict[Any, Any],
        previous_mask: Mask,
        **kwargs: Any,
    ) -> Mask:
        """Add sinks and window; see `ResearchMasker.add_mask`.

        Where earlier maskers keep keys, a density counts them: the query's own key, the sinks and then ever older keys
        are added until the whole mask is full.
        """
        if self.config.density is None or previous_mask.is_empty:
            return super().add_mask(
                queries, keys, values, attention_mask, scaling, dropout, sparse_meta_data, previous_mask, **kwargs
            )
        if previous_mask.is_full:
            return previous_mask
        rank = attention_mask.long().cumsum(-1)
        count = rank[..., -1:]
        sinks = size_in_keys(self.config.sink_size, count)
        preference = torch.where(rank <= sinks, 2 * count - rank, rank)
        preference = torch.where(rank == count, 2 * count, preference)
        add = keys_to_add(self.config.density, None, count.squeeze(-1), previous_mask.count(attention_mask))
        residual = attention_mask & (previous_mask.to_dense() == 0)
        chosen = best_of_residual(preference.double(), residual, add)
        return previous_mask.merge(Mask.from_dense(previous_mask.shape, chosen))

    def add_indices(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        attention_mask: torch.Tensor,
        scaling: float,
        dropout: float,
        sparse_meta_data: dict[Any, Any],
        previous_mask: Mask,
        **kwargs: Any,
    ) -> Mask:
        """Add two ranges where nothing is kept before or sizes are given, else through the plain form."""
        arguments = (queries, keys, values, attention_mask, scaling, dropout, sparse_meta_data, previous_mask)
        if self.config.density is None or previous_mask.is_empty:
            return super().add_indices(*arguments, **kwargs)
        mask = self.add_mask(*arguments, **kwargs)
        if not isinstance(keys, SharedStates):
            return mask
        return mask.as_lists(keys.shape[1] if keeps_by_group(previous_mask, keys.shape[1]) else None)
