"""The evicting methods in the plainest form, from the queries and keys of a context: twin of the observers' states.

Nothing here is shared with the package but the model's own calls.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from sah.adapters import attention_switch as switch


@dataclass(frozen=True)
class Seen:
    """What one layer's attention was given for a whole context."""

    queries: torch.Tensor
    """(heads, length, head_dim)."""

    keys: torch.Tensor
    """(kv_heads, length, head_dim)."""

    scaling: float


@torch.no_grad()
def seen_by_layer(model: Any, ids: list[int]) -> list[Seen]:
    """Prefill a context dense and note every layer's queries and keys."""
    notes: list[Seen] = []

    def noting(module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, **kwargs: Any) -> Any:
        notes.append(Seen(query[0], key[0], scaling))
        output = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=True
        )
        return output.transpose(1, 2).contiguous(), None

    with registered(noting) as name, switch.switched(switch.implementations(model), name):
        model(input_ids=torch.tensor([ids]), logits_to_keep=1, use_cache=False)
    return notes


@contextlib.contextmanager
def registered(attention: Any) -> Iterator[str]:
    name = switch.unique_name()
    switch.register_lanes(name, attention)
    try:
        yield name
    finally:
        switch.unregister(name)


def mass(seen: Seen, last: int | None = None) -> torch.Tensor:
    """Sum the softmax weights that the last queries put on every key, (heads, length), one query at a time."""
    heads, length, _ = seen.queries.shape
    group = heads // seen.keys.shape[0]
    total = torch.zeros(heads, length)
    for head in range(heads):
        keys = seen.keys[head // group].float()
        for position in range(0 if last is None else max(0, length - last), length):
            logits = keys[: position + 1] @ seen.queries[head, position].float() * seen.scaling
            total[head, : position + 1] += torch.softmax(logits, -1)
    return total


def by_kv_head(per_head: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """Average the query heads of each KV head, (kv_heads, length)."""
    return per_head.unflatten(0, (kv_heads, -1)).mean(1)


def snapkv_scores(seen: Seen, window: int, kernel: int) -> torch.Tensor:
    """Score keys as SnapKV does, (kv_heads, length); those of the window have no bound."""
    kv_heads, length, _ = seen.keys.shape
    scores = torch.full((kv_heads, length), torch.inf)
    before = max(0, length - window)
    means = by_kv_head(mass(seen, window), kv_heads)[:, :before] / window
    for key in range(before):
        first = key - kernel // 2
        around = means[:, max(0, first) : first + kernel]
        scores[:, key] = around.sum(-1) / kernel
    return scores


def tova_scores(seen: Seen) -> torch.Tensor:
    """Score keys as TOVA does, (kv_heads, length), the same for all heads; the last key has no bound."""
    scores = mass(seen, 1).mean(0)
    scores[-1] = torch.inf
    return scores.expand(seen.keys.shape[0], -1)


def h2o_scores(seen: Seen) -> torch.Tensor:
    """Sum the attention that every key has got, (kv_heads, length)."""
    return by_kv_head(mass(seen), seen.keys.shape[0])


def largest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Return the keys with the largest scores in their order, (..., count); of equal ones the later first."""
    length = scores.shape[-1]
    order = scores.flip(-1).sort(dim=-1, descending=True, stable=True).indices
    return (length - 1 - order[..., :count]).sort(-1).values
