"""What this package's methods keep of a context, read from the masks of a real question."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from experiments.kvpress_agreement.golden import KERNEL, SINKS, WINDOW
from sah.adapters.context_cache import ContextCache
from sah.adapters.huggingface import ModelAdapterHF
from sah.sparse_attention import (
    EfficientAttentionConfig,
    H2OMaskerConfig,
    ResearchAttentionConfig,
    SnapKVMaskerConfig,
    StreamingLLMMaskerConfig,
    TOVAMaskerConfig,
)
from sah.sparse_attention.maskers.evicting import SPARED
from sah.sparse_attention.observe import observation_key

QUESTION = "\nWhat is it about?"
EXECUTIONS = {"research": ResearchAttentionConfig, "efficient": EfficientAttentionConfig}


def masker_config(method: str, keys: int) -> Any:
    """Describe a method that keeps a number of the context's keys before the question's first token.

    That token's own key is kept as well, by every method, and takes one place of a budget.
    """
    if method == "streaming_llm":
        return StreamingLLMMaskerConfig(sink_size=SINKS, window_size=keys + 1 - SINKS)
    if method == "snapkv":
        return SnapKVMaskerConfig(budget=keys + 1, window=WINDOW, kernel=KERNEL)
    if method == "tova":
        return TOVAMaskerConfig(budget=keys + 1)
    recent = keys // 2
    return H2OMaskerConfig(heavy_size=keys - recent, recent=recent + 1)


def method_adapter(dense: ModelAdapterHF, method: str, keys: int, execution: str = "research") -> ModelAdapterHF:
    """Make an adapter that runs a method, sharing the loaded model."""
    return dense.with_sparse_attention(EXECUTIONS[execution](masker_configs=[masker_config(method, keys)]))


def kept(adapter: ModelAdapterHF, cache: ContextCache) -> torch.Tensor:
    """Ask a question and read which of the context's keys its first token is left.

    Args:
        adapter: Of one method.
        cache: The context, prefilled with the adapter among its observers.

    Returns:
        Boolean, (layers, kv_heads, length).

    Raises:
        ValueError: If query heads of one KV head keep other keys, or the token's own key is not kept.
    """
    with noted_masks(adapter.sparse_attention) as masks:
        adapter.answer(cache, QUESTION, max_new_tokens=1)
    first = torch.stack([mask.to_dense()[0, :, 0] > 0 for mask in masks])
    kv_heads = cache.past_key_values.layers[0].keys.shape[1]  # type: ignore[union-attr]
    by_head = first.expand(-1, adapter.model.config.num_attention_heads, -1).unflatten(1, (kv_heads, -1))
    if not torch.equal(by_head.any(2), by_head.all(2)):
        raise ValueError("query heads of one KV head keep other keys")
    by_head = by_head.any(2)
    if not bool(by_head[..., cache.length].all()):
        raise ValueError("the token's own key is not kept")
    return by_head[..., : cache.length]


@contextmanager
def noted_masks(attention: Any) -> Iterator[list[Any]]:
    """Note the mask of every call of an attention."""
    masks: list[Any] = []
    build = attention.build_mask

    def noting(*args: Any, **kwargs: Any) -> Any:
        masks.append(build(*args, **kwargs))
        return masks[-1]

    attention.build_mask = noting
    try:
        yield masks
    finally:
        del attention.build_mask


def scores(adapter: ModelAdapterHF, cache: ContextCache) -> torch.Tensor:
    """Return the scores that a method's keys start with, (layers, kv_heads, length), float32.

    Keys that are kept before all others have no bound.
    """
    masker = adapter.sparse_attention.maskers[0]  # type: ignore[union-attr]
    found = []
    for layer_idx in range(adapter.num_layers):
        observed = cache.context_state[observation_key(masker.observed, layer_idx)]
        found.append(masker.starting_scores(observed[None], None, cache.length)[0])
    whole = torch.stack(found)
    return whole.masked_fill(whole == SPARED, torch.inf)
