"""The keys that a sampler may draw, and the draw itself."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from sah.sparse_attention.grouping import any_of_group
from sah.sparse_attention.key_lists import KeyLists
from sah.sparse_attention.mask import Mask
from sah.sparse_attention.randomness import draw_distinct


@dataclass(frozen=True)
class Pool:
    """The residual of every query row: its allowed keys, numbered in their order, without those taken."""

    generators: list[torch.Generator]
    """One a query row, see `row_generators`; each serves all lists of its row."""

    allowed: torch.Tensor
    """Number of allowed keys, (batch, lists, q_len), int64; lists is heads or kv_heads."""

    taken: torch.Tensor
    """Numbers of the keys kept or drawn before, (batch, lists, q_len, t), int64; -1 marks an unused place."""

    positions: torch.Tensor | None
    """Position of each allowed key, (batch, lists, q_len, most allowed), int64, -1 behind the last one; None where all
    keys are allowed."""

    @property
    def size(self) -> torch.Tensor:
        """Keys that are left, (batch, lists, q_len), int64."""
        return self.allowed - (self.taken >= 0).sum(-1)

    def draw(self, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Pool]:
        """Draw keys of every row uniformly and without replacement; see `draw_distinct`.

        Args:
            wanted: Keys to draw, (batch, lists, q_len), int64; never more than are left.

        Returns:
            Their positions (batch, lists, q_len, n), int64, 0 in unused places; which places are used, boolean of the
            same shape; and the pool without them.
        """
        batch, lists, q_len = wanted.shape
        count, taken, number = (t.transpose(1, 2).flatten(0, 1).cpu() for t in (self.allowed, self.taken, wanted))
        rows = draw_distinct(self.generators, count, taken, number)
        numbers = rows.view(batch, q_len, lists, -1).transpose(1, 2).to(wanted.device)
        used = numbers >= 0
        indices = numbers.clamp(min=0)
        if self.positions is not None:
            indices = self.positions.gather(-1, indices).clamp(min=0)
        return indices, used, replace(self, taken=torch.cat([self.taken, numbers], dim=-1))


def pool_of_mask(previous: Mask, allowed: torch.Tensor, lists: int, generators: list[torch.Generator]) -> Pool:
    """Find what is left of any mask.

    Args:
        previous: What is kept already.
        allowed: Boolean, broadcastable to (batch, heads, q_len, kv_len).
        lists: heads, or kv_heads for one draw a KV head; a key that any of its query heads keeps is then taken.
        generators: One a query row.

    Returns:
        The pool.
    """
    batch, _, q_len, kv_len = previous.shape
    kept = any_of_group((previous.kept() & allowed).expand(-1, -1, q_len, -1), lists)
    readable = any_of_group(allowed.expand(-1, -1, q_len, -1), lists)
    shape = (batch, lists, q_len, -1)
    return Pool(
        generators,
        readable.sum(-1).expand(shape[:-1]),
        _gather_chosen(kept, readable.cumsum(-1) - 1).expand(shape),
        _gather_chosen(readable, torch.arange(kv_len, device=allowed.device)).expand(shape),
    )


def pool_of_lists(previous: Mask, lengths: torch.Tensor, lists: int, generators: list[torch.Generator]) -> Pool:
    """Find what is left of a mask in list form where rows read prefixes; builds nothing of size kv_len.

    Args:
        previous: What is kept already, with one query a row, and lists that suit; see
            `DrawingMasker.can_extend`.
        lengths: Keys that each row may read, from the first one on, (batch or 1,), int64.
        lists: heads, or kv_heads for one draw a KV head.
        generators: One a query row.

    Returns:
        The pool, equal to that of `pool_of_mask`.
    """
    batch, _, q_len, _ = previous.shape
    device = previous.device
    taken = [torch.arange(start, stop, device=device).view(1, 1, 1, -1) for start, stop in previous.spans]
    for part in previous.lists:
        indices, probabilities = part.of_single_keys(lists)
        taken.append(torch.where(probabilities > 0, indices, -1))
    shape = (batch, lists, q_len, -1)
    empty = torch.empty(1, 1, 1, 0, dtype=torch.long, device=device)
    count = lengths.view(-1, 1, 1).expand(shape[:-1])
    return Pool(generators, count, torch.cat([part.expand(shape) for part in (empty, *taken)], dim=-1), None)


def add_drawn(
    previous: Mask,
    indices: torch.Tensor,
    used: torch.Tensor,
    probability: torch.Tensor,
    logits: torch.Tensor | None = None,
) -> Mask:
    """Extend a mask by drawn keys.

    Args:
        previous: What is kept already.
        indices: Positions of the drawn keys, (batch, lists, q_len, n).
        used: Which of them count, boolean, same shape.
        probability: Inclusion probability of the drawn keys, (batch, lists, q_len), float32.
        logits: The keys' logits where they are known, see `KeyLists`.

    Returns:
        The extended mask.
    """
    if not indices.shape[-1]:
        return previous
    return previous.extend(KeyLists(indices, used * probability.unsqueeze(-1), logits))


def share_drawn(drawn: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """Return drawn / size as float32, computed in double and rounded once: drawing all gives exactly 1."""
    return (drawn.double() / size.clamp(min=1)).float()


def _gather_chosen(chosen: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Collect the numbers of chosen places in their order.

    Args:
        chosen: Boolean, (..., n).
        numbers: int64, broadcastable to it.

    Returns:
        (..., most chosen), int64, -1 behind the last one.
    """
    order = chosen.cumsum(-1)
    longest = int(order[..., -1].max())
    place = torch.where(chosen, order - 1, longest)
    collected = place.new_full((*chosen.shape[:-1], longest + 1), -1)
    return collected.scatter_(-1, place, numbers.expand_as(place))[..., :longest]
