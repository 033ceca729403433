"""Attention that reads only the keys and values that index lists name. Plain twin: `kernels/masked.py`."""

from __future__ import annotations

import torch

from sah.sparse_attention.kernels.masked import importance_softmax
from sah.sparse_attention.kernels.scores import cap_logits, group_size


def gather_rows(states: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Read the rows of keys or values that each query head keeps.

    Args:
        states: (batch, kv_heads, kv_len, dim).
        indices: (batch, heads, n), int64, positions along kv_len.

    Returns:
        (batch, heads, n, dim), a copy.
    """
    batch, heads, count = indices.shape
    kv_heads, dim = states.shape[1], states.shape[-1]
    lists = indices.reshape(batch, kv_heads, -1)
    strides = states.stride()
    if strides[-1] != 1 or any(stride % dim for stride in strides[:-1]):
        batches = torch.arange(batch, device=states.device)[:, None, None]
        groups = torch.arange(kv_heads, device=states.device)[:, None]
        return states[batches, groups, lists].view(batch, heads, count, dim)
    # Rows lie whole in memory: one flat row selection is several times faster than a gather of single numbers.
    step = [stride // dim for stride in strides[:-1]]
    starts = (
        torch.arange(batch, device=states.device)[:, None, None] * step[0]
        + torch.arange(kv_heads, device=states.device)[:, None] * step[1]
    )
    last_row = sum((size - 1) * stride for size, stride in zip(states.shape[:-1], step, strict=True))
    flat = states.as_strided((last_row + 1, dim), (dim, 1))
    return flat.index_select(0, (lists * step[2] + starts).view(-1)).view(batch, heads, count, dim)


def gathered_attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    indices: torch.Tensor,
    inclusion: torch.Tensor,
    scaling: float,
    *,
    sinks: torch.Tensor | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Attention of one query a row over its own list of keys.

    Args:
        queries: (batch, heads, 1, head_dim).
        keys: (batch, kv_heads, kv_len, head_dim).
        values: (batch, kv_heads, kv_len, value_dim).
        indices: (batch, heads, n), int64; a list shared by all heads comes as (batch, 1, n).
        inclusion: Broadcastable to indices: inclusion probabilities, 0 for unused places of a list.
        scaling: Factor of the dot products.
        sinks: Learned sink logit of each head, (heads,), or None.
        softcap: The model's cap on its logits, or None.

    Returns:
        (batch, heads, 1, value_dim) in the queries' dtype.
    """
    batch, heads, _, head_dim = queries.shape
    kv_heads = keys.shape[1]
    if indices.shape[1] == 1:
        shared = indices.view(batch, 1, -1).expand(-1, kv_heads, -1)
        grouped = queries.view(batch, kv_heads, group_size(queries, keys), head_dim).float() * scaling
        logits = (grouped @ gather_rows(keys, shared).float().transpose(-1, -2)).view(batch, heads, 1, -1)
    else:
        logits = (queries.float() * scaling) @ gather_rows(keys, indices).float().transpose(-1, -2)
    weights = importance_softmax(cap_logits(logits, softcap), inclusion.unsqueeze(2), sinks)
    if indices.shape[1] == 1:
        grouped_weights = weights.view(batch, kv_heads, group_size(queries, keys), -1)
        output = (grouped_weights @ gather_rows(values, shared).float()).view(batch, heads, 1, -1)
    else:
        output = weights @ gather_rows(values, indices).float()
    return output.to(queries.dtype)
