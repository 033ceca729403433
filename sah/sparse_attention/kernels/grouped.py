"""Dense attention of one query a row with its heads grouped by KV head: the honest dense baseline."""

from __future__ import annotations

import torch

from sah.sparse_attention.kernels.scores import group_size


def grouped_attention(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, allowed: torch.Tensor | None, scaling: float
) -> torch.Tensor:
    """Attend to every allowed key. The query heads of a KV head stand as queries of one head, so keys are not repeated.

    Args:
        queries: (batch, heads, 1, head_dim).
        keys: (batch, kv_heads, kv_len, head_dim).
        values: (batch, kv_heads, kv_len, value_dim).
        allowed: Boolean, (batch or 1, 1, 1, kv_len); None allows all.
        scaling: Factor of the dot products.

    Returns:
        (batch, heads, 1, value_dim) in the queries' dtype.
    """
    batch, heads, _, head_dim = queries.shape
    grouped = queries.view(batch, keys.shape[1], group_size(queries, keys), head_dim)
    output = torch.nn.functional.scaled_dot_product_attention(grouped, keys, values, attn_mask=allowed, scale=scaling)
    return output.view(batch, heads, 1, -1)
