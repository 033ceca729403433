"""Attention of several queries a row over a dense mask, by torch's fused kernel. Plain twin: `kernels/masked.py`."""

from __future__ import annotations

import torch

from sah.sparse_attention.kernels.scores import group_size


def fused_attention(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, inclusion: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Attend over a mask with inclusion probabilities. Keys are not repeated; everything is computed in float32.

    Args:
        queries: (batch, heads, q_len, head_dim).
        keys: (batch, kv_heads, kv_len, head_dim).
        values: (batch, kv_heads, kv_len, value_dim).
        inclusion: Broadcastable to (batch, heads, q_len, kv_len): inclusion probability, 0 for keys not kept or not
            allowed.
        scaling: Factor of the dot products.

    Returns:
        (batch, heads, q_len, value_dim) in the queries' dtype; zero in a row that keeps nothing.
    """
    batch, heads, q_len, head_dim = queries.shape
    kv_heads, kv_len = keys.shape[1:3]
    rows = group_size(queries, keys) * q_len
    kept = inclusion > 0
    mask = kept
    if not bool((inclusion == kept).all()):
        # exp(l) / p is exp(l - log p).
        mask = -inclusion.masked_fill(~kept, float("inf")).log()
    output = torch.nn.functional.scaled_dot_product_attention(
        queries.float().reshape(batch, kv_heads, rows, head_dim),
        keys.float(),
        values.float(),
        attn_mask=mask.expand(batch, heads, q_len, kv_len).reshape(batch, kv_heads, rows, kv_len),
        scale=scaling,
    )
    nothing = ~kept.any(dim=-1, keepdim=True)
    return output.view(batch, heads, q_len, -1).masked_fill(nothing, 0.0).to(queries.dtype)
