"""Estimates of the keys and distances that a prompt's queries attend to, from the last of them."""

from __future__ import annotations

import torch

from sah.sparse_attention.kernels.scores import attention_logits, group_size


def line_masses(
    queries: torch.Tensor, keys: torch.Tensor, scaling: float, last: int, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Measure how much attention the last queries pay to each key and to each block of distances.

    A line's mass is the square of the mean square root of what each query pays along it. A plain mean takes every key
    on a slash for a vertical line of the same mass, and the other way round, since each is paid by one query; this one
    tells them apart, and equals the mean where all queries pay the same.

    Args:
        queries: (batch, heads, q_len, head_dim).
        keys: (batch, kv_heads, kv_len, head_dim).
        scaling: Factor of the dot products.
        last: Queries to look at.
        size: Distances of a block.

    Returns:
        Mass of each key (batch, heads, kv_len) and of each block of distances (batch, heads, kv_len / size rounded up),
        float32, for one key.
    """
    batch, heads, q_len, _ = queries.shape
    kv_heads, kv_len, group = keys.shape[1], keys.shape[2], group_size(queries, keys)
    last = min(last, q_len)
    vertical = torch.empty(batch, heads, kv_len, device=queries.device)
    distances = torch.zeros(batch, heads, kv_len, device=queries.device)
    position = torch.arange(kv_len, device=queries.device)
    future = position > position[kv_len - last :, None]
    for head in range(kv_heads):
        mine = slice(head * group, (head + 1) * group)
        logits = attention_logits(queries[:, mine, q_len - last :], keys[:, head : head + 1], scaling)
        shares = torch.softmax(logits.masked_fill_(future, float("-inf")), dim=-1)
        roots = shares.sqrt_()
        vertical[:, mine] = roots.mean(2).square()
        for place in range(last):
            seen = kv_len - last + place + 1
            distances[:, mine, :seen] += roots[:, :, place, :seen].flip(-1)
    return vertical, _of_blocks((distances / last).square(), size)


def _of_blocks(distances: torch.Tensor, size: int) -> torch.Tensor:
    """Divide what each distance holds among the blocks that read it.

    A query in a block of positions reads whole blocks before it. Of the queries at distance d = n * size + f from a
    key, f / size stand n + 1 blocks behind the key's, the others n.
    """
    kv_len = distances.shape[2]
    blocks = -(-kv_len // size)
    whole = torch.nn.functional.pad(distances, (0, blocks * size - kv_len)).view(*distances.shape[:2], blocks, size)
    further = torch.arange(size, device=distances.device) / size
    near, far = (whole * (1 - further)).sum(-1), (whole * further).sum(-1)
    near[:, :, 1:] += far[:, :, :-1]
    return near / size
