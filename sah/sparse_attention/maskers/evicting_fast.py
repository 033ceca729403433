"""The fast form of methods that evict: keys that are held are exchanged place by place. Plain twin: `evicting.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sah.sparse_attention.evicting_rows import Step
from sah.sparse_attention.held_keys import HeldKeys
from sah.sparse_attention.kernels.gather import gather_rows
from sah.sparse_attention.kernels.scores import attention_logits, cap_logits
from sah.sparse_attention.key_lists import to_heads
from sah.sparse_attention.mask import gather_last

if TYPE_CHECKING:
    from sah.sparse_attention.maskers.evicting import EvictingMasker

SPARED = torch.finfo(torch.float32).max
"""Rank of the last keys, which are evicted after all others."""

# Far above any score of attention; a step is what float32 still tells apart there.
_FIRST, _STEP = 2.0**127, 2.0**104


@dataclass(frozen=True)
class Start:
    """What a call begins with."""

    scores: torch.Tensor
    """Of the first keys, (lanes or 1, kv_heads, n), n at least the keys before the call."""

    looked: bool
    """Whether the call's own queries were observed, so that their attention is counted already."""

    def of_lanes(self, lanes: torch.Tensor) -> torch.Tensor:
        """Return the scores of some lanes, (n or 1, kv_heads, n)."""
        return self.scores if len(self.scores) == 1 else self.scores[lanes]


def before_others(start: int, stop: int, like: torch.Tensor) -> torch.Tensor:
    """Score keys that are to be kept before those with a score of their own, later ones before earlier ones.

    Args:
        start: Position of the first key.
        stop: Position behind the last key, below eight millions.
        like: Scores, (lanes, kv_heads, n), float32.

    Returns:
        (lanes, kv_heads, stop - start), float32.
    """
    positions = torch.arange(start, stop, device=like.device)
    return (_FIRST + _STEP * positions).expand(*like.shape[:2], -1)


