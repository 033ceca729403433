"""Rows of blocks: a call's queries cut where blocks of keys begin, and what a budget gives each of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class QueryRow:
    """The queries of a call that stand in one block of positions."""

    block: int
    """Number of the block of positions."""

    first: int
    """Position of the first query."""

    last: int
    """Position after the last query."""

    @property
    def count(self) -> int:
        """Queries of the row."""
        return self.last - self.first


@dataclass(frozen=True)
class Rows:
    """Queries that stand at the last keys, in blocks of positions that begin at key 0.

    The first and the last row may hold fewer queries than a block has positions.

    Args:
        q_len: Queries.
        kv_len: Keys.
        size: Positions of a block.
    """

    q_len: int
    kv_len: int
    size: int

    @property
    def offset(self) -> int:
        """Position of the first query."""
        return self.kv_len - self.q_len

    @property
    def blocks(self) -> int:
        """Blocks of keys; the last may be partial."""
        return -(-self.kv_len // self.size)

    def __len__(self) -> int:
        return self.blocks - self.offset // self.size

    def __iter__(self) -> Iterator[QueryRow]:
        for block in range(self.offset // self.size, self.blocks):
            first = max(block * self.size, self.offset)
            yield QueryRow(block, first, min((block + 1) * self.size, self.kv_len))

    def own_pairs(self, row: QueryRow) -> int:
        """Return the allowed pairs of a row's queries with the keys of their own block."""
        return pairs_between(row.first, row.last) - row.count * row.block * self.size


def pairs_between(first: int, last: int) -> int:
    """Count the (query, key) pairs that causality allows to queries at positions first to last - 1."""
    return (last * (last + 1) - first * (first + 1)) // 2


def allowed_pairs(q_len: int, kv_len: int) -> int:
    """Count the (query, key) pairs that causality allows to queries at the last positions."""
    return pairs_between(kv_len - q_len, kv_len)


def target_pairs(density: float, q_len: int, kv_len: int) -> int:
    """Return how many pairs a density of a whole call is, rounded down."""
    # 0.29 * 100 is 28.999999999999996.
    return min(allowed_pairs(q_len, kv_len), math.floor(density * allowed_pairs(q_len, kv_len) + 1e-6))


def size_in_keys(size: int | float, kv_len: int) -> int:
    """Return a size in keys: an int is one, a float a share of all keys, at least one unless it is 0."""
    if isinstance(size, int):
        return min(size, kv_len)
    return max(1, round(size * kv_len)) if size else 0


def spread_blocks(density: float, rows: Rows) -> list[int]:
    """Divide a density among the rows, in whole blocks.

    A row always reads the first block of keys and its own. What the density leaves beside these goes to the rows in
    proportion to the blocks between, and what is left over by rounding is carried on.

    Args:
        density: Share of all allowed pairs.
        rows: The rows.

    Returns:
        Blocks that each row reads, the two among them. Together they never exceed the density unless the two already
        do; what they leave unused is less than one block's pairs.
    """
    entries = list(rows)
    always = sum(rows.own_pairs(row) + row.count * min(row.block, 1) * rows.size for row in entries)
    left = max(0, target_pairs(density, rows.q_len, rows.kv_len) - always)
    open_pairs = [row.count * max(row.block - 1, 0) * rows.size for row in entries]
    total = max(1, sum(open_pairs))
    counts, spent, reached = [], 0, 0
    for row, pairs in zip(entries, open_pairs, strict=True):
        reached += pairs
        extra = (left * reached // total - spent) // (row.count * rows.size)
        spent += extra * row.count * rows.size
        counts.append(min(row.block + 1, 2) + extra)
    # A partial last row may leave more than one of its own blocks; the longest rows take what remains.
    for position in sorted(range(len(entries)), key=lambda p: -entries[p].block):
        cost = entries[position].count * rows.size
        if left - spent >= cost and counts[position] <= entries[position].block:
            counts[position] += 1
            spent += cost
    return counts


def own_block_mask(row: QueryRow, rows: Rows, device: torch.device) -> torch.Tensor:
    """Tell which keys of their own block a row's queries may read.

    Args:
        row: The row.
        rows: The rows that it belongs to.
        device: Where the mask is made.

    Returns:
        Boolean (queries, keys from the block's first to the row's last).
    """
    positions = torch.arange(row.first, row.last, device=device)
    own = torch.arange(row.block * rows.size, row.last, device=device)
    return own <= positions[:, None]
