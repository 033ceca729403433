"""Uniform random sampling: the baseline that every sampler has to beat.

Keys are drawn without replacement from those not yet kept, so that each has the inclusion probability n / N exactly,
and attention weighs a drawn key by N / n.
State: none; a draw depends on the seed, the layer, the query's own position and the lane, and on nothing else.
Bytes read per decoded token: the keys and values drawn.
"""

from __future__ import annotations

from typing import Any

import torch

from sah.sparse_attention.budget import keys_to_add
from sah.sparse_attention.mask import Mask
from sah.sparse_attention.maskers.base import (
    SamplingMasker,
    best_of_residual,
    extend_by_best,
    residual_scores,
)
from sah.sparse_attention.maskers.random_config import RandomSamplingMaskerConfig
from sah.sparse_attention.randomness import uniform_noise


class RandomSamplingMasker(SamplingMasker):
    """Draws the n residual keys with the smallest of independent uniform numbers."""

    config: RandomSamplingMaskerConfig

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
        draws, probability = self._draws(attention_mask, previous_mask)
        residual = attention_mask & (previous_mask.to_dense() == 0)
        noise = uniform_noise(self.seed, self.key, kwargs["layer_idx"], sparse_meta_data, attention_mask, queries.shape)
        chosen = best_of_residual(-noise, residual, draws)
        return previous_mask.merge(Mask.from_dense(previous_mask.shape, chosen * probability.unsqueeze(-1)))

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
        if previous_mask.is_full:
            return previous_mask
        draws, probability = self._draws(attention_mask, previous_mask)
        noise = uniform_noise(self.seed, self.key, kwargs["layer_idx"], sparse_meta_data, attention_mask, queries.shape)
        scores = residual_scores(-noise, attention_mask, previous_mask)
        return extend_by_best(previous_mask, scores, draws, probability)

    def _draws(self, attention_mask: torch.Tensor, previous_mask: Mask) -> tuple[torch.Tensor, torch.Tensor]:
        allowed, kept = attention_mask.sum(-1), previous_mask.count(attention_mask)
        draws = keys_to_add(self.config.density, self.config.sampling_rate, allowed, kept)
        # Computed in double and rounded once, so that drawing all of the residual gives exactly 1.
        probability = (draws.double() / (allowed - kept).clamp(min=1)).float()
        return draws, probability
