"""Vertical lines and slashes: keys that all queries read, and distances at which every query reads.

Based on MInference (Jiang et al. 2024, arXiv 2407.02490). The attention of the last queries, computed in full, is
gathered for every key (vertical lines) and for every distance between query and key (slashes), and each query head
reads the lines that hold most. The estimate knows nothing of a model's softcap or sinks.

Slashes are read as whole blocks: the queries of a block of positions read the n-th block of keys before their own, for
every n that was chosen; that block reads distances from (n - 1) * block_size + 1 to (n + 1) * block_size - 1 in part.
Their own block (n = 0) is always read. Vertical lines are single keys, gathered.
Budget: under a density, lines are taken by the mass that they hold for each pair they cost, slashes and keys against
each other, for each head; then keys fill what is left. The total exceeds the density only where the queries' own
blocks do alone (contexts below about block_size / density tokens), and falls short of it by less than one line a head.
With sizes every head takes as many keys and distances.
Deviations: the paper searches sizes for each head beforehand; a density divides by the mass of the prompt at hand. The
paper sums what queries pay along a line; here it is a mean of roots (`line_estimates.py`), without which slashes are
taken for vertical lines where both compete for one budget. The authors' code always takes the first 30 keys and the
nearest 100 distances; here they compete with the others. Slashes stand on a grid of blocks; the authors' kernel starts
each where its distance begins.
State: none. The estimate takes (heads / kv_heads, last_queries, kv_len) numbers, one KV head at a time.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from sah.sparse_attention.kernels.block_rows import RowKeys, attend_rows
from sah.sparse_attention.prefill.base import PrefillPattern
from sah.sparse_attention.prefill.line_estimates import line_masses
from sah.sparse_attention.prefill.rows import Rows, allowed_pairs, own_block_mask, size_in_keys, target_pairs
from sah.sparse_attention.prefill.vertical_slash_config import VerticalSlashConfig


class VerticalSlashPrefill(PrefillPattern):
    """Keeps the keys and distances that the last queries attend to."""

    config: VerticalSlashConfig

    def keep(self, queries: torch.Tensor, keys: torch.Tensor, scaling: float) -> torch.Tensor:
        """Tell which keys each query reads; see `PrefillPattern.keep`."""
        verticals, slashes = self.choose(queries, keys, scaling)
        rows = Rows(queries.shape[2], keys.shape[2], self.config.block_size)
        key = torch.arange(rows.kv_len, device=queries.device)
        position, block = key[rows.offset :], torch.arange(rows.blocks, device=queries.device)
        apart = (block[:, None] - block).clamp(min=0)
        on_slash = slashes[:, :, apart][:, :, position // rows.size][..., key // rows.size]
        return (on_slash | verticals[:, :, None]) & (key <= position[:, None])

    def attend(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        scaling: float,
        *,
        sinks: torch.Tensor | None = None,
        softcap: float | None = None,
    ) -> tuple[torch.Tensor, float]:
        """Attend over the chosen lines; see `PrefillPattern.attend`."""
        rows = Rows(queries.shape[2], keys.shape[2], self.config.block_size)
        verticals, slashes = self.choose(queries, keys, scaling)
        row_keys = _row_keys(verticals.flatten(0, 1), slashes.flatten(0, 1), rows)
        output, pairs = attend_rows(queries, keys, values, row_keys, scaling, sinks=sinks, softcap=softcap)
        heads = queries.shape[0] * queries.shape[1]
        return output, pairs / (heads * allowed_pairs(rows.q_len, rows.kv_len))

    def choose(self, queries: torch.Tensor, keys: torch.Tensor, scaling: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Choose lines.

        Args:
            queries: (batch, heads, q_len, head_dim).
            keys: (batch, kv_heads, kv_len, head_dim).
            scaling: Factor of the dot products.

        Returns:
            Boolean: the keys (batch, heads, kv_len), and the blocks of distances (batch, heads, blocks), of which the
            first, the queries' own block, is always chosen.
        """
        config = self.config
        rows = Rows(queries.shape[2], keys.shape[2], config.block_size)
        vertical, slash = line_masses(queries, keys, scaling, config.last_queries, config.block_size)
        if config.vertical_size is None or config.slash_size is None:
            return _within(target_pairs(config.target_density or 1.0, rows.q_len, rows.kv_len), vertical, slash, rows)
        wanted = size_in_keys(config.slash_size, rows.kv_len)
        slash[..., 0] = float("inf")
        slashes = _largest(slash, max(1, -(-wanted // config.block_size)))
        return _largest(vertical, size_in_keys(config.vertical_size, rows.kv_len)), slashes


def _largest(masses: torch.Tensor, count: int) -> torch.Tensor:
    """Mark the largest masses of each head, the first of equal ones."""
    order = masses.argsort(dim=-1, descending=True, stable=True)[..., :count]
    return torch.zeros_like(masses, dtype=torch.bool).scatter(-1, order, True)


def _within(target: int, vertical: torch.Tensor, slash: torch.Tensor, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose the lines that hold most for each pair, within a number of pairs.

    Args:
        target: Pairs that a head may read.
        vertical: Mass of each key, (batch, heads, kv_len).
        slash: Mass of each block of distances, by pair as that of the keys, (batch, heads, blocks).
        rows: The rows of queries.

    Returns:
        As of `VerticalSlashPrefill.choose`.
    """
    device = vertical.device
    counts = torch.zeros(2 * rows.blocks, device=device)
    for row in rows:
        counts[row.block] = row.count
    left = max(0, target - sum(rows.own_pairs(row) for row in rows))
    # Queries that stand so many blocks behind a key of each block: (distance, block of the key).
    block = torch.arange(rows.blocks, device=device)
    queries_at = counts[block[:, None] + block]
    queries_at[0] = 0
    slash_cost = (queries_at.sum(1).long() * rows.size).expand(slash.shape)
    vertical_cost = queries_at.sum(0).long().repeat_interleave(rows.size)[: rows.kv_len].expand(vertical.shape)
    # Lines cross, so that what both kinds cost together is less than this sum; keys fill the rest below.
    chosen = _affordable(torch.cat([slash, vertical], -1), torch.cat([slash_cost, vertical_cost], -1), left)
    slashes = chosen[..., : rows.blocks].clone()
    slashes[..., 0] = True
    left_over = left - (slashes * slash_cost).sum(-1, keepdim=True)
    open_cost = ((~slashes).float() @ queries_at).long().repeat_interleave(rows.size, dim=-1)[..., : rows.kv_len]
    return _affordable(vertical, open_cost, left_over), slashes


def _affordable(masses: torch.Tensor, costs: torch.Tensor, left: torch.Tensor | int) -> torch.Tensor:
    """Mark the largest masses of each head, down to the first that would cost more than is left."""
    order = masses.argsort(dim=-1, descending=True, stable=True)
    taken = costs.gather(-1, order).cumsum(-1) <= left
    return torch.zeros_like(taken).scatter(-1, order, taken)


def _row_keys(verticals: torch.Tensor, slashes: torch.Tensor, rows: Rows) -> Iterator[RowKeys]:
    """Write lines as keys, for heads in turn; the row's own block stands last, whose keys causality divides."""
    for row in rows:
        start = row.block * rows.size
        own = torch.arange(start, row.last, device=verticals.device)
        before = slashes[:, 1 : row.block + 1].flip(1)[:, :, None]
        read = (before | verticals[:, :start].view(len(verticals), row.block, rows.size)).flatten(1)
        lists = [torch.cat([head.nonzero()[:, 0], own]) for head in read]
        tail = own_block_mask(row, rows, verticals.device)
        yield RowKeys(row.first - rows.offset, row.last - rows.offset, lists, tail)
