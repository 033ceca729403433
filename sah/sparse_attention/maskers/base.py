"""Bases of all maskers: fixed patterns, top-k by a score, and samplers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch

from sah.sparse_attention.budget import keys_to_add
from sah.sparse_attention.ends import add_ends
from sah.sparse_attention.grouping import any_of_group, combine_heads, keeps_by_group
from sah.sparse_attention.kernels.largest import earliest, largest, strongest
from sah.sparse_attention.key_lists import KeyLists, to_heads
from sah.sparse_attention.mask import Mask
from sah.sparse_attention.masker_config import GROUP, MaskerConfig, ScoredMaskerConfig, SelectiveMaskerConfig
from sah.sparse_attention.pool import Pool, pool_of_lists, pool_of_mask
from sah.sparse_attention.randomness import row_generators
from sah.sparse_attention.shared import SharedStates, States, readable_lengths


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

    works_in_lanes = False
    """Whether `add_indices` takes `SharedStates` for keys and values, one query a row, with the state of all lanes of a
    setting in `sparse_meta_data`. If not, lanes go one by one."""

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

    works_in_lanes = True

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
        if isinstance(keys, SharedStates):
            if previous_mask.is_full:
                return previous_mask
            return add_ends(previous_mask, *self.spans(keys.lengths), keys.lengths, keys.context_length)
        q_len, kv_len = previous_mask.shape[2:]
        if q_len > 1 or not bool(attention_mask.all()):
            return super().add_indices(
                queries, keys, values, attention_mask, scaling, dropout, sparse_meta_data, previous_mask, **kwargs
            )
        first, last = (int(span) for span in self.spans(torch.tensor(kv_len)))
        spans = ((0, first), (max(first, kv_len - last), kv_len))
        return previous_mask.merge(Mask.from_spans(previous_mask.shape, spans, previous_mask.device))


class SelectiveMasker(ResearchMasker):
    """Chooses keys for every query head, or one set for all query heads of a KV head."""

    config: SelectiveMaskerConfig

    @property
    def by_group(self) -> bool:
        """Whether the query heads of a KV head share one set of keys."""
        return self.config.selection == GROUP

    def can_extend(self, previous_mask: Mask, attention_mask: torch.Tensor, keys: States) -> bool:
        """Tell whether lists can be added to a mask: by KV head only where keys are kept and allowed so."""
        return not self.by_group or (attention_mask.shape[1] == 1 and keeps_by_group(previous_mask, keys.shape[1]))

    def as_lists_of_lanes(self, previous_mask: Mask, keys: States) -> Mask:
        """Bring what lanes keep into list form, by KV head for a masker that keeps by KV head.

        No recipe lets such a masker follow one that keeps keys by query head. Other calls' masks stay as they are.
        """
        if not isinstance(keys, SharedStates) or previous_mask.has_indices:
            return previous_mask
        return previous_mask.as_lists(keys.shape[1] if self.by_group else None)


class TopKMasker(SelectiveMasker):
    """Adds keys up to a budget, best first."""

    config: ScoredMaskerConfig

    def budget(self) -> tuple[float | None, int | float | None]:
        """Return the density of the whole mask and the own size; one of them is None."""
        return self.config.density, self.config.heavy_size

    def wanted(self, previous_mask: Mask, attention_mask: torch.Tensor, keys: States) -> tuple[torch.Tensor, bool]:
        """Apply the budget to a mask that can be extended.

        Args:
            previous_mask: What is kept already.
            attention_mask: Boolean, broadcastable to (batch, heads, q_len, kv_len).
            keys: The keys.

        Returns:
            Keys to add, int64, broadcastable to (batch, lists, q_len); and whether the mask is full then, with every
            key certain.
        """
        # In list form every kept key of a row that reads a prefix is allowed, and need not be looked up.
        listed = isinstance(keys, SharedStates) and previous_mask.has_indices
        counts = previous_mask.count_listed() if listed else previous_mask.count(attention_mask)
        if self.by_group:
            counts = any_of_group(counts, keys.shape[1])
        allowed = attention_mask.sum(-1)
        add = keys_to_add(*self.budget(), allowed, counts)
        return add, previous_mask.is_certain and bool((add >= allowed - counts).all())


class KeyScoreMasker(TopKMasker):
    """Adds the keys with the largest scores. Equal scores: the plain form takes the earlier key, the fast one any."""

    is_linear = False
    """Whether scores are linear in the queries: the mean score of a KV head's queries is then their mean's score."""

    gives_logits = False
    """Whether the scores are the attention logits themselves."""

    earlier_first = False
    """Whether the fast form, too, takes the earlier key: for scores of few values, of which many are equal."""

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
            **kwargs: `layer_idx`, `value_states` (batch, kv_heads, kv_len, value_dim), and what the model passes on.

        Returns:
            A new tensor (batch, heads, q_len, kv_len), float32; larger is kept first. Forbidden keys may have any
            score.
        """

    def fast_scores(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        scaling: float,
        sparse_meta_data: dict[Any, Any],
        **kwargs: Any,
    ) -> torch.Tensor:
        """Score as `scores` does, with whatever state makes it faster. Same arguments and result; plain by default."""
        return self.scores(queries, keys, scaling, sparse_meta_data, **kwargs)

    def group_scores(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        attention_mask: torch.Tensor,
        scaling: float,
        sparse_meta_data: dict[Any, Any],
        **kwargs: Any,
    ) -> torch.Tensor:
        """Score as `fast_scores` does, for every KV head as `group_score` says: (batch, kv_heads, q_len, kv_len)."""
        kv_heads, how = keys.shape[1], self.config.group_score
        if how == "mean" and self.is_linear:
            means = queries.float().view(len(queries), kv_heads, -1, *queries.shape[2:]).mean(2)
            return self.fast_scores(means, keys, scaling, sparse_meta_data, **kwargs)
        scores = self.fast_scores(queries, keys, scaling, sparse_meta_data, **kwargs)
        return combine_heads(scores, kv_heads, how, attention_mask)

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
        scores = self.scores(queries, keys, scaling, sparse_meta_data, value_states=values, **kwargs)
        kept, allowed = previous_mask.kept(), attention_mask
        if self.by_group:
            scores = combine_heads(scores, keys.shape[1], self.config.group_score, attention_mask)
            kept, allowed = any_of_group(kept, keys.shape[1]), any_of_group(allowed, keys.shape[1])
        add = keys_to_add(*self.budget(), allowed.sum(-1), (kept & allowed).sum(-1))
        chosen = best_of_residual(scores, allowed & ~kept, add)
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
        """Add the best of the residual as lists; plain twin: `add_mask`."""
        if self.by_group:
            previous_mask = self.as_lists_of_lanes(previous_mask, keys)
        arguments = (queries, keys, values, attention_mask, scaling, dropout, sparse_meta_data, previous_mask)
        if previous_mask.is_full or not self.can_extend(previous_mask, attention_mask, keys):
            return self.add_mask(*arguments, **kwargs)
        add, fills = self.wanted(previous_mask, attention_mask, keys)
        if fills:
            return previous_mask.merge(Mask.full(previous_mask.shape, previous_mask.device))
        more = {**kwargs, "value_states": values}
        if self.by_group:
            scores = self.group_scores(queries, keys, attention_mask, scaling, sparse_meta_data, **more)
        else:
            scores = self.fast_scores(queries, keys, scaling, sparse_meta_data, **more)
        hide_kept(scores, attention_mask, previous_mask)
        are_logits = self.gives_logits and not self.by_group
        return extend_by_best(previous_mask, scores, add, are_logits=are_logits, earlier_first=self.earlier_first)


