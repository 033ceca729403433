"""The queries of a call one after the other, as evicting methods take them: whole sequences, or lanes of a context."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sah.sparse_attention.key_lists import KeyLists
from sah.sparse_attention.mask import Mask
from sah.sparse_attention.observe import Last, attention_mass
from sah.sparse_attention.shared import SharedStates, States


@dataclass(frozen=True)
class Step:
    """One query of several lanes."""

    lanes: torch.Tensor
    """(n,), int64, ascending."""

    queries: torch.Tensor
    """(n, heads, 1, head_dim)."""

    lengths: torch.Tensor
    """Keys that each query may read, its own being the last, (n,), int64."""

    keys: States
    """(n, kv_heads, kv_len, head_dim)."""

    values: States

    kept: torch.Tensor | None
    """What earlier maskers keep, boolean (n, kv_heads or 1, kv_len); None for nothing."""

    rows: torch.Tensor | None
    """Rows of the call, in lanes; None where a row of a sequence holds all its queries."""


@dataclass(frozen=True)
class Listed:
    """What a step keeps."""

    indices: torch.Tensor
    """(n, kv_heads, places), int64."""

    used: torch.Tensor
    """Boolean, of the same shape."""

    logits: torch.Tensor | None
    """(n, heads, places), float32, where they were computed."""


def reads_prefixes(attention_mask: torch.Tensor) -> bool:
    """Tell whether the queries of a chunk that stands at the last keys may read all keys up to their own."""
    q_len, kv_len = attention_mask.shape[2:]
    if q_len == 1:
        return bool(attention_mask.all())
    own = torch.arange(kv_len - q_len, kv_len, device=attention_mask.device)
    prefix = torch.arange(kv_len, device=attention_mask.device) <= own[:, None]
    return bool((attention_mask == prefix).all())


def steps(queries: torch.Tensor, keys: States, values: States, kept: torch.Tensor | None) -> Iterator[Step]:
    """Go through a call's queries in the order of their positions, all lanes side by side.

    Args:
        queries: (batch, heads, q_len, head_dim), or (rows, heads, 1, head_dim) of lanes.
        keys: (batch, kv_heads, kv_len, head_dim), or those of the rows.
        values: (batch, kv_heads, kv_len, value_dim), or those of the rows.
        kept: Boolean, (batch or 1, kv_heads or 1, q_len or 1, kv_len); None for nothing.

    Yields:
        The steps.
    """
    if isinstance(keys, SharedStates) and isinstance(values, SharedStates):
        yield from _steps_of_lanes(queries, keys, values, kept)
        return
    batch, _, q_len, _ = queries.shape
    lanes = torch.arange(batch, device=queries.device)
    for row in range(q_len):
        length = torch.full_like(lanes, keys.shape[2] - q_len + row + 1)
        mine = None if kept is None else kept[:, :, row if kept.shape[2] > 1 else 0].expand(batch, -1, -1)
        yield Step(lanes, queries[:, :, row : row + 1], length, keys, values, mine, None)


def _steps_of_lanes(
    queries: torch.Tensor, keys: SharedStates, values: SharedStates, kept: torch.Tensor | None
) -> Iterator[Step]:
    if keys.one_each:
        whole = None if kept is None else kept[:, :, 0].expand(len(keys.lanes), -1, -1)
        yield Step(keys.lanes, queries, keys.lengths, keys, values, whole, torch.arange(len(keys.lanes)))
        return
    # The rows of a lane stand together in order: each one's place among them is its distance from the first.
    first = torch.searchsorted(keys.lanes, keys.lanes)
    place = torch.arange(len(keys.lanes), device=first.device) - first
    for number in range(int(place.max()) + 1):
        rows = (place == number).nonzero().flatten()
        mine = None if kept is None else kept[:, :, 0].expand(len(keys.lanes), -1, -1)[rows]
        some = keys.of_rows(rows), values.of_rows(rows)
        yield Step(keys.lanes[rows], queries[rows], keys.lengths[rows], *some, mine, rows)


def extend(
    previous: Mask, found: Sequence[tuple[Step, Listed]], states: tuple[torch.Tensor, torch.Tensor] | None
) -> Mask:
    """Add what the steps of a call keep to a mask.

    Args:
        previous: The mask; none of the keys that the steps keep is in it.
        found: All steps with what they keep.
        states: Keys and values of the places of the last step, if they are held.

    Returns:
        The extended mask.
    """
    if len(found) == 1:
        listed = found[0][1]
        used = None if bool(listed.used.all()) else listed.used.float().unsqueeze(2)
        logits = None if listed.logits is None else listed.logits.unsqueeze(2)
        return previous.extend(KeyLists(listed.indices.unsqueeze(2), used, logits, states=states))
    places = max(listed.indices.shape[2] for _, listed in found)
    kv_heads = found[0][1].indices.shape[1]
    rows, _, q_len, _ = previous.shape
    indices = torch.zeros(rows, kv_heads, q_len, places, dtype=torch.long, device=previous.device)
    used = torch.zeros(indices.shape, device=previous.device)
    for number, (step, listed) in enumerate(found):
        width = listed.indices.shape[2]
        if step.rows is None:
            indices[:, :, number, :width], used[:, :, number, :width] = listed.indices, listed.used.float()
        else:
            indices[step.rows, :, 0, :width], used[step.rows, :, 0, :width] = listed.indices, listed.used.float()
    return previous.extend(KeyLists(indices, used))


def mass_of_call(
    queries: torch.Tensor,
    keys: States,
    scaling: float,
    last: Last,
    special: Mapping[str, Any],
    allowed: torch.Tensor | None = None,
) -> torch.Tensor:
    """Observe a call's own queries.

    Args:
        queries: (batch, heads, q_len, head_dim), or (rows, heads, 1, head_dim) of lanes.
        keys: (batch, kv_heads, kv_len, head_dim), or those of the rows.
        scaling: Factor of the dot products.
        last: How many of the last queries of each lane count; None for all.
        special: What the model passed on; `s_aux` and `softcap` are read.
        allowed: Boolean, (batch or 1, heads or 1, q_len, kv_len); None for plain causality.

    Returns:
        (lanes, kv_heads, kv_len), float32; 0 for lanes without a query.
    """
    options = {"sinks": special.get("s_aux"), "softcap": special.get("softcap")}
    if not isinstance(keys, SharedStates):
        masses = []
        for number in range(len(queries)):
            one = slice(number, number + 1)
            mine = None if allowed is None else allowed[one] if len(allowed) > 1 else allowed
            masses.append(attention_mass(queries[one], keys[one], scaling, last, allowed=mine, **options))
        return torch.stack(masses)
    whole = torch.zeros(keys.own.shape[0], *keys.shape[1:3], device=keys.device)
    for lane in dict.fromkeys(keys.lanes.tolist()):
        rows = (keys.lanes == lane).nonzero().flatten()
        length = int(keys.lengths[rows].max())
        mine = queries[rows].squeeze(2).transpose(0, 1)[None]
        whole[lane, :, :length] = attention_mass(mine, keys.of_lane(lane, length), scaling, last, **options)
    return whole
