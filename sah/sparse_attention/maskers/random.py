"""Uniform random sampling: the baseline that every sampler has to beat.

Keys are drawn without replacement from those not yet kept, so that each has the inclusion probability n / N exactly,
and attention weighs a drawn key by N / n. `selection: group` draws once for all query heads of a KV head.
State: none; a draw depends on the seed, the layer, the query's own position and the lane, and on nothing else.
Bytes read per decoded token: the keys and values drawn.
"""

from __future__ import annotations

from typing import Any

import torch

from sah.sparse_attention.budget import keys_to_add
from sah.sparse_attention.mask import Mask
from sah.sparse_attention.maskers.base import DrawingMasker
from sah.sparse_attention.maskers.random_config import RandomSamplingMaskerConfig
from sah.sparse_attention.pool import Pool, add_drawn, share_drawn


class RandomSamplingMasker(DrawingMasker):
    """Draws a number of residual keys that the config fixes."""

    config: RandomSamplingMaskerConfig
    works_in_lanes = True

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
        """Draw from the residual; see `ResearchMasker.add_mask`."""
        if previous_mask.is_full:
            return previous_mask
        pool = self.pool(queries, keys, attention_mask, sparse_meta_data, previous_mask, kwargs["layer_idx"])
        return self._draw(pool, self._draws(pool), previous_mask)

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
        """Draw from the residual as index lists; plain twin: `add_mask`."""
        if previous_mask.is_full or not self.can_extend(previous_mask, attention_mask, keys):
            arguments = (queries, keys, values, attention_mask, scaling, dropout, sparse_meta_data, previous_mask)
            return self.add_mask(*arguments, **kwargs)
        pool = self.pool(
            queries, keys, attention_mask, sparse_meta_data, previous_mask, kwargs["layer_idx"], as_lists=True
        )
        draws = self._draws(pool)
        if previous_mask.is_certain and torch.equal(draws, pool.size):
            return previous_mask.merge(Mask.full(previous_mask.shape, previous_mask.device))
        return self._draw(pool, draws, previous_mask)

    def _draws(self, pool: Pool) -> torch.Tensor:
        return keys_to_add(self.config.density, self.config.sampling_rate, pool.allowed, pool.allowed - pool.size)

    @staticmethod
    def _draw(pool: Pool, draws: torch.Tensor, previous: Mask) -> Mask:
        indices, used, _ = pool.draw(draws)
        return add_drawn(previous, indices, used, share_drawn(draws, pool.size))