class SamplingMasker(ResearchMasker):
    """Draws keys at random and records the probability of each draw. At most one stands in a recipe."""


class DrawingMasker(SelectiveMasker, SamplingMasker):
    """Draws uniformly and without replacement from the keys that are not kept yet."""

    def can_extend(self, previous_mask: Mask, attention_mask: torch.Tensor, keys: States) -> bool:
        """Tell whether `pool_of_lists` can be used: one query a row that reads a prefix, and lists that suit."""
        if not previous_mask.has_indices or not super().can_extend(previous_mask, attention_mask, keys):
            return False
        return readable_lengths(attention_mask, keys, previous_mask.shape[2]) is not None

    def pool(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        attention_mask: torch.Tensor,
        sparse_meta_data: dict[Any, Any],
        previous_mask: Mask,
        layer_idx: int,
        *,
        as_lists: bool = False,
    ) -> Pool:
        """Find the keys that may be drawn.

        Args:
            queries: (batch, heads, q_len, head_dim).
            keys: (batch, kv_heads, kv_len, head_dim).
            attention_mask: Boolean, broadcastable to (batch, heads, q_len, kv_len).
            sparse_meta_data: State of the question at hand.
            previous_mask: What is kept already.
            layer_idx: The layer.
            as_lists: Whether the mask can be extended (see `can_extend`), so that nothing of size kv_len is built.

        Returns:
            The pool, with a list for each query head, or each KV head with `selection: group`.
        """
        lists = keys.shape[1] if self.by_group else queries.shape[1]
        generators = row_generators(self.seed, self.key, layer_idx, sparse_meta_data, attention_mask, len(queries))
        lengths = readable_lengths(attention_mask, keys, queries.shape[2]) if as_lists else None
        if lengths is not None:
            return pool_of_lists(previous_mask, lengths, lists, generators)
        return pool_of_mask(previous_mask, attention_mask, lists, generators)


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
    order = scores.argsort(dim=-1, descending=True, stable=True)
    first = torch.arange(scores.shape[-1], device=scores.device) < add.unsqueeze(-1)
    return residual & torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order, first.expand(scores.shape))


