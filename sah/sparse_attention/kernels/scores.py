"""Attention logits over keys that are never repeated for the query heads of a group."""

from __future__ import annotations

import torch

from sah.sparse_attention.shared import SharedStates, States

WIDE, FEW = 64, 16
"""From which width, and up to how many rows, the many rows should come first in a product."""

BLOCK_NUMBERS = 1 << 20
"""Entries of keys that are converted to float32 at once: they stay in the processor's cache."""


def group_size(queries: torch.Tensor, keys: States) -> int:
    """Return how many query heads share one KV head.

    Args:
        queries: (batch, heads, q_len, head_dim).
        keys: (batch, kv_heads, kv_len, head_dim).

    Returns:
        heads / kv_heads.

    Raises:
        ValueError: If heads is no multiple of kv_heads.
    """
    heads, kv_heads = queries.shape[1], keys.shape[1]
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads are no multiple of {kv_heads} KV heads")
    return heads // kv_heads


def attention_logits(queries: torch.Tensor, keys: States, scaling: float, softcap: float | None = None) -> torch.Tensor:
    """Compute scaled dot products in float32, one matrix product a KV head.

    Rows that share a context share its product, too.

    Args:
        queries: (batch, heads, q_len, head_dim).
        keys: (batch, kv_heads, kv_len, head_dim).
        scaling: Factor of the dot products.
        softcap: Where the model caps its logits (Gemma-2): the result is `softcap * tanh(logits / softcap)`.

    Returns:
        Logits (batch, heads, q_len, kv_len), float32.
    """
    if isinstance(keys, SharedStates):
        return cap_logits(_of_shared(queries, keys, scaling), softcap)
    batch, heads, q_len, head_dim = queries.shape
    kv_heads, kv_len = keys.shape[1], keys.shape[2]
    grouped = queries.reshape(batch, kv_heads, group_size(queries, keys) * q_len, head_dim).float() * scaling
    if keys.dtype == torch.float32:
        logits = few_by_many(grouped, keys)
    else:
        logits = _in_blocks(grouped, keys)
    return cap_logits(logits.view(batch, heads, q_len, kv_len), softcap)


def few_by_many(few: torch.Tensor, many: torch.Tensor) -> torch.Tensor:
    """Multiply a few rows with many: few @ many.mT, in the order of operands that is faster on a CPU.

    Args:
        few: (..., m, dim), float32.
        many: (..., n, dim), float32.

    Returns:
        (..., m, n), contiguous.
    """
    if few.shape[-1] < WIDE or few.shape[-2] > FEW:
        return few @ many.mT
    return (many @ few.mT).mT.contiguous()


def cap_logits(logits: torch.Tensor, softcap: float | None) -> torch.Tensor:
    """Apply a model's soft cap to its logits; None leaves them as they are."""
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def _of_shared(queries: torch.Tensor, keys: SharedStates, scaling: float) -> torch.Tensor:
    """Return logits (rows, heads, 1, kv_len) of one query a row."""
    rows, heads, _, head_dim = queries.shape
    kv_heads, length = keys.context.shape[1:3]
    group = heads // kv_heads
    grouped = queries.reshape(rows, kv_heads, group, head_dim).float() * scaling
    logits = torch.empty(rows, kv_heads, group, keys.shape[2], device=queries.device)
    together = grouped.transpose(0, 1).flatten(1, 2)
    if keys.dtype == torch.float32:
        over_context = few_by_many(together, keys.context[0])
    else:
        over_context = _in_blocks(together[None], keys.context)[0]
    logits[..., :length] = over_context.view(kv_heads, rows, group, length).transpose(0, 1)
    if keys.used:
        logits[..., length:] = grouped @ keys.own_rows().float().mT
    return logits.view(rows, heads, 1, -1)


def _in_blocks(grouped: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Multiply float32 queries with keys of another type, of which no whole float32 copy is made."""
    batch, kv_heads, kv_len, head_dim = keys.shape
    step = max(64, BLOCK_NUMBERS // (batch * kv_heads * head_dim))
    block = torch.empty(batch, kv_heads, min(step, kv_len), head_dim, device=keys.device)
    logits = torch.empty(*grouped.shape[:3], kv_len, device=keys.device)
    for start in range(0, kv_len, step):
        part = keys[:, :, start : start + step]
        converted = block[:, :, : part.shape[2]].copy_(part)
        logits[..., start : start + step] = few_by_many(grouped, converted)
    return logits
