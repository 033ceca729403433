"""Registers a sparse attention with transformers and switches a loaded model to it and back.

transformers looks up `config._attn_implementation` at every forward, so setting that name is the whole switch: no
mode is stored anywhere, and restoring the names restores the model.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from sah.adapters.finite import FINITE_KEY, FiniteWatch
from sah.sparse_attention.allowed import allowed_keys
from sah.sparse_attention.base import SparseAttention
from sah.sparse_attention.kernels.masked import masked_attention

META_DATA_KEY = "sparse_meta_data"
_counter = itertools.count()


def unique_name() -> str:
    """Make a registry name that no other adapter of this process has."""
    return f"sah_sparse_attention_{next(_counter)}"


def register(name: str, attention: Callable[..., Any]) -> None:
    """Register an attention function and its mask function under one name."""
    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, _boolean_mask)


def register_lanes(name: str, attention: Callable[..., Any]) -> None:
    """Register an attention function that knows by itself which keys its rows may read: it is given no mask."""
    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, _no_mask)


def _no_mask(**kwargs: Any) -> None:
    return None


def unregister(name: str) -> None:
    """Remove both entries of a name; harmless where there are none.

    `del` on the interfaces only looks at local overrides and would leave the entry, so the mapping itself is used.
    """
    AttentionInterface._global_mapping.pop(name, None)
    AttentionMaskInterface._global_mapping.pop(name, None)


def _boolean_mask(*, q_length: int, **kwargs: Any) -> torch.Tensor | None:
    # Leaving the mask out for a whole chunk means "causal from the upper left" to SDPA; for one query it means that
    # every key is allowed, which is the only case in which our attention can read None without doubt.
    kwargs["allow_is_causal_skip"] = kwargs.get("allow_is_causal_skip", True) and q_length == 1
    return sdpa_mask(q_length=q_length, **kwargs)


def implementations(model: torch.nn.Module) -> list[tuple[Any, str]]:
    """List the attention implementation of every distinct config in a model's text decoder, parents first.

    A vision tower beside the decoder has a config of its own and keeps its attention.
    """
    seen: dict[int, tuple[Any, str]] = {}
    find_decoder = getattr(model, "get_decoder", None)
    decoder = find_decoder() if callable(find_decoder) else None
    for module in (model if decoder is None else decoder).modules():
        config: Any = getattr(module, "config", None)
        if hasattr(config, "_attn_implementation"):
            seen.setdefault(id(config), (config, config._attn_implementation))
    return list(seen.values())


@contextmanager
def switched(loaded: list[tuple[Any, str]], name: str | Sequence[str] | None) -> Iterator[None]:
    """Run with another attention implementation; on exit each config gets back exactly what it had on entry.

    Args:
        loaded: Configs with the implementation they were loaded with.
        name: The implementation for all of them, one for each, or None for the loaded ones.

    Yields:
        Nothing.
    """
    previous = [config._attn_implementation for config, _ in loaded]
    if name is None:
        name = [original for _, original in loaded]
    chosen = [name] * len(loaded) if isinstance(name, str) else name
    try:
        for (config, _), own in zip(loaded, chosen, strict=True):
            _assign(config, own)
        yield
    finally:
        for (config, _), before in zip(loaded, previous, strict=True):
            _assign(config, before)


def _assign(config: Any, name: str) -> None:
    # A plain string would be copied into every sub-config (a vision tower's, say); the key "" means this one alone.
    config._attn_implementation = {"": name}


def is_full_attention(module: torch.nn.Module, layer_idx: int, kwargs: dict[str, Any]) -> bool:
    """Tell whether a layer attends to the whole sequence.

    Args:
        module: The attention module.
        layer_idx: Its layer.
        kwargs: What the model passed to the attention function.

    Returns:
        False for sliding-window and chunked layers. A window that is no shorter than the longest sequence the model
        allows never cuts anything and counts as full.
    """
    config = getattr(module, "config", None)
    layer_types = getattr(config, "layer_types", None)
    if layer_types is not None and layer_idx < len(layer_types) and layer_types[layer_idx] == "chunked_attention":
        return False
    window = kwargs.get("sliding_window")
    return window is None or window >= getattr(config, "max_position_embeddings", float("inf"))


def attention_function(sparse_attention: SparseAttention) -> Callable[..., Any]:
    """Wrap a sparse attention in the signature of transformers' attention functions.

    Layers that do not attend to the whole sequence keep the window that the model gives them.

    Args:
        sparse_attention: The attention; nothing else is referred to, so an adapter can be collected.

    Returns:
        `(module, query, key, value, attention_mask, scaling, dropout, **kwargs) -> (output, weights)` with query
        (batch, heads, q_len, head_dim) and output (batch, q_len, heads, head_dim). It raises ValueError if the model
        was called without `sparse_meta_data`.
    """

    def sah_attention(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if kwargs.get(META_DATA_KEY) is None:
            raise ValueError(
                "Sparse attention keeps its state in sparse_meta_data, which this model call lacks. "
                "Pass a dict, new for each question: model(..., sparse_meta_data={})"
            )
        sparse_meta_data = kwargs.pop(META_DATA_KEY)
        # Asked for in the call, or once for all in the model's config, which the call then does not repeat.
        if kwargs.get("output_attentions") is None:
            kwargs["output_attentions"] = getattr(getattr(module, "config", None), "output_attentions", False)
        layer_idx = int(kwargs.pop("layer_idx", getattr(module, "layer_idx", -1)))
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        if not is_full_attention(module, layer_idx, kwargs):
            windowed, weights = masked_attention(
                query,
                key,
                value,
                allowed_keys(attention_mask, query, key).float(),
                scaling,
                dropout=dropout,
                sinks=kwargs.get("s_aux"),
                softcap=kwargs.get("softcap"),
            )
            return windowed.transpose(1, 2).contiguous(), weights
        output, its_weights = sparse_attention.custom_attention(
            module, query, key, value, attention_mask, scaling, dropout, sparse_meta_data, layer_idx=layer_idx, **kwargs
        )
        watch = sparse_meta_data.get(FINITE_KEY)
        if isinstance(watch, FiniteWatch):
            watch.see(layer_idx, query[0].transpose(0, 1), output[0])
        return output, its_weights

    return sah_attention