class Exchange:
    """Lets the own keys of a call's queries take the places of keys that are evicted.

    Args:
        masker: The method.
        held: The keys that it holds; written to.
        context: Keys of the context.
        scaling: Factor of the dot products.
        special: What the model passed on; `s_aux` and `softcap` are read.
    """

    def __init__(
        self, masker: EvictingMasker, held: HeldKeys, context: int, scaling: float, special: Mapping[str, Any]
    ) -> None:
        self._masker = masker
        self._held = held
        self._context = context
        self._scaling = scaling
        self._special = special

    def begin(self, step: Step, start: Start, *, hold_states: bool) -> None:
        """Hold what is left of all keys before the first query, and its own.

        Args:
            step: The queries.
            start: What the call begins with.
            hold_states: Whether keys and values are held together from now on; all lanes begin in this step then.
        """
        lanes = torch.arange(len(step.lanes), device=step.lanes.device)
        scores = start.of_lanes(step.lanes).expand(len(lanes), step.keys.shape[1], -1)
        wide = HeldKeys.of_first(scores, step.lengths - 1)
        self._exchange(wide, lanes, step, start, wide.scores)
        self._held.states = None
        self._held.take(step.lanes, wide)
        if hold_states:
            positions = self._held.positions
            states = gather_rows(step.keys, positions), gather_rows(step.values, positions)
            # A CPU computes in float32 whatever the cache's type; held so, they are not converted at every token.
            on_cpu = positions.device.type == "cpu"
            self._held.states = (states[0].float(), states[1].float()) if on_cpu else states

    def by_score(self, step: Step, start: Start | None) -> None:
        """Hold each query's own key in place of the one with the lowest score.

        Args:
            step: The queries.
            start: What the call began with, if it did.
        """
        self._exchange(self._held, step.lanes, step, start, self._held.of(step.lanes)[2])

    def by_attention(self, step: Step) -> torch.Tensor:
        """Hold each query's own key in place of the one that it attends to least.

        Args:
            step: The queries.

        Returns:
            Its logits with all that is held then, (n, heads, places), before any cap.
        """
        positions, used, _ = self._held.of(step.lanes)
        own = (step.lengths - 1)[:, None, None].expand(-1, used.shape[1], -1)
        own_logits = attention_logits(step.queries, gather_rows(step.keys, own), self._scaling).squeeze(2)
        logits = torch.cat([self.logits(step), own_logits], dim=-1)
        weights = held_weights(logits, torch.nn.functional.pad(used, (0, 1), value=True), self._special)
        ranks = self._masker.ranks(weights[..., :-1], used.shape[1], positions)
        places = self._exchange(self._held, step.lanes, step, None, ranks)
        logits = torch.nn.functional.pad(logits[..., :-1], (0, self._held.used.shape[2] - used.shape[2]))
        return logits.scatter_(-1, to_heads(places, logits.shape[1]).expand_as(own_logits), own_logits)

    def logits(self, step: Step) -> torch.Tensor:
        """Compute each query's logits with the keys that its lane holds, (n, heads, places), before any cap."""
        held = self._held
        rows = gather_rows(step.keys, held.of(step.lanes)[0]) if held.states is None else held.states[0]
        return attention_logits(step.queries, rows, self._scaling).squeeze(2)

    def _exchange(
        self,
        held: HeldKeys,
        lanes: torch.Tensor,
        step: Step,
        start: Start | None,
        ranks: torch.Tensor,
    ) -> torch.Tensor:
        """Hold each query's own key, and drop the keys of lowest rank that exceed the budget then.

        Args:
            held: The keys held.
            lanes: Its lanes.
            step: Their queries.
            start: Where the call began, if it did.
            ranks: Of the places, (n, kv_heads, places).

        Returns:
            Place of each own key, (n, kv_heads, 1), int64.
        """
        positions, used, _ = held.of(lanes)
        own = (step.lengths - 1).unsqueeze(-1)
        candidates, count, takes_one = used, torch.zeros_like(own), torch.ones_like(own)
        if step.kept is not None:
            candidates = used & ~gather_last(step.kept, positions)
            place = torch.arange(step.kept.shape[2], device=own.device)
            count = (step.kept & (place <= own.unsqueeze(-1))).sum(-1)
            takes_one = (~step.kept.gather(2, own.unsqueeze(1).expand(-1, step.kept.shape[1], -1))).squeeze(2).long()
        add = self._masker.keys_of_budget(step.lengths.unsqueeze(-1), count)
        left = candidates.sum(-1)
        tight = step.kept is None and start is None and bool(((left + 1 - add == 1) & used.all(-1) & (add > 0)).all())
        drop = torch.minimum((left + takes_one - add).clamp(min=0), left)
        if bool((drop > 0).any()):
            spared = torch.minimum(self._masker.recent(add, own, self._context), add)
            ranks = ranks.masked_fill(positions > (own - spared).unsqueeze(-1), SPARED)
            if tight:
                # The usual step of a long answer: one key goes, and its place is the new one's.
                return self._take_own(held, lanes, step, None, None, ranks.argmin(-1, keepdim=True))
            held.drop(lanes, _worst(ranks, candidates, drop))
        return self._take_own(held, lanes, step, start, (takes_one > add).expand(-1, used.shape[1]))

    def _take_own(
        self,
        held: HeldKeys,
        lanes: torch.Tensor,
        step: Step,
        start: Start | None,
        refused: torch.Tensor | None,
        places: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Hold each query's own key in these or free places and return them; those refused, (n, kv_heads), go again."""
        kv_heads, own = step.keys.shape[1], step.lengths - 1
        position = own[:, None, None].expand(-1, kv_heads, -1)
        score = torch.zeros(len(own), kv_heads, device=own.device)
        if start is not None and start.looked:
            score = start.of_lanes(step.lanes).expand(len(own), kv_heads, -1).gather(2, position).squeeze(2)
        places = held.add(lanes, own, score, places)
        if held.states is not None:
            held.put_states(places, gather_rows(step.keys, position), gather_rows(step.values, position))
        if refused is not None and bool(refused.any()):
            held.drop(lanes, torch.zeros_like(held.of(lanes)[1]).scatter_(-1, places, refused.unsqueeze(-1)))
        return places


def by_kv_head(weights: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """Average (rows, heads, n) over the query heads of each KV head, to (rows, kv_heads, n)."""
    return weights.view(len(weights), kv_heads, -1, weights.shape[2]).mean(2)


def held_weights(logits: torch.Tensor, held: torch.Tensor, special: Mapping[str, Any]) -> torch.Tensor:
    """Return the softmax over the keys that are held, (rows, heads, n), the model's sinks taking their share."""
    logits = cap_logits(logits, special.get("softcap"))
    if not bool(held.all()):
        logits = logits.masked_fill(~to_heads(held, logits.shape[1]), float("-inf"))
    sinks = special.get("s_aux")
    if sinks is not None:
        logits = torch.cat([logits, sinks.float().view(1, -1, 1).expand(*logits.shape[:2], 1)], dim=-1)
    # A padded query reads nothing, and its softmax is undefined.
    weights = torch.softmax(logits, dim=-1).nan_to_num(0.0)
    return weights if sinks is None else weights[..., :-1]


def _worst(ranks: torch.Tensor, candidates: torch.Tensor, drop: torch.Tensor) -> torch.Tensor:
    """Choose the candidates of lowest rank.

    Args:
        ranks: (rows, kv_heads, n), finite.
        candidates: Boolean, of the same shape.
        drop: How many to choose, (rows, kv_heads), int64; never more than there are.

    Returns:
        Boolean (rows, kv_heads, n).
    """
    chosen = torch.zeros_like(candidates)
    most = int(drop.max())
    if most == 0:
        return chosen
    if not bool(candidates.all()):
        ranks = ranks.masked_fill(~candidates, float("inf"))
    places = ranks.argmin(-1, keepdim=True) if most == 1 else ranks.topk(most, dim=-1, largest=False, sorted=True)[1]
    first = torch.arange(most, device=drop.device) < drop.unsqueeze(-1)
    return chosen.scatter_(-1, places, first)
