"""What evicting methods see of tokens that run dense: how much attention each key is paid.

An observation is the softmax mass that the last `last` queries of a stretch put on every key, summed over those
queries, mean over the query heads of a KV head. It is taken from the queries and keys beside the model's own attention,
whose output it does not touch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any

import torch

from sah.sparse_attention.kernels.scores import attention_logits, group_size

BLOCK_NUMBERS = 1 << 22
"""Attention weights held at once."""

Last = int | None
"""How many of the last queries are observed; None means all of them."""


def observation_key(last: Last, layer_idx: int) -> tuple[str, Last, int]:
    """Name an observation of a context in its `context_state`."""
    return ("attention_mass", last, layer_idx)


def question_key(last: Last) -> tuple[str, Last]:
    """Name an observation of a question that ran dense in `sparse_meta_data[layer_idx]`."""
    return ("question_mass", last)


@torch.no_grad()
def attention_mass(
    queries: torch.Tensor,
    keys: torch.Tensor,
    scaling: float,
    last: Last = None,
    *,
    allowed: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Sum what queries put on each key under full causal attention.

    Args:
        queries: (1, heads, q_len, head_dim), standing at the last keys.
        keys: (1, kv_heads, kv_len, head_dim).
        scaling: Factor of the dot products.
        last: How many of the last queries count; None for all. More than there are mean all.
        allowed: Boolean, broadcastable to (1, heads, q_len, kv_len); None for plain causality.
        sinks: Learned sink logit of each head, (heads,), or None; it takes its share of the mass.
        softcap: The model's cap on its logits, or None.

    Returns:
        (kv_heads, kv_len), float32, mean over the query heads of each KV head. All together sum to the queries that
        count.
    """
    heads, q_len = queries.shape[1:3]
    kv_heads, kv_len = keys.shape[1:3]
    total = torch.zeros(kv_heads, kv_len, device=keys.device)
    step = max(1, BLOCK_NUMBERS // max(1, heads * kv_len))
    for start in range(0 if last is None else max(0, q_len - last), q_len, step):
        stop = min(start + step, q_len)
        readable = kv_len - q_len + stop
        logits = attention_logits(queries[:, :, start:stop], keys[:, :, :readable], scaling, softcap)
        if allowed is None:
            rows = torch.arange(readable - stop + start, readable, device=keys.device)
            hidden = torch.arange(readable, device=keys.device) > rows[:, None]
        else:
            hidden = ~allowed[..., start:stop, :readable]
        logits = logits.masked_fill_(hidden, float("-inf"))
        if sinks is not None:
            column = sinks.float().view(1, heads, 1, 1).expand(1, heads, stop - start, 1)
            logits = torch.cat([logits, column], dim=-1)
        # A padded query reads nothing, and its softmax is undefined.
        weights = torch.softmax(logits, dim=-1).nan_to_num(0.0)[..., :readable].sum(2)
        total[:, :readable] += weights.view(kv_heads, group_size(queries, keys), readable).mean(1)
    return total


def observe_context(
    context_state: MutableMapping[Any, Any],
    wanted: Iterable[Last],
    layer_idx: int,
    queries: torch.Tensor,
    keys: torch.Tensor,
    scaling: float,
    special: Mapping[str, Any],
) -> None:
    """Keep what a layer's maskers want to see of a context's prefill; what is there already stays.

    Args:
        context_state: Of the context cache; written to.
        wanted: Observations wanted.
        layer_idx: The layer.
        queries: The context's queries, (1, heads, length, head_dim).
        keys: The context's keys, (1, kv_heads, length, head_dim).
        scaling: Factor of the dot products.
        special: What the model passed to its attention; `s_aux` and `softcap` are read.
    """
    for last in wanted:
        name = observation_key(last, layer_idx)
        if name not in context_state:
            context_state[name] = attention_mass(
                queries, keys, scaling, last, sinks=special.get("s_aux"), softcap=special.get("softcap")
            )
