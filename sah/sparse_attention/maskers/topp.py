"""Oracle top-p: the fewest keys that together hold a given share of the true softmax mass.

The mass counts what earlier maskers keep as well (not a share of the residual mass alone), and is taken over keys: a
sink logit that a model adds to its denominator holds no key and is left out.
State: none. Bytes read per decoded token: all keys once, and the keys and values kept.
"""

from __future__ import annotations

from typing import Any

import torch

from sah.sparse_attention.kernels.scores import attention_logits
from sah.sparse_attention.mask import Mask
from sah.sparse_attention.maskers.base import (
    ResearchMasker,
    best_of_residual,
    extend_by_best,
    residual_scores,
)
from sah.sparse_attention.maskers.topp_config import TopPMaskerConfig


class TopPMasker(ResearchMasker):
    """Adds the fewest residual keys with which the whole mask reaches `top_p` of the softmax mass."""

    config: TopPMaskerConfig

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
        """Add the heaviest residual keys; see `ResearchMasker.add_mask`."""
        if previous_mask.is_full:
            return previous_mask
        mass = self._mass(queries, keys, attention_mask, scaling, kwargs.get("softcap"))
        kept = previous_mask.to_dense() > 0
        residual = attention_mask & ~kept
        needed = self.config.top_p - (mass * kept).sum(-1, keepdim=True)
        add = self._smallest_count(mass.masked_fill(~residual, 0.0), needed, residual.sum(-1))
        return previous_mask.merge(Mask.from_dense(previous_mask.shape, best_of_residual(mass, residual, add)))

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
        """Add the heaviest residual keys as index lists; plain twin: `add_mask`."""
        if previous_mask.is_full:
            return previous_mask
        mass = self._mass(queries, keys, attention_mask, scaling, kwargs.get("softcap"))
        scores = residual_scores(mass, attention_mask, previous_mask)
        residual = scores > float("-inf")
        left = mass.masked_fill(~residual, 0.0)
        needed = self.config.top_p - (mass.sum(-1, keepdim=True) - left.sum(-1, keepdim=True))
        return extend_by_best(previous_mask, scores, self._smallest_count(left, needed, residual.sum(-1)))

    @staticmethod
    def _mass(
        queries: torch.Tensor, keys: torch.Tensor, allowed: torch.Tensor, scaling: float, softcap: float | None
    ) -> torch.Tensor:
        logits = attention_logits(queries, keys, scaling, softcap).masked_fill(~allowed, float("-inf"))
        # A padded query allows no key: its softmax is undefined and holds no mass.
        return torch.softmax(logits.double(), dim=-1).nan_to_num(0.0)

    def _smallest_count(self, mass: torch.Tensor, needed: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        if self.config.top_p == 1.0:
            return residual
        ordered = mass.sort(dim=-1, descending=True).values
        before = ordered.cumsum(-1) - ordered
        return torch.minimum((before < needed).sum(-1), residual)
