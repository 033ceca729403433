"""Bases of all maskers: fixed patterns, top-k by a score, and samplers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch

from sah.config.lookup import named
from sah.sparse_attention.budget import keys_to_add
from sah.sparse_attention.config import MaskedAttentionConfig, MaskerConfig
from sah.sparse_attention.mask import Mask


class ResearchMasker(ABC):
    """One step of a recipe: adds keys to what the steps before it keep, and never takes any away.

    Args:
        config: The masker's own config.
        key: Name of this step, unique in its recipe; state and random draws are kept apart by it.
        seed: Seed of the recipe.
    """

    def __init__(self, config: MaskerConfig, key: str = "", seed: int = 0) -> None:
        self.config = config
        self.key = key or config.name
        self.seed = seed

    @abstractmethod
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
        """Add this step's keys, in the plain form.

        Args:
            queries: (batch, heads, q_len, head_dim).
            keys: (batch, kv_heads, kv_len, head_dim).
            values: (batch, kv_heads, kv_len, value_dim).
            attention_mask: Boolean, broadcastable to (batch, heads, q_len, kv_len); True is allowed.
            scaling: Factor of the dot products.
            dropout: Not read by any masker so far; part of the interface.
            sparse_meta_data: State of the question at hand.
            previous_mask: What the steps before keep. Never changed.
            **kwargs: `layer_idx`, and what the model passes on (`softcap`, `s_aux`).

        Returns:
            The union of `previous_mask` and this step's keys.
        """

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
        """Add this step's keys the fast way, as index lists where that pays.

        Same meaning as `add_mask`, which is its plain twin and its default.
        """
        return self.add_mask(
            queries, keys, values, attention_mask, scaling, dropout, sparse_meta_data, previous_mask, **kwargs
        )


class FixedMasker(ResearchMasker):
    """A pattern of positions: some first and some last allowed keys of every query."""

    @abstractmethod
    def spans(self, allowed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return how many first and how many last keys are kept.

        Args:
            allowed: Number of allowed keys of each query row, (batch, heads or 1, q_len).

        Returns:
            Two int64 tensors of the same shape.
        """

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
        """Add the pattern; see `ResearchMasker.add_mask`.

        Positions are counted among allowed keys, so padding takes no place in the pattern.
        """
        rank = attention_mask.long().cumsum(-1)
        count = rank[..., -1:]
        first, last = self.spans(count.squeeze(-1))
        kept = attention_mask & ((rank <= first.unsqueeze(-1)) | (rank > count - last.unsqueeze(-1)))
        return previous_mask.merge(Mask.from_dense(previous_mask.shape, kept))

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
        """Add the pattern as two ranges where nothing is forbidden, else through the plain form."""
        batch, _, q_len, kv_len = previous_mask.shape
        if q_len > 1 or not bool(attention_mask.all()):
            return super().add_indices(
                queries, keys, values, attention_mask, scaling, dropout, sparse_meta_data, previous_mask, **kwargs
            )
        first, last = (int(span) for span in self.spans(torch.tensor(kv_len)))
        positions = torch.arange(kv_len, device=keys.device)
        kept = torch.cat([positions[:first], positions[max(first, kv_len - last) :]])
        lists = kept.expand(batch, 1, 1, -1)
        return previous_mask.merge(Mask.from_indices(previous_mask.shape, lists, torch.ones_like(lists).float()))


