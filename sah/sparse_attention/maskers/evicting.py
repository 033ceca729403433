"""What evicting methods share: a key that is not kept once is never kept again.

Every query takes its own key, and then drops the worst of the keys that are still held until the whole mask has its
budget. Keys that earlier maskers of the recipe keep cost nothing and are not evicted as long as they are kept. There is
one set for all query heads of a KV head. The cache itself is never cut: the set says what a query reads, and what a
cache that is cut would hold.

The context's keys start with scores that were observed in its prefill (`sah.sparse_attention.observe`). They are chosen
from at the question's first token, which is the same as at the end of the prefill, since those scores do not depend on
the question. With `query_aware` the question's own queries look at all keys first. A question that runs dense
(`phases=[decode]`) is observed for methods that want it; its keys are held like the context's.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from sah.errors import StateError
from sah.sparse_attention.budget import keys_to_add
from sah.sparse_attention.evicting_rows import Listed, Step, extend, mass_of_call, reads_prefixes, steps
from sah.sparse_attention.grouping import any_of_group
from sah.sparse_attention.held_keys import HeldKeys
from sah.sparse_attention.kernels.scores import attention_logits
from sah.sparse_attention.key_lists import to_heads
from sah.sparse_attention.key_state import CONTEXT_LENGTH_KEY, CONTEXT_STATE_KEY
from sah.sparse_attention.mask import Mask, gather_last
from sah.sparse_attention.maskers.base import ResearchMasker, best_of_residual
from sah.sparse_attention.maskers.evicting_config import EvictingMaskerConfig
from sah.sparse_attention.maskers.evicting_fast import SPARED, Exchange, Start, before_others, by_kv_head, held_weights
from sah.sparse_attention.observe import Last, observation_key, question_key
from sah.sparse_attention.shared import SharedStates, States


@dataclass
class _Alive:
    """State of the plain form, each boolean or float32 (batch, kv_heads, kv_len)."""

    alive: torch.Tensor
    met: torch.Tensor
    scores: torch.Tensor

    @classmethod
    def of_held(cls, held: HeldKeys, kv_len: int) -> _Alive:
        """Write out what the fast form holds, for the first keys of a sequence."""
        ground = torch.zeros(*held.used.shape[:2], kv_len, device=held.used.device)
        alive = ground.scatter_reduce(2, held.positions, held.used.float(), "amax") > 0
        scores = ground.scatter_add(2, held.positions, held.scores.masked_fill(~held.used, 0.0))
        met = (torch.arange(kv_len, device=ground.device) < held.seen[:, None, None]).expand_as(alive)
        return cls(alive, met.clone(), scores)

    def longer(self, kv_len: int) -> _Alive:
        """Make room for keys that follow."""

        def padded(tensor: torch.Tensor) -> torch.Tensor:
            more = kv_len - tensor.shape[2]
            return torch.cat([tensor, tensor.new_zeros(*tensor.shape[:2], more)], dim=2) if more > 0 else tensor

        return _Alive(padded(self.alive), padded(self.met), padded(self.scores))


class EvictingMasker(ResearchMasker):
    """Adds the keys that are still held, and evicts what exceeds the budget."""

    config: EvictingMaskerConfig
    works_in_lanes = True

    ranks_by_attention = False
    """Whether a query ranks keys by its own attention. If not, keys are ranked by their scores."""

    adds_attention = False
    """Whether a query's attention to the keys that are held is added to their scores."""

    prefers_unobserved = False
    """Whether keys that nothing was seen of (those of a question that ran dense unseen) are kept before all others, the
    later ones first. If not, their scores begin at 0."""

    @property
    @abstractmethod
    def observed(self) -> Last:
        """How many of a text's last queries are observed; None for all."""

    @property
    def observes_question(self) -> bool:
        """Whether a question that runs dense is observed."""
        return self.config.query_aware

    @property
    def needs_context(self) -> bool:
        """Whether the observation of the context is read."""
        return not self.config.query_aware

    @abstractmethod
    def starting_scores(
        self, of_context: torch.Tensor, of_question: torch.Tensor | None, context_length: int
    ) -> torch.Tensor:
        """Score the keys that are there before the first query.

        Args:
            of_context: Observation of the context, (1, kv_heads, context_length); 0 where it is not needed.
            of_question: Observation of the question over all keys, (lanes, kv_heads, n); None where there is none.
            context_length: Keys of the context.

        Returns:
            (lanes or 1, kv_heads, context_length or n), float32; keys of the question come behind the context.
        """

    def recent(self, add: torch.Tensor, own: torch.Tensor, context_length: int) -> torch.Tensor:
        """Tell how many of the last keys, a query's own among them, are not evicted before others.

        Args:
            add: Keys that this masker may keep, (rows, kv_heads or 1).
            own: Position of each query's own key, (rows, 1).
            context_length: Keys of the context.

        Returns:
            Broadcastable to the shape of `add`; more than `add` mean `add`.
        """
        return torch.ones_like(add)

    def keys_of_budget(self, allowed: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """Tell how many keys to keep beside those kept already; see `budget.keys_to_add`."""
        return keys_to_add(self.config.density, getattr(self.config, self.config.size_field), allowed, kept)

    def ranks(self, weights: torch.Tensor, kv_heads: int, positions: torch.Tensor | None = None) -> torch.Tensor:
        """Rank keys by a query's attention.

        Args:
            weights: (rows, heads, n), 0 for keys that are not held.
            kv_heads: Number of KV heads.
            positions: Which keys they are, (rows, kv_heads, n); None for all in order.

        Returns:
            (rows, kv_heads, n).
        """
        return by_kv_head(weights, kv_heads)

    @torch.no_grad()
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
        """Go through the queries one by one with every key at hand; see `ResearchMasker.add_mask`."""
        if previous_mask.is_full:
            return previous_mask
        batch, heads, q_len, kv_len = previous_mask.shape
        kv_heads, before = keys.shape[1], kv_len - q_len
        allowed = any_of_group(attention_mask, kv_heads).expand(batch, -1, -1, -1)
        kept = any_of_group(previous_mask.kept(), kv_heads).expand(batch, -1, q_len, -1)
        states = sparse_meta_data.setdefault(kwargs["layer_idx"], {})
        context = self._context_length(sparse_meta_data, before, kwargs["layer_idx"])
        held: Any = states.get(self.key)
        if isinstance(held, HeldKeys):
            # The fast form took the calls before; this one wants gradients or weights, or has padding.
            held = None if bool((held.seen != before).any()) else _Alive.of_held(held, before)
        state: _Alive | None = held
        start: Start | None = None
        if state is None or state.alive.shape[2] > before:
            start = self._start(queries, keys, attention_mask, scaling, sparse_meta_data, context, before, kwargs)
            scores = start.scores.expand(batch, kv_heads, -1)
            readable = allowed[:, :, 0, :before].expand(-1, kv_heads, -1)
            state = _Alive(readable, readable, scores[..., :before])
        state = state.longer(kv_len)
        looked = start is not None and start.looked
        place = torch.arange(kv_len, device=keys.device)
        chosen_rows = []
        for row in range(q_len):
            readable = allowed[:, :, row]
            state.alive, state.met = state.alive | (readable & ~state.met), state.met | readable
            held_already = kept[:, :, row] & readable
            add = self.keys_of_budget(readable.sum(-1), held_already.sum(-1))
            own = torch.where(readable, place, -1).amax(-1)
            if start is not None and looked:
                state.scores[..., before + row] = start.scores[..., before + row]
            logits = attention_logits(queries[:, :, row : row + 1], keys, scaling).squeeze(2)
            ranks = state.scores
            if self.ranks_by_attention and (start is None or row > 0):
                ranks = self.ranks(held_weights(logits, state.alive & readable, kwargs), kv_heads)
            spared = torch.minimum(self.recent(add, own, context), add)
            ranks = ranks.masked_fill(place > (own - spared).unsqueeze(-1), SPARED)
            chosen = best_of_residual(ranks, state.alive & readable & ~held_already, add)
            state.alive = chosen | (state.alive & held_already)
            if self.adds_attention and not looked:
                state.scores = state.scores + by_kv_head(held_weights(logits, state.alive, kwargs), kv_heads)
            chosen_rows.append(chosen)
        states[self.key] = state
        whole = to_heads(torch.stack(chosen_rows, dim=2), heads)
        return previous_mask.merge(Mask.from_dense(previous_mask.shape, whole))

    @torch.no_grad()
    def add_indices(
        self,
        queries: torch.Tensor,
        keys: States,
        values: States,
        attention_mask: torch.Tensor,
        scaling: float,
        dropout: float,
        sparse_meta_data: dict[Any, Any],
        previous_mask: Mask,
        **kwargs: Any,
    ) -> Mask:
        """Go through the queries with the keys that are held alone; plain twin: `add_mask`."""
        layer_idx, kv_heads = kwargs["layer_idx"], keys.shape[1]
        states = sparse_meta_data.setdefault(layer_idx, {})
        held: Any = states.get(self.key)
        in_lanes = isinstance(keys, SharedStates)
        if previous_mask.is_full:
            return previous_mask
        if not in_lanes and (isinstance(held, _Alive) or not reads_prefixes(attention_mask)):
            arguments: Any = (queries, keys, values, attention_mask, scaling, dropout, sparse_meta_data, previous_mask)
            return self.add_mask(*arguments, **kwargs)
        before = keys.shape[2] - queries.shape[2]
        context = self._context_length(sparse_meta_data, before, layer_idx)
        if held is None:
            lanes = keys.own.shape[0] if isinstance(keys, SharedStates) else len(queries)
            held = states[self.key] = HeldKeys.none(lanes, kv_heads, queries.device)
        kept = None if previous_mask.is_empty else any_of_group(previous_mask.kept(), kv_heads)
        start: Start | None = None
        found: list[tuple[Step, Listed]] = []
        exchange = Exchange(self, held, context, scaling, kwargs)
        for step in steps(queries, keys, values, kept):
            seen = held.seen[step.lanes]
            logits: torch.Tensor | None = None
            # Lanes of one call begin together, at its first step; a sequence that was cut back begins anew.
            if bool(((seen < 0) | (step.lengths <= seen)).any()):
                start = self._start(queries, keys, None, scaling, sparse_meta_data, context, before, kwargs)
                exchange.begin(step, start, hold_states=not in_lanes)
            elif self.ranks_by_attention:
                logits = exchange.by_attention(step)
            else:
                exchange.by_score(step, start)
            if self.adds_attention and not (start is not None and start.looked):
                logits = exchange.logits(step)
                held.add_scores(step.lanes, by_kv_head(held_weights(logits, held.of(step.lanes)[1], kwargs), kv_heads))
            positions, listed = (part.clone() for part in held.of(step.lanes)[:2])
            if step.kept is not None:
                listed = listed & ~gather_last(step.kept, positions)
            found.append((step, Listed(positions, listed, logits)))
        return extend(previous_mask, found, held.states)

    def _start(
        self,
        queries: torch.Tensor,
        keys: States,
        allowed: torch.Tensor | None,
        scaling: float,
        sparse_meta_data: dict[Any, Any],
        context: int,
        before: int,
        special: Mapping[str, Any],
    ) -> Start:
        """Score the keys that are there before a call's first query."""
        layer_idx = special["layer_idx"]
        states: Mapping[Any, Any] = sparse_meta_data.get(CONTEXT_STATE_KEY) or {}
        of_context: torch.Tensor | None = states.get(observation_key(self.observed, layer_idx))
        if context and self.needs_context and of_context is None:
            raise StateError(
                f"{self.config.name} evicts keys by what was seen of their prefill, and nothing was seen of this "
                "context. Prefill it with adapter.prefill(context) of an adapter that has this recipe, or call "
                "adapter.prepare_context(cache)"
            )
        if of_context is None:
            of_context = torch.zeros(keys.shape[1], context, device=queries.device)
        of_question: torch.Tensor | None = sparse_meta_data.get(layer_idx, {}).get(question_key(self.observed))
        looked = of_question is None and self.config.query_aware
        if looked:
            of_question = mass_of_call(queries, keys, scaling, self.observed, special, allowed)
        scores = self.starting_scores(of_context[None], of_question, context)
        missing = (keys.shape[2] if looked else before) - scores.shape[2]
        if missing > 0:
            more = before_others(scores.shape[2], scores.shape[2] + missing, scores)
            scores = torch.cat([scores, more if self.prefers_unobserved else torch.zeros_like(more)], dim=2)
        return Start(scores, looked)

    @staticmethod
    def _context_length(sparse_meta_data: Mapping[Any, Any], before: int, layer_idx: int) -> int:
        """Return how many keys are the context; where nobody says it, all before the question's first call."""
        if CONTEXT_LENGTH_KEY in sparse_meta_data:
            return int(sparse_meta_data[CONTEXT_LENGTH_KEY])
        length: int = sparse_meta_data[layer_idx].setdefault("evicting_context_length", before)
        return length
