"""Oracle top-p: the fewest keys that together hold a given share of the true softmax mass.

The mass counts what earlier maskers keep as well (not a share of the residual mass alone), and is taken over keys: a
sink logit that a model adds to its denominator holds no key and is left out.
State: none. Bytes read per decoded token: all keys once, and the keys and values kept.
"""

from __future__ import annotations

from typing import Any

import torch

from sah.sparse_attention.grouping import any_of_group, combine_heads
from sah.sparse_attention.kernels.largest import ascending, strongest
from sah.sparse_attention.kernels.scores import attention_logits, cap_logits, group_size
from sah.sparse_attention.kernels.shared import call_logits
from sah.sparse_attention.kernels.workspace import Workspace
from sah.sparse_attention.key_lists import to_heads
from sah.sparse_attention.mask import Mask
from sah.sparse_attention.masker_config import MaskerConfig
from sah.sparse_attention.maskers.base import SelectiveMasker, best_of_residual, extend_by_best, hide_kept
from sah.sparse_attention.maskers.topp_config import TopPMaskerConfig
from sah.sparse_attention.shared import SharedStates


class TopPMasker(SelectiveMasker):
    """Adds the fewest residual keys with which the whole mask reaches `top_p` of the softmax mass.

    With `selection: group` the mean of the masses of a KV head's query heads decides.
    """

    config: TopPMaskerConfig
    works_in_lanes = True

    def __init__(self, config: MaskerConfig, key: str = "", seed: int = 0) -> None:
        super().__init__(config, key, seed)
        self._workspace = Workspace()

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
            self._mass(attention_logits(queries, keys, scaling), attention_mask, kwargs.get("softcap"), keys.shape[1]),
            previous_mask.kept(),
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
        if previous_mask.is_full or not self.can_extend(previous_mask, attention_mask, keys):
            arguments = (queries, keys, values, attention_mask, scaling, dropout, sparse_meta_data, previous_mask)
            return self.add_mask(*arguments, **kwargs)
        group, kv_heads = group_size(queries, keys), keys.shape[1]
        lists = 1 if self.by_group else group
        batch, heads, q_len, kv_len = previous_mask.shape
        allowed = attention_mask.expand(-1, heads, -1, -1)
        shared = call_logits(queries, keys, scaling) if isinstance(keys, SharedStates) else None
        # KV head by KV head, so that only the masses are ever held for all heads.
        shape = (batch, kv_heads * lists, q_len, kv_len)
        mass = self._workspace.take("mass", shape, torch.double, keys.device)
        for head, piece in enumerate(torch.split(mass, lists, dim=1)):
            mine = slice(head * group, (head + 1) * group)
            if shared is None:
                logits = attention_logits(queries[:, mine], keys[:, head : head + 1], scaling)
            else:
                logits = shared[:, mine]
            piece[:] = self._mass(logits, allowed[:, mine], kwargs.get("softcap"), 1)
        totals = mass.sum(-1, keepdim=True)
        hide_kept(mass, attention_mask, previous_mask)
        if shared is not None:
            # Rows keep many keys, and very different numbers of them: a dense mask is smaller work than lists.
            ordered = ascending(mass)
            chosen = strongest(mass, self._to_add(mass, ordered, totals), ordered)
            return previous_mask.merge(Mask.from_dense(previous_mask.shape, to_heads(chosen, heads)))
        pieces = zip(torch.split(mass, lists, dim=1), torch.split(totals, lists, dim=1), strict=True)
        add = torch.cat([self._to_add(piece, ascending(piece), total) for piece, total in pieces], dim=1)
        return extend_by_best(previous_mask, mass, add)

    def _mass(self, logits: torch.Tensor, allowed: torch.Tensor, softcap: float | None, kv_heads: int) -> torch.Tensor:
        """Return the softmax mass of every key, (batch, heads or kv_heads, q_len, kv_len), double."""
        logits = cap_logits(logits, softcap).masked_fill(~allowed, float("-inf"))
        # A padded query allows no key: its softmax is undefined and holds no mass.
        mass = torch.softmax(logits.double(), dim=-1).nan_to_num(0.0)
        return combine_heads(mass, kv_heads, "mean") if self.by_group else mass

    def _to_add(self, mass: torch.Tensor, ordered: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        """Count the keys to add, by masses that are minus infinity for keys that may not be chosen.

        Args:
            mass: (batch, lists, q_len, kv_len).
            ordered: The same, smallest first.
            total: Mass of all keys, (batch, lists, q_len, 1).

        Returns:
            Keys to add, (batch, lists, q_len), int64.
        """
        residual = (ordered > float("-inf")).sum(-1)
        left = ordered.flip(-1).clamp_(min=0.0)
        needed = self.config.top_p - (total - mass.clamp(min=0.0).sum(-1, keepdim=True))
        return self._smallest_count(left, needed, residual)

    def _smallest_count(self, ordered: torch.Tensor, needed: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Count how many of the masses, largest first, it takes to reach what is needed."""
        if self.config.top_p == 1.0:
            return residual
        before = ordered.cumsum(-1) - ordered
        return torch.minimum((before < needed).sum(-1), residual)