class TopKMasker(ResearchMasker):
    """Adds the keys with the largest scores. Equal scores: the plain form takes the earlier key, the fast one any."""

    @abstractmethod
    def scores(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        scaling: float,
        sparse_meta_data: dict[Any, Any],
        **kwargs: Any,
    ) -> torch.Tensor:
        """Score every key for every query.

        Args:
            queries: (batch, heads, q_len, head_dim).
            keys: (batch, kv_heads, kv_len, head_dim).
            scaling: Factor of the dot products.
            sparse_meta_data: State of the question at hand.
            **kwargs: `layer_idx`, and what the model passes on.

        Returns:
            (batch, heads, q_len, kv_len), float32; larger is kept first. Forbidden keys may have any score.
        """

    @abstractmethod
    def budget(self) -> tuple[float | None, int | float | None]:
        """Return the density of the whole mask or the own size; one of them is None."""

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
        """Add the best of the residual; see `ResearchMasker.add_mask`."""
        if previous_mask.is_full:
            return previous_mask
        add = keys_to_add(*self.budget(), attention_mask.sum(-1), previous_mask.count(attention_mask))
        residual = attention_mask & (previous_mask.to_dense() == 0)
        scores = self.scores(queries, keys, scaling, sparse_meta_data, **kwargs)
        chosen = best_of_residual(scores, residual, add)
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
        """Add the best of the residual as index lists; plain twin: `add_mask`."""
        if previous_mask.is_full:
            return previous_mask
        add = keys_to_add(*self.budget(), attention_mask.sum(-1), previous_mask.count(attention_mask))
        scores = self.scores(queries, keys, scaling, sparse_meta_data, **kwargs)
        scores = residual_scores(scores, attention_mask, previous_mask)
        return extend_by_best(previous_mask, scores, add)


class SamplingMasker(ResearchMasker):
    """Draws keys at random and records the probability of each draw. At most one stands in a recipe."""


def best_of_residual(scores: torch.Tensor, residual: torch.Tensor, add: torch.Tensor) -> torch.Tensor:
    """Choose the best residual keys of every row, the earlier key where scores are equal.

    Args:
        scores: Broadcastable to (batch, heads, q_len, kv_len), floating point.
        residual: Boolean, broadcastable to the same: keys that may be chosen.
        add: Keys to choose, int64, broadcastable to (batch, heads, q_len).

    Returns:
        Boolean (batch, heads, q_len, kv_len).
    """
    scores = torch.where(residual, scores, float("-inf"))
    rank = scores.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    return residual & (rank < add.unsqueeze(-1))


def residual_scores(scores: torch.Tensor, allowed: torch.Tensor, previous: Mask) -> torch.Tensor:
    """Set the scores of forbidden and of already kept keys to minus infinity; the scores given stay as they are.

    Args:
        scores: (batch, heads, q_len, kv_len).
        allowed: Boolean, broadcastable to scores.
        previous: What is kept already.

    Returns:
        Same shape as scores.
    """
    if not bool(allowed.all()):
        scores = scores.masked_fill(~allowed, float("-inf"))
    if previous.is_empty:
        return scores
    if not previous.has_indices:
        return scores.masked_fill(previous.to_dense() > 0, float("-inf"))
    indices, probabilities = previous.to_indices()
    indices = indices.expand(*scores.shape[:3], -1)
    # Unused places of a list must not hide the key they happen to name.
    hide = torch.where(probabilities > 0, float("-inf"), float("inf")).to(scores.dtype).expand_as(indices)
    return scores.scatter_reduce(-1, indices, hide, reduce="amin")


def extend_by_best(
    previous: Mask, scores: torch.Tensor, add: torch.Tensor, probability: torch.Tensor | None = None
) -> Mask:
    """Extend a mask by the keys with the largest residual scores.

    Args:
        previous: What is kept already.
        scores: (batch, heads, q_len, kv_len), minus infinity for keys that may not be chosen.
        add: Keys to choose, int64, broadcastable to (batch, heads, q_len); never more than may be chosen.
        probability: Inclusion probability of the chosen keys, broadcastable to (batch, heads, q_len); None means 1.

    Returns:
        The extended mask; as index lists unless the previous one was dense.
    """
    longest = int(add.max())
    if longest == 0:
        return previous
    # Unsorted selection is faster; where a row adds fewer than the longest one, its weakest keys are dropped again.
    values, indices = scores.topk(longest, dim=-1, sorted=False)
    used = torch.ones_like(indices, dtype=torch.bool)
    surplus = longest - add.expand(indices.shape[:-1])
    most = int(surplus.max())
    if most:
        weakest = values.topk(most, dim=-1, largest=False).indices
        used.scatter_(-1, weakest, torch.arange(most, device=scores.device) >= surplus.unsqueeze(-1))
    inclusion = used.float() if probability is None else used * probability.unsqueeze(-1)
    return previous.extend(indices, inclusion.expand_as(indices))


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
