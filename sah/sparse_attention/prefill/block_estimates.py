"""Estimates of how much attention blocks of queries pay to blocks of keys."""

from __future__ import annotations

from collections.abc import Callable

import torch

from sah.sparse_attention.kernels.scores import group_size
from sah.sparse_attention.prefill.rows import Rows

CHUNK = 1024
"""Queries whose antidiagonal sums are computed at once."""

Estimate = Callable[[torch.Tensor, torch.Tensor, float, Rows, int], torch.Tensor]


def mean_pool(queries: torch.Tensor, keys: torch.Tensor, scaling: float, rows: Rows, stride: int) -> torch.Tensor:
    """Estimate by products of each row's mean query and each block's mean key.

    Block-sparse heads of MInference (arXiv 2407.02490) and FlexPrefill (arXiv 2502.20766) use it.

    Args:
        queries: (batch, heads, q_len, head_dim).
        keys: (batch, kv_heads, kv_len, head_dim).
        scaling: Factor of the dot products.
        rows: Rows of the queries and blocks of the keys.
        stride: Not read.

    Returns:
        The logarithm of each block's share of a row's attention, float32 (batch, heads, rows, blocks); -inf for blocks
        behind the row's own.
    """
    mean_queries = _block_means(queries, rows.offset % rows.size, rows.size)
    mean_keys = _block_means(keys, 0, rows.size)
    batch, heads, count, head_dim = mean_queries.shape
    grouped = mean_queries.view(batch, keys.shape[1], -1, head_dim) * scaling
    logits = (grouped @ mean_keys.mT).view(batch, heads, count, rows.blocks)
    return torch.log_softmax(logits.masked_fill(_behind(rows, queries.device), float("-inf")), dim=-1)


def antidiagonal(queries: torch.Tensor, keys: torch.Tensor, scaling: float, rows: Rows, stride: int) -> torch.Tensor:
    """Estimate by sums of scores along antidiagonals, as XAttention does (arXiv 2503.16428).

    Scores are cut into tiles of stride x stride. The mean of a tile's antidiagonal stands for the tile: every vertical
    line and every slash that runs through a tile crosses it. Tiles are weighted by a softmax over each line of tiles,
    and a block's estimate is the sum of its tiles' weights.

    Args:
        queries: (batch, heads, q_len, head_dim).
        keys: (batch, kv_heads, kv_len, head_dim).
        scaling: Factor of the dot products.
        rows: Rows of the queries and blocks of the keys.
        stride: Side of a tile, a divisor of the blocks' size.

    Returns:
        As of `mean_pool`.
    """
    batch, heads, q_len, head_dim = queries.shape
    kv_heads, group, tiles = keys.shape[1], group_size(queries, keys), rows.size // stride
    # A tile's sum is one product over stride * head_dim entries, the queries of a tile in reverse order.
    lead = rows.offset % rows.size
    padded_queries = _tiled(_whole_blocks(queries, lead, rows.size), stride).flip(3).flatten(3)
    tile_keys = _tiled(_whole_blocks(keys, 0, rows.size), stride).flatten(3)
    estimate = torch.zeros(batch, heads, len(rows), rows.blocks, device=queries.device)
    real = _whole_blocks(torch.ones(1, 1, q_len, 1, device=queries.device), lead, rows.size)
    weights = _tiled(real, stride).mean(3)[0, 0]
    step = max(1, CHUNK // rows.size)
    for start in range(0, len(rows), step):
        stop = min(start + step, len(rows))
        last = rows.offset // rows.size + stop
        part = padded_queries[:, :, start * tiles : stop * tiles]
        lines = part.shape[2]
        grouped = part.reshape(batch, kv_heads, group * lines, -1) * (scaling / stride)
        logits = (grouped @ tile_keys[:, :, : last * tiles].mT).view(batch, heads, lines, last * tiles)
        place = torch.arange((last - (stop - start)) * tiles, last * tiles, device=queries.device)
        future = torch.arange(last * tiles, device=queries.device) > place[:, None]
        share = torch.softmax(logits.masked_fill_(future, float("-inf")), dim=-1)
        share *= weights[start * tiles : stop * tiles]
        estimate[:, :, start:stop, :last] = _tiled(share.view(batch, heads, lines, -1, tiles).sum(4), tiles).sum(3)
    estimate /= estimate.sum(-1, keepdim=True)
    return estimate.log().masked_fill(_behind(rows, queries.device), float("-inf"))


ESTIMATES: dict[str, Estimate] = {"mean_pool": mean_pool, "antidiagonal": antidiagonal}


def _behind(rows: Rows, device: torch.device) -> torch.Tensor:
    """Tell which blocks stand behind each row's own, (rows, blocks)."""
    blocks = torch.arange(rows.blocks, device=device)
    return blocks > blocks[rows.offset // rows.size :, None]


def _whole_blocks(states: torch.Tensor, lead: int, size: int) -> torch.Tensor:
    """Put zeros in front and behind so that the states fill whole blocks, float32."""
    trail = -(lead + states.shape[2]) % size
    if not (lead or trail):
        return states.float()
    return torch.nn.functional.pad(states.float(), (0, 0, lead, trail))


def _tiled(states: torch.Tensor, size: int) -> torch.Tensor:
    """Cut the third dimension into pieces: (batch, heads, n, dim) becomes (batch, heads, n / size, size, dim)."""
    batch, heads, _, dim = states.shape
    return states.reshape(batch, heads, -1, size, dim)


def _block_means(states: torch.Tensor, lead: int, size: int) -> torch.Tensor:
    """Return the mean of each block's states, of which the first has `lead` fewer; float32 (batch, heads, n, dim)."""
    length = states.shape[2]
    count = -(-(lead + length) // size)
    ends = [min((block + 1) * size - lead, length) for block in range(count)]
    begins = [0, *ends[:-1]]
    if not lead and length % size == 0:
        return _tiled(states, size).mean(3, dtype=torch.float32)
    means = [states[:, :, begin:end].mean(2, dtype=torch.float32) for begin, end in zip(begins, ends, strict=True)]
    return torch.stack(means, dim=2)
