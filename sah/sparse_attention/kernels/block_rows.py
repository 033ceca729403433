"""Attention of rows of queries, each over lists of keys. Plain twin: `kernels/masked.py` over the same keys.

A prompt's queries are taken a block at a time. The queries of such a row read the same keys, which are gathered once
for it, so that the work is that of the keys read and nothing is made of the size (heads, q_len, kv_len). Everything is
computed in float32.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from sah.sparse_attention.kernels.masked import masked_attention
from sah.sparse_attention.kernels.scores import group_size


@dataclass(frozen=True)
class RowKeys:
    """Which keys a row of queries reads."""

    start: int
    """Number of the first query."""

    stop: int
    """Number after the last query."""

    lists: list[torch.Tensor]
    """Numbers of the keys, int64, each key once: a list a query head or a KV head, batch by batch, or one for all."""

    tail: torch.Tensor
    """Boolean (queries, t): which of the last t keys of every list each query reads. All queries read those before."""


def attend_rows(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    rows: Iterable[RowKeys],
    scaling: float,
    *,
    sinks: torch.Tensor | None = None,
    softcap: float | None = None,
) -> tuple[torch.Tensor, int]:
    """Attend row by row.

    Args:
        queries: (batch, heads, q_len, head_dim).
        keys: (batch, kv_heads, kv_len, head_dim).
        values: (batch, kv_heads, kv_len, value_dim).
        rows: Rows that hold every query once.
        scaling: Factor of the dot products.
        sinks: Learned logits in the denominator, (heads,), or None.
        softcap: Cap on logits, or None.

    Returns:
        Output (batch, heads, q_len, value_dim) in the queries' dtype, and the (query, key) pairs that were read, of all
        heads together.
    """
    batch, heads, q_len, head_dim = queries.shape
    output = queries.new_empty(batch, heads, q_len, values.shape[3])
    flat_keys, flat_values = ([head for sequence in part for head in sequence] for part in (keys, values))
    flat_sinks = None if sinks is None else sinks.repeat(batch)
    pairs = 0
    for row in rows:
        # A unit is the heads that read the same keys.
        lists = row.lists if len(row.lists) > 1 else row.lists * len(flat_keys)
        together = batch * heads // len(lists)
        sources = [unit * together // group_size(queries, keys) for unit in range(len(lists))]
        count, tail = row.stop - row.start, row.tail.shape[1]
        asking = queries[:, :, row.start : row.stop].reshape(len(lists), together, count, head_dim).float()
        found = torch.empty(len(lists), together, count, values.shape[3], device=queries.device)
        forbidden = _additive(row.tail, max(part.shape[0] for part in lists))
        for length, units in _by_length(lists):
            picked_keys, picked_values = (
                torch.stack([flat[sources[unit]].index_select(0, lists[unit]) for unit in units]).float().unsqueeze(1)
                for flat in (flat_keys, flat_values)
            )
            mask = forbidden[:, forbidden.shape[1] - length :]
            if flat_sinks is None and softcap is None:
                found[units] = _fused(asking[units], picked_keys, picked_values, mask, scaling)
            else:
                for place, unit in enumerate(units):
                    own = slice(place, place + 1)
                    found[unit] = masked_attention(
                        asking[unit][None],
                        picked_keys[own],
                        picked_values[own],
                        (mask == 0).float(),
                        scaling,
                        sinks=None if flat_sinks is None else flat_sinks[unit * together : (unit + 1) * together],
                        softcap=softcap,
                    )[0][0]
            pairs += len(units) * together * (count * (length - tail))
        pairs += batch * heads * int(row.tail.sum())
        output[:, :, row.start : row.stop] = found.view(batch, heads, count, -1)
    return output, pairs


def _fused(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Attend by torch's fused kernel; keys and values are those of one head for all heads of a unit."""
    shape = queries.shape[:2]
    return torch.nn.functional.scaled_dot_product_attention(
        queries,
        keys.expand(*shape, *keys.shape[2:]),
        values.expand(*shape, *values.shape[2:]),
        attn_mask=mask,
        scale=scaling,
    )


def _additive(tail: torch.Tensor, length: int) -> torch.Tensor:
    """Write a tail as what is added to the logits of lists of up to this length, float32 (queries, length)."""
    mask = torch.zeros(tail.shape[0], length, device=tail.device)
    mask[:, length - tail.shape[1] :].masked_fill_(~tail, float("-inf"))
    return mask


def _by_length(lists: list[torch.Tensor]) -> list[tuple[int, list[int]]]:
    """Group the places of lists that are equally long."""
    found: dict[int, list[int]] = {}
    for place, part in enumerate(lists):
        found.setdefault(part.shape[0], []).append(place)
    return list(found.items())
