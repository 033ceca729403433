"""Runs tokens dense, or sparse by a prefill pattern, and lets methods see the queries and keys on the way.

What a model computes is what its own attention gives, also while somebody looks on; a pattern takes its place in the
layers that attend to the whole sequence.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sah.adapters import attention_switch as switch
from sah.adapters.kv_cache import cut_back, holds_everything, new_cache
from sah.errors import ConfigError, ModelError
from sah.sparse_attention.evicting_rows import mass_of_call
from sah.sparse_attention.observe import observation_key, observe_context, question_key
from sah.sparse_attention.prefill.base import PrefillPattern
from sah.sparse_attention.times import now

if TYPE_CHECKING:
    from sah.adapters.context_cache import ContextCache
    from sah.adapters.huggingface import ModelAdapterHF
    from sah.sparse_attention.base import SparseAttention

See = Callable[[int, torch.Tensor, torch.Tensor, float, dict[str, Any]], None]
"""Is shown a layer, queries (batch, heads, q_len, head_dim), keys (batch, kv_heads, kv_len, head_dim), the scaling, and
what else the model passed to its attention."""


@dataclass
class PrefillRecord:
    """What was measured of a prefill."""

    densities: dict[int, float] = field(default_factory=dict)
    """Share of the allowed keys that each sparse layer read."""

    seeing_seconds: float = 0.0
    """Wall seconds spent on showing queries and keys."""

    seeing_cpu_seconds: float = 0.0

    @property
    def density(self) -> float:
        """Mean over the layers that attend to the whole sequence; 1.0 for a dense prefill."""
        return sum(self.densities.values()) / len(self.densities) if self.densities else 1.0


@contextmanager
def watched(
    loaded: list[tuple[Any, str]],
    see: See | None,
    pattern: PrefillPattern | None = None,
    record: PrefillRecord | None = None,
) -> Iterator[None]:
    """Run the model with the attention it was loaded with, or a pattern, and show every full layer's call.

    Args:
        loaded: Configs with the implementation they were loaded with.
        see: Is shown the calls; None for nobody.
        pattern: Takes the place of the model's own attention where that attends to the whole sequence; None for none.
        record: Takes what is measured.

    Yields:
        Nothing.
    """
    if see is None and pattern is None:
        with switch.switched(loaded, None):
            yield
        return
    record = record or PrefillRecord()
    names = [switch.unique_name() for _ in loaded]
    try:
        for name, (_, original) in zip(names, loaded, strict=True):
            AttentionInterface.register(name, _function(original, see, pattern, record))
            AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[original])
        with switch.switched(loaded, names):
            yield
    finally:
        for name in names:
            switch.unregister(name)


def _function(
    original: str, see: See | None, pattern: PrefillPattern | None, record: PrefillRecord
) -> Callable[..., tuple[torch.Tensor, torch.Tensor | None]]:
    def attention(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        layer_idx = int(kwargs.get("layer_idx", getattr(module, "layer_idx", -1)))
        factor = query.shape[-1] ** -0.5 if scaling is None else scaling
        full = switch.is_full_attention(module, layer_idx, kwargs)
        if full and see is not None:
            begun = now(query.device)
            see(layer_idx, query, key, factor, kwargs)
            ended = now(query.device)
            record.seeing_seconds += ended[0] - begun[0]
            record.seeing_cpu_seconds += ended[1] - begun[1]
        if full and pattern is not None:
            sinks, softcap = kwargs.get("s_aux"), kwargs.get("softcap")
            output, density = pattern.attend(query, key, value, factor, sinks=sinks, softcap=softcap)
            record.densities[layer_idx] = density
            return output.transpose(1, 2).contiguous(), None
        own = _own_attention(original, module)
        found: tuple[torch.Tensor, torch.Tensor | None] = own(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return found

    return attention


def _own_attention(original: str, module: torch.nn.Module) -> Callable[..., Any]:
    """Find the attention function that a module uses under the name of an implementation."""
    if original in ALL_ATTENTION_FUNCTIONS:
        found: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS[original]
        return found
    # Eager attention stands in no registry: each model's module has its own.
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if eager is None:
        raise ModelError(
            f"The attention {original!r} of {type(module).__name__} cannot be called from outside. Write "
            "+model.model_kwargs.attn_implementation=sdpa"
        )
    return eager  # type: ignore[no-any-return]


@torch.no_grad()
def run_context(
    adapter: ModelAdapterHF,
    ids: list[int],
    past: Any,
    *,
    pattern: PrefillPattern | None = None,
    observers: Iterable[SparseAttention | None] = (),
    context_state: MutableMapping[Any, Any] | None = None,
) -> PrefillRecord:
    """Run a context's tokens through the model, and let methods see what they want.

    Args:
        adapter: The model, in whatever mode; it is in the same one afterwards.
        ids: The tokens.
        past: An empty cache, which holds the context afterwards.
        pattern: Of a sparse prefill; None for the model's own attention.
        observers: The methods.
        context_state: Takes what they see; not needed without observers.

    Returns:
        What was measured.

    Raises:
        ConfigError: If a method wants all attention of a prefill that is sparse.
        ModelError: If no layer used the pattern.
    """
    methods = [method for method in observers if method is not None]
    layers = range(adapter.num_layers)
    wanted = {n: frozenset().union(*(method.observed(n) for method in methods)) for n in layers} if methods else {}
    if pattern is not None and any(None in of_layer for of_layer in wanted.values()):
        maskers = [masker for method in methods for masker in getattr(method, "maskers", ())]
        asking = sorted({masker.config.name for masker in maskers if getattr(masker, "observed", 0) is None})
        raise ConfigError(
            f"prefill={pattern.config.name} leaves attention out, and {', '.join(asking)} sums up all attention of the "
            "prefill. Allowed: prefill=dense, or snapkv or tova, which look at the last queries alone"
        )
    state = {} if context_state is None else context_state

    def see(layer_idx: int, queries: torch.Tensor, keys: torch.Tensor, scaling: float, special: dict[str, Any]) -> None:
        observe_context(state, wanted[layer_idx], layer_idx, queries, keys, scaling, special)

    record = PrefillRecord()
    device = adapter.model.get_input_embeddings().weight.device
    anything = any(wanted.values())
    with watched(adapter.loaded, see if anything else None, pattern, record):
        adapter.model(
            input_ids=torch.tensor([ids], device=device),
            position_ids=torch.arange(len(ids), device=device)[None],
            past_key_values=past,
            use_cache=True,
            logits_to_keep=1,
        )
    cut_back(past, len(ids))
    if pattern is not None and not record.densities:
        raise ModelError(
            f"prefill={pattern.config.name} was asked for, but no layer of {adapter.model_name!r} that attends to the "
            "whole sequence called it: the context ran dense. Write prefill=dense"
        )
    return record


def observe_again(adapters: Sequence[ModelAdapterHF], cache: ContextCache) -> None:
    """Run a context a second time where its state lacks something that adapters' methods must see of the prefill.

    So it is with a context that comes from a file, or was prefilled for other methods. It runs once for all of them,
    and its time counts as theirs.

    Args:
        adapters: Adapters of one model.
        cache: The context; only what was seen of it is written to.

    Raises:
        ConfigError: If a method wants all attention of a prefill that was sparse.
    """
    methods = [adapter.sparse_attention for adapter in adapters if adapter.sparse_attention is not None]
    lacking = [
        layer_idx
        for layer_idx, layer in enumerate(cache.past_key_values.layers)
        if methods
        and holds_everything(layer, adapters[0].window)
        and any(
            observation_key(last, layer_idx) not in cache.context_state
            for method in methods
            for last in method.observed(layer_idx)
        )
    ]
    if lacking:
        adapter = adapters[0]
        begun = now(adapter.model.device)[0]
        pattern = None if cache.prefill is None else PrefillPattern.create_from_config(cache.prefill)
        past = new_cache(adapter.model.config)
        state = cache.context_state
        run_context(adapter, cache.prompt.ids, past, pattern=pattern, observers=methods, context_state=state)
        cache.seeing_seconds += now(adapter.model.device)[0] - begun


def seen_for(adapter: ModelAdapterHF, cache: ContextCache) -> float:
    """Let an adapter's method have seen what it must of a context's prefill.

    Args:
        adapter: The adapter.
        cache: The context.

    Returns:
        Wall seconds that seeing took, or running the context a second time for it: for the first method that asks, of
        all that share it.
    """
    observe_again([adapter], cache)
    method = adapter.sparse_attention
    if method is None or not any(method.observed(layer) for layer in range(adapter.num_layers)):
        return 0.0
    seconds, cache.seeing_seconds = cache.seeing_seconds, 0.0
    return seconds


def dense_question(adapter: ModelAdapterHF, sparse_meta_data: dict[Any, Any]) -> AbstractContextManager[None]:
    """Run a question dense inside the `with` block, and let the adapter's method see what it wants of it.

    Args:
        adapter: The adapter.
        sparse_meta_data: Of the question; takes what is seen.

    Returns:
        The context manager.
    """
    method = adapter.sparse_attention
    if method is None or not any(method.observed(layer, question=True) for layer in range(adapter.num_layers)):
        return adapter.enable_dense_mode()

    def see(layer_idx: int, queries: torch.Tensor, keys: torch.Tensor, scaling: float, special: dict[str, Any]) -> None:
        for last in method.observed(layer_idx, question=True):
            mass = mass_of_call(queries, keys, scaling, last, special)
            sparse_meta_data.setdefault(layer_idx, {})[question_key(last)] = mass

    return watched(adapter.loaded, see)
