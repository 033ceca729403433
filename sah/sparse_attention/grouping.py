"""One set of keys for all query heads of a KV head."""

from __future__ import annotations

import torch

from sah.sparse_attention.mask import Mask


def combine_heads(scores: torch.Tensor, kv_heads: int, how: str, allowed: torch.Tensor | None = None) -> torch.Tensor:
    """Combine the scores of the query heads of each KV head.

    Args:
        scores: (batch, heads, q_len, n).
        kv_heads: Number of KV heads.
        how: `mean`, `max`, or `softmax_mean`: the mean of each head's softmax over its allowed scores.
        allowed: Boolean, broadcastable to scores; read by the softmax. None allows all.

    Returns:
        (batch, kv_heads, q_len, n).
    """
    if how == "softmax_mean":
        if allowed is not None:
            scores = scores.masked_fill(~allowed, float("-inf"))
        # A padded query allows nothing; its softmax is undefined.
        scores = torch.softmax(scores, dim=-1).nan_to_num(0.0)
    batch, heads, q_len, length = scores.shape
    grouped = scores.view(batch, kv_heads, heads // kv_heads, q_len, length)
    return grouped.amax(2) if how == "max" else grouped.mean(2)


def any_of_group(tensor: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """Reduce what is given for each query head to its KV head: any for booleans, the largest for numbers.

    Args:
        tensor: (batch, heads or kv_heads or 1, ...).
        kv_heads: Number of KV heads.

    Returns:
        (batch, kv_heads or 1, ...).
    """
    if tensor.shape[1] in (1, kv_heads):
        return tensor
    return tensor.reshape(tensor.shape[0], kv_heads, -1, *tensor.shape[2:]).amax(2)


def keeps_by_group(mask: Mask, kv_heads: int) -> bool:
    """Tell whether a mask, by its form, keeps the same keys for all query heads of each KV head."""
    if not mask.has_indices:
        return mask.is_full or mask.to_dense().shape[1] == 1
    return all(part.indices.shape[1] in (1, kv_heads) for part in mask.lists)
