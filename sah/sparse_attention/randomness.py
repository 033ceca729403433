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
    generators: Sequence[torch.Generator], count: torch.Tensor, taken: torch.Tensor, wanted: torch.Tensor
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
        generators: One a row, read and moved as if the row were alone. Asking for more numbers leaves the first ones as
            they are, as long as the same way is taken.
        count: Each list's numbers, (rows, lists), int64.
        taken: Numbers that may not be drawn, (rows, lists, t), int64, each once; -1 marks an unused place.
        wanted: Numbers to draw, (rows, lists), int64; never more than are free.

    Returns:
        (rows, lists, largest wanted), int64, in the order of the draw, with -1 in unused places.
    """
    rows, lists = count.shape
    width = int(wanted.max())
    drawn = taken.new_full((rows, lists, width), -1)
    if width == 0:
        return drawn
    busy = (taken >= 0).sum(-1)
    by_proposal = 2 * (busy + wanted) <= count
    missing = wanted > 0
    proposals = _propose(generators, count, busy, wanted, by_proposal & missing)
    if proposals.shape[-1]:
        taken_and_proposed = torch.cat([taken, proposals], dim=-1)
        accepted = _is_first(taken_and_proposed.flatten(0, 1), int(count.max())).view(taken_and_proposed.shape)
        accepted = accepted[..., taken.shape[-1] :] & (proposals >= 0)
        order = accepted.cumsum(-1)
        place = torch.where(accepted & (order <= wanted.unsqueeze(-1)), order - 1, width)
        drawn = taken.new_full((rows, lists, width + 1), -1).scatter_(-1, place, proposals)[..., :width]
        missing = missing & ~(by_proposal & (order[..., -1] >= wanted))
    for row, number_of_list in missing.nonzero().tolist():
        free = torch.ones(int(count[row, number_of_list]), dtype=torch.bool)
        mine = taken[row, number_of_list]
        free[mine[mine >= 0]] = False
        permutation = torch.randperm(len(free), generator=generators[row])
        number = int(wanted[row, number_of_list])
        drawn[row, number_of_list, :number] = permutation[free[permutation]][:number]
        drawn[row, number_of_list, number:] = -1
    return drawn


def _propose(
    generators: Sequence[torch.Generator],
    count: torch.Tensor,
    busy: torch.Tensor,
    wanted: torch.Tensor,
    asking: torch.Tensor,
) -> torch.Tensor:
    """Propose numbers for the lists of the rows that ask for any, (rows, lists, n); -1 behind a row's last one."""
    free_share = (count - busy) / (count - busy - wanted).clamp(min=1)
    expected = torch.where(asking, count * free_share.log(), 0.0).amax(-1).tolist()
    rows = torch.nonzero(asking.any(-1)).flatten().tolist()
    # One stream a list, each row's as long as it would be alone, so that a row's company changes nothing.
    lengths = {row: math.ceil(expected[row] + 5 * math.sqrt(expected[row])) + 8 for row in rows}
    longest = max(lengths.values(), default=0)
    # A number of 2 or more marks the places behind a row's last one.
    uniform = torch.full((len(count), longest, count.shape[1]), 2.0, dtype=torch.float64)
    for row, length in lengths.items():
        uniform[row, :length].uniform_(generator=generators[row])
    proposals = (uniform * count.unsqueeze(1)).long()
    return proposals.masked_fill_(uniform >= 2.0, -1).transpose(1, 2)


TABLE_SHARE = 8
"""A table of all numbers is used up to so many numbers for each one that is looked up."""


def _is_first(numbers: torch.Tensor, count: int) -> torch.Tensor:
    """Tell which entries of (lists, n), all below a count or -1, no entry to their left in the list equals."""
    width = numbers.shape[-1]
    if count <= TABLE_SHARE * width:
        places = torch.arange(width, dtype=torch.int32).expand_as(numbers)
        first = places.new_full((len(numbers), count + 1), width).scatter_reduce_(1, numbers + 1, places, "amin")
        return first.gather(1, numbers + 1) == places
    apart = count + 1
    # One flat sort of whole numbers is several times faster than a sort of each list.
    flat = (numbers + 1 + torch.arange(len(numbers)).unsqueeze(-1) * apart).flatten()
    ordered, order = flat.sort(stable=True)
    is_first = torch.ones_like(ordered, dtype=torch.bool)
    is_first[1:] = ordered[1:] != ordered[:-1]
    return torch.empty_like(is_first).scatter_(0, order, is_first).view(numbers.shape)
