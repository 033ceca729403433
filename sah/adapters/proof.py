"""Proof that sparse attention ran: its calls are counted layer by layer and compared with the model calls made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sah.adapters.kv_cache import kv_shape
from sah.errors import ModelError
from sah.sparse_attention.config import DECODE, QUESTION, MaskedAttentionConfig

if TYPE_CHECKING:
    from sah.adapters.huggingface import ModelAdapterHF


def layers_to_run_sparse(adapter: ModelAdapterHF) -> tuple[int, ...]:
    """List the layers that attend to the whole sequence and are none of `dense_layers`."""
    config = adapter.sparse_attention_config
    dense = config.dense_layer_set if isinstance(config, MaskedAttentionConfig) else ()
    return tuple(layer for layer in kv_shape(adapter.model).layers if layer not in dense)


def check_calls(adapter: ModelAdapterHF, calls: Mapping[str, Mapping[int, int]], decode_steps: int) -> None:
    """Check that every layer that should run sparse did so in every model call of the sparse phases.

    Args:
        adapter: A sparse adapter.
        calls: Phase to layer to calls of the sparse attention.
        decode_steps: Model calls of the decode phase; the question is one.

    Raises:
        ModelError: If a layer ran dense instead, or none ran sparse. An answer of a single token whose question ran
            dense, as `phases=[decode]` says, has no sparse call and is none of these.
    """
    phases = adapter.sparse_phases
    expected = {QUESTION: int(QUESTION in phases), DECODE: decode_steps if DECODE in phases else 0}
    if not any(expected.values()):
        return
    check_any_call(adapter, sum(len(layers) for layers in calls.values()))
    for phase, wanted in expected.items():
        found = calls.get(phase, {})
        lacking = [layer for layer in layers_to_run_sparse(adapter) if found.get(layer, 0) != wanted]
        if lacking:
            counts = ", ".join(f"layer {layer}: {found.get(layer, 0)}" for layer in lacking[:5])
            raise ModelError(
                f"In the phase {phase!r} the model {adapter.model_name!r} was called {wanted} times, but "
                f"{len(lacking)} layers that should run sparse called the sparse attention another number of times "
                f"({counts}). They ran dense there, so the answer is not that of the recipe. Name layers that are to "
                "stay dense in dense_layers."
            )


def check_any_call(adapter: ModelAdapterHF, calls: int) -> None:
    """Check that the sparse attention was called at all.

    Raises:
        ModelError: If it was not.
    """
    if not calls:
        raise ModelError(
            f"The model {adapter.model_name!r} ran without calling the sparse attention once: it has no "
            "full-attention layer outside dense_layers, or its code does not use transformers' attention "
            "interface. Its answers would be dense ones."
        )
