"""Attention over a mask with inclusion probabilities, in its plain form."""

from __future__ import annotations

import torch

from sah.sparse_attention.kernels.scores import attention_logits, group_size


def importance_softmax(
    logits: torch.Tensor, inclusion: torch.Tensor, sinks: torch.Tensor | None = None
) -> torch.Tensor:
    """Softmax over the kept keys, each exponential divided by the key's inclusion probability.

    This is the self-normalised importance estimate of softmax attention. The running maximum is taken over kept keys
    (and the model's sink logit) alone, so that a key that is not read cannot move it.

    Args:
        logits: (batch, heads, q_len, n), float32.
        inclusion: Broadcastable to logits: the probability with which a key was kept, 0 for a key that is not.
        sinks: Learned logit of each head that joins the denominator only (GPT-OSS), (heads,), or None.

    Returns:
        Weights (batch, heads, q_len, n), float32; all zero in a row that keeps nothing.
    """
    kept = inclusion > 0
    logits = logits.masked_fill(~kept, float("-inf"))
    maximum = logits.amax(dim=-1, keepdim=True)
    sink = None
    if sinks is not None:
        sink = sinks.float().view(1, -1, 1, 1).expand(*logits.shape[:-1], 1)
        maximum = torch.maximum(maximum, sink)
    maximum = maximum.detach().masked_fill(maximum == float("-inf"), 0.0)
    exponentials = torch.exp(logits - maximum) / inclusion.masked_fill(~kept, 1.0)
    denominator = exponentials.sum(dim=-1, keepdim=True)
    if sink is not None:
        denominator = denominator + torch.exp(sink - maximum)
    return exponentials / denominator.masked_fill(denominator == 0, 1.0)


def masked_attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    inclusion: torch.Tensor,
    scaling: float,
    *,
    dropout: float = 0.0,
    sinks: torch.Tensor | None = None,
    softcap: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over a dense mask: every logit is computed, those that are not kept weigh nothing.

    Args:
        queries: (batch, heads, q_len, head_dim).
        keys: (batch, kv_heads, kv_len, head_dim).
        values: (batch, kv_heads, kv_len, value_dim).
        inclusion: Broadcastable to (batch, heads, q_len, kv_len): inclusion probability, 0 for keys not kept or not
            allowed.
        scaling: Factor of the dot products.
        dropout: Share of weights dropped (training only).
        sinks: Learned sink logit of each head, (heads,), or None.
        softcap: The model's cap on its logits, or None.

    Returns:
        Output (batch, heads, q_len, value_dim) in the queries' dtype; weights (batch, heads, q_len, kv_len), float32.
    """
    weights = importance_softmax(attention_logits(queries, keys, scaling, softcap), inclusion, sinks)
    if dropout > 0:
        weights = torch.nn.functional.dropout(weights, p=dropout)
    batch, heads, q_len, kv_len = weights.shape
    grouped = weights.view(batch, keys.shape[1], group_size(queries, keys) * q_len, kv_len)
    output = (grouped @ values.float()).view(batch, heads, q_len, values.shape[-1])
    return output.to(queries.dtype), weights
