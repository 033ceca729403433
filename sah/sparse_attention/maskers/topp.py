"""Oracle top-p: the fewest keys that together hold a given share of the true softmax mass.

The mass counts what earlier maskers keep as well (not a share of the residual mass alone), and is taken over keys: a
sink logit that a model adds to its denominator holds no key and is left out.
State: none. Bytes read per decoded token: all keys once, and the keys and values kept.
"""

from __future__ import annotations

from typing import Any

import torch

from sah.sparse_attention.grouping import any_of_group, combine_heads, keeps_by_group
from sah.sparse_attention.kernels.scores import attention_logits
from sah.sparse_attention.key_lists import to_heads
from sah.sparse_attention.mask import Mask
from sah.sparse_attention.masker_config import GROUP
from sah.sparse_attention.maskers.base import ResearchMasker, best_of_residual, extend_by_best, hide_kept
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
        mass, kept, allowed = (
            self._mass(queries, keys, attention_mask, scaling, kwargs),
            previous_mask.to_dense() > 0,
            attention_mask,
        )
        if self.by_group:
            kept, allowed = any_of_group(kept, keys.shape[1]), any_of_group(allowed, keys.shape[1])
        residual = allowed & ~kept
        needed = self.config.top_p - (mass * kept).sum(-1, keepdim=True)
        ordered = mass.masked_fill(~residual, 0.0).sort(dim=-1, descending=True).values
        chosen = best_of_residual(mass, residual, self._smallest_count(ordered, needed, residual.sum(-1)))
        return previous_mask.merge(Mask.from_dense(previous_mask.shape, to_heads(chosen, queries.shape[1])))

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
        """Add the heaviest residual keys as lists; plain twin: `add_mask`."""
        arguments = (queries, keys, values, attention_mask, scaling, dropout, sparse_meta_data, previous_mask)
        if previous_mask.is_full:
            return previous_mask
        if self.by_group and not (attention_mask.shape[1] == 1 and keeps_by_group(previous_mask, keys.shape[1])):
            return self.add_mask(*arguments, **kwargs)
        mass = self._mass(queries, keys, attention_mask, scaling, kwargs)
        total = mass.sum(-1, keepdim=True)
        hide_kept(mass, attention_mask, previous_mask)
        residual = (mass > float("-inf")).sum(-1)
        left = mass.clamp(min=0.0)
        needed = self.config.top_p - (total - left.sum(-1, keepdim=True))
        add = self._smallest_count(_largest_until(left, needed), needed, residual)
        return extend_by_best(previous_mask, mass, add)

    @property
    def by_group(self) -> bool:
        """Whether the query heads of a KV head share one set of keys: the mean of their masses decides."""
        return self.config.selection == GROUP

    def _mass(
        self, queries: torch.Tensor, keys: torch.Tensor, allowed: torch.Tensor, scaling: float, kwargs: dict[str, Any]
    ) -> torch.Tensor:
        logits = attention_logits(queries, keys, scaling, kwargs.get("softcap")).masked_fill(~allowed, float("-inf"))
        # A padded query allows no key: its softmax is undefined and holds no mass.
        mass = torch.softmax(logits.double(), dim=-1).nan_to_num(0.0)
        return combine_heads(mass, keys.shape[1], "mean") if self.by_group else mass

    def _smallest_count(self, ordered: torch.Tensor, needed: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Count how many of the masses, largest first, it takes to reach what is needed."""
        if self.config.top_p == 1.0:
            return residual
        before = ordered.cumsum(-1) - ordered
        return torch.minimum((before < needed).sum(-1), residual)


def _largest_until(mass: torch.Tensor, needed: torch.Tensor) -> torch.Tensor:
    """Sort as many of the largest masses as reach what is needed in every row, or all."""
    length = 256
    while length < mass.shape[-1]:
        largest = mass.topk(length, dim=-1).values
        if bool((largest.sum(-1, keepdim=True) >= needed).all()):
            return largest
        length *= 4
    return mass.sort(dim=-1, descending=True).values
