"""Quest: pages of keys, chosen by an upper bound of their scores.

Based on "Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference" (Tang et al. 2024, arXiv 2406.10774). A
page's bound is sum_d max(q_d min_d, q_d max_d) over the smallest and largest entry of each channel among its keys.
Deviations: the budget is met exactly, so the last chosen page may be read in part (its earlier keys); pages that are
kept already cost nothing, and partly kept ones only what is missing. The incomplete last page takes part like others.
Under `selection: group` the bounds of a KV head's query heads are combined by `group_score`; the paper has no groups.
`label_bits` rounds bounds outwards; they are held in the keys' type all the same.
State: smallest and largest entries of every complete page, 2 / page_size of the keys' bytes; built once for a context,
one page at a time behind it.
Bytes read per decoded token: the bounds (2 * head_dim entries a page and KV head), and the keys and values kept.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

import torch

from sah.sparse_attention.budget import keys_to_add
from sah.sparse_attention.grouping import any_of_group, combine_heads
from sah.sparse_attention.kernels.scores import attention_logits
from sah.sparse_attention.key_lists import to_heads
from sah.sparse_attention.key_state import KeyStateMasker
from sah.sparse_attention.labels import rounded_labels
from sah.sparse_attention.mask import Mask
from sah.sparse_attention.maskers.base import TopKMasker, best_of_residual, extend_by_best, hide_kept
from sah.sparse_attention.maskers.quest_config import QuestTopKMaskerConfig
from sah.sparse_attention.page_bounds import (
    bounds_of_chunk,
    ends_so_far,
    fast_bounds_of_chunk,
    rank_of_key,
    split_signs,
)
from sah.sparse_attention.pages import choose_pages
from sah.sparse_attention.shared import KnownLogits, SharedStates, States, readable_lengths


class QuestTopKMasker(KeyStateMasker, TopKMasker):
    """Adds the residual keys of the pages with the largest bounds."""

    config: QuestTopKMaskerConfig
    works_in_lanes = True

    @property
    def unit(self) -> int:  # type: ignore[override]
        """Keys of a page."""
        return self.config.page_size

    def state_identity(self) -> Hashable:
        """Return what the bounds depend on; see `KeyStateMasker.state_identity`."""
        return (self.config.name, self.config.page_size, self.config.label_bits)

    def derive(self, keys: torch.Tensor, fitted: Any, layer_idx: int) -> torch.Tensor:
        """Return the largest entries of each page followed by the smallest, (batch, kv_heads, pages, 2 * head_dim)."""
        pages = keys.view(*keys.shape[:2], -1, self.unit, keys.shape[3])
        return self._rounded(pages.amax(3), pages.amin(3))

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
        """Add the best pages; see `ResearchMasker.add_mask`.

        Pages are counted from the first key that is allowed to any query, so that padding does not move them, and a
        page's bound for a query is taken over the keys that this query may read.
        """
        if previous_mask.is_full:
            return previous_mask
        kv_heads = keys.shape[1]
        kept, allowed = previous_mask.kept(), attention_mask
        bounds = bounds_of_chunk(queries, keys, attention_mask, scaling, self.unit, self._rounded)
        if self.by_group:
            bounds = combine_heads(bounds, kv_heads, self.config.group_score)
            kept, allowed = any_of_group(kept, kv_heads), any_of_group(allowed, kv_heads)
        page = rank_of_key(attention_mask)[:, None, None].expand(*bounds.shape[:3], -1) // self.unit
        add = keys_to_add(*self.budget(), allowed.sum(-1), (kept & allowed).sum(-1))
        chosen = best_of_residual(bounds.gather(-1, page), allowed & ~kept, add)
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
        """Add the best pages, as whole runs where one query a row may read every key; plain twin: `add_mask`."""
        previous_mask = self.as_lists_of_lanes(previous_mask, keys)
        arguments = (queries, keys, values, attention_mask, scaling, dropout, sparse_meta_data, previous_mask)
        kv_heads, layer_idx = keys.shape[1], kwargs["layer_idx"]
        if previous_mask.is_full or not self.can_extend(previous_mask, attention_mask, keys):
            return self.add_mask(*arguments, **kwargs)
        add, fills = self.wanted(previous_mask, attention_mask, keys)
        if fills:
            return previous_mask.merge(Mask.full(previous_mask.shape, previous_mask.device))
        if not bool(add.any()):
            return previous_mask
        lengths = readable_lengths(attention_mask, keys, queries.shape[2])
        segments: list[States]
        if isinstance(keys, SharedStates):
            segments = [self._bounds_of_lanes(keys, sparse_meta_data, layer_idx)]
        elif lengths is None or not previous_mask.has_indices:
            bounds = self._bounds_of_chunk(queries, keys, attention_mask, scaling, sparse_meta_data, layer_idx)
            return self._add_by_key(bounds, attention_mask, previous_mask, add)
        else:
            segments = [*self.key_state(keys, sparse_meta_data, layer_idx, 1)[1]]
            rest = keys.shape[2] % self.unit
            if rest:
                last = keys[:, :, -rest:]
                segments.append(self._rounded(last.amax(2, keepdim=True), last.amin(2, keepdim=True)))
        bounds = self._bounds_of_state(queries, segments, kv_heads, scaling, lengths)
        return previous_mask.extend(*choose_pages(bounds, self.unit, previous_mask, add.squeeze(-1), lengths))

    def derive_own(self, keys: SharedStates, before: torch.Tensor | None, fitted: Any, layer_idx: int) -> torch.Tensor:
        """Return for each place the extremes of its page's keys up to it; see `KeyStateMasker.derive_own`.

        A page that begins in the context takes part with the context's keys, too.
        """
        rest = keys.context_length % self.unit
        if before is None:
            return ends_so_far(keys.context[:, :, keys.context_length - rest :], keys.own[:, :, : keys.used], self.unit)
        key = keys.fresh().squeeze(2)
        ends = torch.cat([key, key], dim=-1)
        slots = keys.slots
        earlier = before[keys.lanes, :, (slots - 1).clamp(min=0)]
        if rest:
            tail = keys.context[:, :, keys.context_length - rest :]
            of_tail = torch.cat([tail.amax(2), tail.amin(2)], dim=-1)
            earlier = torch.where((slots == 0)[:, None, None], of_tail, earlier)
        begins = ((keys.context_length + slots) % self.unit == 0)[:, None, None]
        largest, smallest = ends.chunk(2, dim=-1)
        old_largest, old_smallest = earlier.chunk(2, dim=-1)
        joined = torch.cat([torch.maximum(largest, old_largest), torch.minimum(smallest, old_smallest)], dim=-1)
        return torch.where(begins, ends, joined)

    def _bounds_of_lanes(self, keys: SharedStates, sparse_meta_data: dict[Any, Any], layer_idx: int) -> SharedStates:
        """Return the extremes of every page as each row sees it, (rows, kv_heads, pages, 2 * head_dim)."""
        context, own = self.lane_state(keys, sparse_meta_data, layer_idx)
        whole = context.units.shape[2]
        pages = torch.arange(whole, -(-keys.shape[2] // self.unit), device=keys.device)
        last = torch.minimum((pages + 1) * self.unit, keys.lengths.unsqueeze(-1)) - 1 - keys.context_length
        seen = own[keys.lanes.unsqueeze(-1), :, last.clamp(min=0)].transpose(1, 2)
        return replace(
            keys,
            context=context.units,
            own=self._rounded(*seen.chunk(2, dim=-1)),
            used=len(pages),
            in_order=True,
            known=KnownLogits(),
        )

    def _bounds_of_chunk(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        attention_mask: torch.Tensor,
        scaling: float,
        sparse_meta_data: dict[Any, Any],
        layer_idx: int,
    ) -> torch.Tensor:
        """Bound every page for several queries, (batch, heads or kv_heads, q_len, pages)."""
        kv_heads, (q_len, kv_len) = keys.shape[1], (queries.shape[2], keys.shape[2])
        # Pages that all queries read whole come from the state, unless padding moves the pages; a key is always left.
        first = (kv_len - q_len) // self.unit if bool(attention_mask[..., : kv_len - q_len].all()) else 0
        start = first * self.unit
        bounds = fast_bounds_of_chunk(
            queries, keys[:, :, start:], attention_mask[..., start:], scaling, self.unit, self._rounded
        )
        if first:
            _, segments = self.key_state(keys, sparse_meta_data, layer_idx, q_len)
            split = split_signs(queries)
            whole = [attention_logits(split, segment, scaling) for segment in segments]
            bounds = torch.cat([torch.cat(whole, dim=-1)[..., :first], bounds], dim=-1)
        return combine_heads(bounds, kv_heads, self.config.group_score) if self.by_group else bounds

    def _add_by_key(
        self, bounds: torch.Tensor, attention_mask: torch.Tensor, previous_mask: Mask, add: torch.Tensor
    ) -> Mask:
        """Add the pages with the largest bounds key by key, for any number of queries and any padding."""
        order = bounds.argsort(dim=-1, descending=True, stable=True)
        place = torch.empty_like(bounds).scatter_(
            -1, order, torch.arange(bounds.shape[-1], device=bounds.device).float().expand_as(bounds)
        )
        rank = rank_of_key(attention_mask)[:, None, None].expand(*bounds.shape[:3], -1)
        # Pages in the order of their bounds, the keys of a page in their own order: no two scores are equal.
        scores = place.gather(-1, rank // self.unit).mul_(self.unit).add_(rank % self.unit).neg_()
        hide_kept(scores, attention_mask, previous_mask)
        return extend_by_best(previous_mask, scores, add)

    def _bounds_of_state(
        self,
        queries: torch.Tensor,
        segments: Sequence[States],
        kv_heads: int,
        scaling: float,
        lengths: torch.Tensor,
    ) -> torch.Tensor:
        """Bound every page by one matrix product, (batch, heads or kv_heads, pages)."""
        split = split_signs(queries)
        if self.by_group and self.config.group_score == "mean":
            split = split.view(split.shape[0], kv_heads, -1, *split.shape[2:]).mean(2)
        bounds = torch.cat([attention_logits(split, segment, scaling) for segment in segments], dim=-1)
        if self.by_group and self.config.group_score != "mean":
            first = torch.arange(bounds.shape[-1], device=bounds.device) * self.unit
            there = (first < lengths.unsqueeze(-1))[:, None, None]
            bounds = combine_heads(bounds, kv_heads, self.config.group_score, there)
        return bounds.squeeze(2)

    def _rounded(self, largest: torch.Tensor, smallest: torch.Tensor) -> torch.Tensor:
        bits = self.config.label_bits
        if bits is not None:
            largest, smallest = rounded_labels(largest, bits, 1), rounded_labels(smallest, bits, -1)
        return torch.cat([largest, smallest], dim=-1)
