"""Bit signatures: packing, and counting the bits in which those of queries and keys agree."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

BLOCK_NUMBERS = 1 << 18
"""Pairs of words that are compared at once: they stay in the processor's cache."""


def packed(bits: torch.Tensor) -> torch.Tensor:
    """Pack bits into bytes, the first bit lowest.

    Args:
        bits: Boolean, contiguous, (..., bits), a multiple of 8.

    Returns:
        uint8, (..., bits / 8), contiguous.
    """
    places = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=bits.device)
    by_byte = bits.view(*bits.shape[:-1], bits.shape[-1] // 8, 8).to(torch.uint8)
    return (by_byte * places).sum(-1, dtype=torch.uint8)


def agreements(queries: torch.Tensor, keys: Sequence[torch.Tensor], *, mean_of_group: bool = False) -> torch.Tensor:
    """Count the bits in which keys agree with queries.

    Args:
        queries: Packed signatures, (batch, heads, q_len, width), uint8.
        keys: Packed signatures, in parts that follow one another: each (batch or 1, kv_heads, n, width), uint8; or
            width * heads / kv_heads where the query heads of a KV head each have a signature of a key, in their order.
        mean_of_group: Whether to average over the query heads of each KV head.

    Returns:
        (batch, heads, q_len, all n), or with `mean_of_group` kv_heads in place of heads; float32.
    """
    batch, heads, q_len, width = queries.shape
    kv_heads, length = keys[0].shape[1], sum(part.shape[2] for part in keys)
    group = heads // kv_heads
    lists = 1 if mean_of_group else group
    most, size = 8 * width * (group // lists), group // lists
    asked = queries.view(batch, kv_heads, group, q_len, width)
    counts = torch.empty(batch, kv_heads, lists, q_len, length, device=queries.device)
    stop = 0
    for part in keys:
        start, stop = stop, stop + part.shape[2]
        held = part.reshape(*part.shape[:3], part.shape[3] // width, width)
        # Head by head, so that what differs is still in the processor's cache; rows with the same keys together.
        rows = [slice(0, batch)] if len(part) == 1 else [slice(row, row + 1) for row in range(batch)]
        for row in rows:
            for head in range(kv_heads):
                together = asked[row, head].transpose(0, 1).flatten(1, 2)
                found = differing(together, held[row.start if len(part) > 1 else 0, head], lists)
                found = found.view(lists, row.stop - row.start, q_len, part.shape[2])
                torch.div(most - found, size, out=counts[row, head, ..., start:stop].transpose(0, 1))
    return counts.view(batch, kv_heads * lists, q_len, length)


def differing(queries: torch.Tensor, keys: torch.Tensor, lists: int) -> torch.Tensor:
    """Count the bits in which the signatures of one KV head differ.

    Args:
        queries: Packed, (group, q_len, width), uint8.
        keys: Packed, (n, group or 1, width), uint8.
        lists: The query heads' number, or 1 for the sum over all of them.

    Returns:
        (lists, q_len, n), uint8 where all counts fit, else int32.
    """
    group, q_len, width = queries.shape
    kind = torch.uint8 if 8 * width * group < 256 else torch.int32
    if queries.device.type != "cpu" or not hasattr(np, "bitwise_count"):
        return differing_by_table(queries, keys, lists).to(kind)
    size = next(size for size in (8, 4, 2, 1) if width % size == 0)
    asked, held = (part.contiguous().numpy().view(f"u{size}") for part in (queries, keys))
    found = torch.zeros(lists, q_len, len(keys), dtype=kind)
    step = max(1, BLOCK_NUMBERS // max(1, len(keys)))
    unequal = np.empty((min(step, q_len), len(keys)), dtype=asked.dtype)
    ones = np.empty(unequal.shape, dtype=np.uint8)
    for head in range(group):
        mine, counts = held[:, head if held.shape[1] > 1 else 0], found[head if lists > 1 else 0].numpy()
        for start in range(0, q_len, step):
            block = asked[head, start : start + step]
            rows = slice(0, len(block))
            for word in range(asked.shape[2]):
                np.bitwise_xor(block[:, word, None], mine[:, word], out=unequal[rows])
                counts[start : start + step] += np.bitwise_count(unequal[rows], out=ones[rows])
    return found


def differing_by_table(queries: torch.Tensor, keys: torch.Tensor, lists: int) -> torch.Tensor:
    """Count as `differing` does, byte by byte through a table: the plain form, on any device."""
    table = torch.tensor([byte.bit_count() for byte in range(256)], dtype=torch.int32, device=queries.device)
    found = torch.zeros(lists, queries.shape[1], len(keys), dtype=torch.int32, device=queries.device)
    for head, asked in enumerate(queries):
        mine = keys[:, head if keys.shape[1] > 1 else 0]
        for byte in range(queries.shape[2]):
            found[head if lists > 1 else 0] += table[(asked[:, byte, None] ^ mine[:, byte]).long()]
    return found
