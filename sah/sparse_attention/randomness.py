"""Random numbers that depend on what is drawn for, never on what else is computed beside it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import torch

LANES_KEY = "lanes"
"""Key of `sparse_meta_data` that holds one identity (any string) a batch row."""


def generator_for(*identity: object) -> torch.Generator:
    """Make a CPU generator seeded from an identity.

    Args:
        *identity: Values with a stable `repr`, e.g. seed, masker key, layer, position, lane.

    Returns:
        A generator; equal identities give equal streams, on every machine.
    """
    digest = hashlib.blake2b(repr(identity).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def row_generators(
    seed: int, key: str, layer_idx: int, sparse_meta_data: dict[Any, Any], allowed: torch.Tensor, batch: int
) -> list[torch.Generator]:
    """Make one generator a query row.

    It is seeded by the seed, the masker, the layer, the query's position among its allowed keys and the lane: padding,
    batch company and the way questions are cut into chunks change nothing.

    Args:
        seed: Seed of the recipe.
        key: The masker's key in its recipe.
        layer_idx: The layer.
        sparse_meta_data: May hold one lane identity a batch row under `LANES_KEY`.
        allowed: Boolean, (batch or 1, heads or 1, q_len, kv_len).
        batch: Batch rows.

    Returns:
        batch x q_len generators, the queries of a batch row one after the other.
    """
    lanes: Sequence[str] = sparse_meta_data.get(LANES_KEY) or [""] * batch
    readable: list[list[int]] = allowed.any(dim=1).sum(-1).expand(batch, -1).tolist()
    return [
        generator_for(seed, key, layer_idx, count, lane)
        for lane, counts in zip(lanes, readable, strict=True)
        for count in counts
    ]


def draw_distinct(
    generator: torch.Generator, count: torch.Tensor, taken: torch.Tensor, wanted: torch.Tensor
) -> torch.Tensor:
    """Draw numbers below a count uniformly and without replacement, leaving out those that are taken.

    Where at most half of the numbers are taken or wanted, numbers below the count are proposed independently, and those
    not yet seen are accepted in order of arrival: the cost follows the numbers taken and wanted, not the count. Where
    more are, or where the proposals run out, a permutation of all numbers is walked instead, which costs as much as
    there are numbers.

    Either way every set of free numbers of the wanted size is equally likely, so each free number is drawn with
    probability wanted / free exactly. A proposal is uniform over the free numbers given that it is free, so the free
    ones in order of first arrival are a uniform random order. Whether the proposals run out depends on how many of them
    coincide, which says nothing on which free numbers they are: given either outcome all sets stay equally likely. For
    the same reason a sample may be drawn in parts, the earlier ones being taken.

    Args:
        generator: Read and moved. Asking for more numbers leaves the first ones as they are, as long as the same way
            is taken.
        count: Each list's numbers, (lists,), int64.
        taken: Numbers that may not be drawn, (lists, t), int64, each once; -1 marks an unused place.
        wanted: Numbers to draw, (lists,), int64; never more than are free.

    Returns:
        (lists, largest wanted), int64, in the order of the draw, with -1 in unused places.
    """
    width = int(wanted.max())
    drawn = taken.new_full((len(taken), width), -1)
    if width == 0:
        return drawn
    busy = (taken >= 0).sum(-1)
    by_proposal = 2 * (busy + wanted) <= count
    missing = wanted > 0
    if bool((by_proposal & missing).any()):
        free_share = (count - busy) / (count - busy - wanted).clamp(min=1)
        expected = float(torch.where(by_proposal & missing, count * free_share.log(), 0.0).max())
        proposed = math.ceil(expected + 5 * math.sqrt(expected)) + 8
        # One row a proposal, so that a longer stream begins with the shorter one.
        uniform = torch.rand(proposed, len(count), generator=generator, dtype=torch.float64)
        proposals = (uniform * count).long().T
        accepted = _is_first(torch.cat([taken, proposals], dim=1))[:, taken.shape[1] :]
        order = accepted.cumsum(-1)
        place = torch.where(accepted & (order <= wanted.unsqueeze(-1)), order - 1, width)
        drawn = taken.new_full((len(taken), width + 1), -1).scatter_(1, place, proposals)[:, :width]
        missing = missing & ~(by_proposal & (order[:, -1] >= wanted))
    for row in missing.nonzero().flatten().tolist():
        free = torch.ones(int(count[row]), dtype=torch.bool)
        free[taken[row][taken[row] >= 0]] = False
        permutation = torch.randperm(len(free), generator=generator)
        number = int(wanted[row])
        drawn[row, :number] = permutation[free[permutation]][:number]
        drawn[row, number:] = -1
    return drawn


def _is_first(numbers: torch.Tensor) -> torch.Tensor:
    """Tell which entries of (lists, n) no entry to their left in the list equals."""
    apart = int(numbers.max()) + 2
    # One flat sort of whole numbers is several times faster than a sort of each list.
    flat = (numbers + 1 + torch.arange(len(numbers)).unsqueeze(-1) * apart).flatten()
    ordered, order = flat.sort(stable=True)
    is_first = torch.ones_like(ordered, dtype=torch.bool)
    is_first[1:] = ordered[1:] != ordered[:-1]
    return torch.empty_like(is_first).scatter_(0, order, is_first).view(numbers.shape)