def hide_kept(scores: torch.Tensor, allowed: torch.Tensor, previous: Mask) -> None:
    """Set the scores of forbidden and of already kept keys to minus infinity, in place.

    Args:
        scores: (batch, lists, q_len, kv_len), lists being heads or kv_heads; written to.
        allowed: Boolean, broadcastable to scores.
        previous: What is kept already.
    """
    if not bool(allowed.all()):
        scores.masked_fill_(~allowed, float("-inf"))
    if not previous.has_indices:
        scores.masked_fill_(previous.kept(), float("-inf"))
        return
    for start, stop in previous.spans:
        scores[..., start:stop] = float("-inf")
    for part in previous.lists:
        indices, probabilities = part.of_single_keys(scores.shape[1])
        indices = indices.expand(*scores.shape[:3], -1)
        # Unused places of a list must not hide the key they happen to name.
        hide = torch.where(probabilities > 0, float("-inf"), float("inf")).to(scores.dtype).expand_as(indices)
        scores.scatter_reduce_(-1, indices, hide, reduce="amin")


def extend_by_best(
    previous: Mask, scores: torch.Tensor, add: torch.Tensor, *, are_logits: bool = False, earlier_first: bool = False
) -> Mask:
    """Extend a mask by the keys with the largest residual scores.

    Args:
        previous: What is kept already.
        scores: (batch, lists, q_len, kv_len), minus infinity for keys that may not be chosen.
        add: Keys to choose, int64, broadcastable to (batch, lists, q_len); never more than may be chosen.
        are_logits: Whether the scores are the attention logits, which attention then need not compute again.
        earlier_first: Whether of equal scores the earlier key must be chosen; any otherwise. Not for logits.

    Returns:
        The extended mask; as lists unless the previous one was dense.
    """
    longest = int(add.max())
    if longest == 0:
        return previous
    # Where a row adds fewer than the longest one, its weakest keys are dropped again.
    add = add.expand(scores.shape[:-1])
    ragged = int(add.min()) < longest
    if earlier_first:
        indices, used = earliest(scores, add)
        return previous.extend(KeyLists(indices, used.float() if ragged else None))
    values, indices = largest(scores, longest)
    probabilities: torch.Tensor | None = None
    if ragged:
        probabilities = strongest(values, add).float()
        if are_logits:
            values = values.masked_fill(probabilities == 0, 0.0)
    return previous.extend(KeyLists(indices, probabilities, values if are_logits else None))
