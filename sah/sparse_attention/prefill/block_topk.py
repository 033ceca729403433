"""Block top-k: every block of queries reads the blocks of keys that an estimate of its attention puts first.

Two estimators. `mean_pool`, of the block-sparse heads of MInference (Jiang et al. 2024, arXiv 2407.02490) and of
FlexPrefill (Lai et al. 2025, arXiv 2502.20766), multiplies mean queries and mean keys of blocks; it costs next to
nothing and misses what stands out in a block of many. `antidiagonal`, of XAttention (Xu et al. 2025, arXiv 2503.16428),
computes one score in `stride` along antidiagonals and adds up what a softmax makes of them.

Budget: whole blocks. The first block of keys and the queries' own are always read; in a short context, where these
exceed the density alone, so does the pattern (at a density of 0.1 blocks of 64 read 0.35 of 512 tokens and 0.18 of
1,000, and meet it from 2,000; blocks of 128 from 4,000). What the density leaves beside them goes to the blocks of
queries in proportion to the blocks between, and all heads get the same number; the total never exceeds the target,
and falls short of it by less than a block a head. `coverage` takes for each block of queries and head the fewest
blocks that hold this share of the estimate, the two always read among them (as XAttention does with its threshold);
the density follows.
Deviations: MInference and XAttention choose their parameters for each head beforehand, here all heads have the same.
FlexPrefill's gamma is a share of a head's whole map, here it is one of each block of queries; its choice for each head
between pooled blocks and lines is left out. The estimate of a block of queries rests on all of them, so that a later
query of a block has a say in what an earlier one reads; no key behind a query is ever read by it.
State: none. The estimates are (heads, q_len / block_size, kv_len / block_size) numbers.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from sah.sparse_attention.grouping import combine_heads
from sah.sparse_attention.kernels.block_rows import RowKeys, attend_rows
from sah.sparse_attention.prefill.base import PrefillPattern
from sah.sparse_attention.prefill.block_estimates import ESTIMATES
from sah.sparse_attention.prefill.block_topk_config import GROUP, BlockTopKConfig
from sah.sparse_attention.prefill.rows import Rows, allowed_pairs, own_block_mask, spread_blocks


class BlockTopKPrefill(PrefillPattern):
    """Keeps the best blocks of keys for each block of queries."""

    config: BlockTopKConfig

    def keep(self, queries: torch.Tensor, keys: torch.Tensor, scaling: float) -> torch.Tensor:
        """Tell which keys each query reads; see `PrefillPattern.keep`."""
        rows = Rows(queries.shape[2], keys.shape[2], self.config.block_size)
        chosen = self.choose(queries, keys, scaling)
        position = torch.arange(rows.kv_len, device=queries.device)
        block = position // rows.size
        row = block[rows.offset :] - rows.offset // rows.size
        kept = chosen[:, :, row][..., block] & (position <= position[rows.offset :, None])
        return kept.repeat_interleave(queries.shape[1] // chosen.shape[1], dim=1)

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
        """Attend over the chosen blocks; see `PrefillPattern.attend`."""
        rows = Rows(queries.shape[2], keys.shape[2], self.config.block_size)
        chosen = self.choose(queries, keys, scaling)
        output, pairs = attend_rows(
            queries, keys, values, _row_keys(chosen, rows), scaling, sinks=sinks, softcap=softcap
        )
        heads = queries.shape[0] * queries.shape[1]
        return output, pairs / (heads * allowed_pairs(rows.q_len, rows.kv_len))

    def choose(self, queries: torch.Tensor, keys: torch.Tensor, scaling: float) -> torch.Tensor:
        """Choose blocks.

        Args:
            queries: (batch, heads, q_len, head_dim).
            keys: (batch, kv_heads, kv_len, head_dim).
            scaling: Factor of the dot products.

        Returns:
            Boolean (batch, heads, rows, blocks), or (batch, kv_heads, rows, blocks) with `selection: group`; every
            row's own block and the first are chosen, none behind.
        """
        config = self.config
        rows = Rows(queries.shape[2], keys.shape[2], config.block_size)
        scores = ESTIMATES[config.estimator](queries, keys, scaling, rows, config.score_stride)
        if config.selection == GROUP:
            scores = combine_heads(scores.exp(), keys.shape[1], "mean").log()
        blocks = torch.arange(rows.blocks, device=queries.device)
        own = blocks[rows.offset // rows.size :, None]
        always = (blocks == 0) | (blocks == own)
        shares = scores.exp()
        ranked = scores.masked_fill(always, float("inf")).masked_fill(blocks > own, float("-inf"))
        order = ranked.argsort(dim=-1, descending=True, stable=True)
        if config.coverage is not None:
            counts = _covering(shares.gather(-1, order), config.coverage)
        else:
            counts = torch.tensor(self._counts(rows), device=queries.device)[:, None]
        first = blocks < counts
        chosen = torch.zeros_like(first.expand(order.shape)).scatter(-1, order, first.expand(order.shape))
        return (chosen | always) & (blocks <= own)

    def _counts(self, rows: Rows) -> list[int]:
        """Return how many blocks each row reads."""
        if self.config.blocks is not None:
            return [min(self.config.blocks, row.block + 1) for row in rows]
        return spread_blocks(self.config.target_density or 1.0, rows)


def _covering(shares: torch.Tensor, coverage: float) -> torch.Tensor:
    """Return how many of a row's shares, in their order, reach the coverage, (..., rows, 1); for 1 all."""
    if coverage >= 1:
        return torch.full_like(shares[..., :1], shares.shape[-1])
    return (shares.cumsum(-1) < coverage).sum(-1, keepdim=True) + 1


def _row_keys(chosen: torch.Tensor, rows: Rows) -> Iterator[RowKeys]:
    """Write the chosen blocks as keys; the row's own block stands last, whose keys causality divides."""
    inside = torch.arange(rows.size, device=chosen.device)
    for number, row in enumerate(rows):
        tail = own_block_mask(row, rows, chosen.device)
        before = chosen[:, :, number, : row.block].flatten(0, 1)
        own = torch.arange(row.block * rows.size, row.last, device=chosen.device)
        lists = [torch.cat([(blocks.nonzero() * rows.size + inside).flatten(), own]) for blocks in before]
        yield RowKeys(row.first - rows.offset, row.last - rows.offset, lists, tail)
