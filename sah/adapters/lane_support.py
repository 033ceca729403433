"""Whether a model's rows may stand side by side in one sequence.

That is so if nothing but attention mixes tokens and every token's position is its own. Convolutions, recurrent layers
and the like break it; a probe finds out on the model itself, once.
"""

from __future__ import annotations

import logging
import weakref
from typing import TYPE_CHECKING, Any

import torch

from sah.adapters.context_cache import ContextCache
from sah.adapters.finite import usable
from sah.adapters.kv_cache import cut_back, new_cache
from sah.adapters.lane_cache import can_hold
from sah.adapters.lane_model import LaneModel
from sah.adapters.lane_rows import LaneSetting
from sah.sparse_attention.config import QUESTION
from sah.sparse_attention.lanes import LaneSeconds

if TYPE_CHECKING:
    from sah.adapters.huggingface import ModelAdapterHF

_log = logging.getLogger(__name__)
_found: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()

PROBE_CONTEXT, PROBE_LANES = 6, (2, 3)
"""Tokens of the probe's context, and of its two lanes."""


def lanes_supported(adapter: ModelAdapterHF, cache: ContextCache) -> bool:
    """Tell whether a model's lanes can be decoded together; says so once in the log where they cannot.

    Args:
        adapter: An adapter of the model.
        cache: A context that it prefilled.

    Returns:
        Whether they can.
    """
    if not can_hold(cache.past_key_values, adapter.num_layers):
        reason: str | None = "its cache has layers of another kind than full and sliding-window attention"
    elif adapter.model in _found:
        return bool(_found[adapter.model])
    else:
        reason = _probe(adapter)
    if reason is not None and adapter.model not in _found:
        _log.warning("Answers of %s are decoded one by one: %s.", adapter.model_name, reason)
    _found[adapter.model] = reason is None
    return reason is None


def rope_agrees(adapter: ModelAdapterHF, length: int, more: int) -> bool:
    """Tell whether a lane's rotary frequencies are the same whatever runs beside it.

    Models with two sets of frequencies choose one by the longest position of a call (Phi's longrope): lanes on both
    sides of the border must not share one.

    Args:
        adapter: An adapter of the model.
        length: Tokens of the context.
        more: Most tokens behind it.

    Returns:
        Whether the lane stays on one side of the border.
    """
    config = adapter.model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kinds = [rope, *(part for part in rope.values() if isinstance(part, dict))]
    if not any(kind.get("rope_type", kind.get("type")) in ("longrope", "dynamic") for kind in kinds):
        return True
    borders = [kind.get("original_max_position_embeddings") for kind in kinds]
    borders.append(getattr(config, "original_max_position_embeddings", None))
    border = next((b for b in borders if b), config.max_position_embeddings)
    return bool(length >= border or length + more <= border)


def _probe(adapter: ModelAdapterHF) -> str | None:
    """Compare two lanes together with each alone; returns what is wrong, or None."""
    vocabulary = adapter.model.get_input_embeddings().weight.shape[0]
    ids = [(7 * place + 3) % vocabulary for place in range(PROBE_CONTEXT + sum(PROBE_LANES))]
    context, rest = ids[:PROBE_CONTEXT], ids[PROBE_CONTEXT:]
    lanes = [rest[: PROBE_LANES[0]], rest[PROBE_LANES[0] :]]
    try:
        past = new_cache(adapter.model.config)
        _run(adapter, context, 0, past)
        cut_back(past, PROBE_CONTEXT)
        setting = LaneSetting(0, len(lanes), None, None, LaneSeconds(len(lanes)))
        model = LaneModel(adapter, past, PROBE_CONTEXT, [setting], max(PROBE_LANES))
        together = model.run(QUESTION, [0, 1], lanes, [0, 0], dense=set()).logits
        for lane, own in enumerate(lanes):
            expected = _run(adapter, own, PROBE_CONTEXT, past)
            cut_back(past, PROBE_CONTEXT)
            if not bool(usable(expected[None])):
                return None  # the model is at fault, and a batch says where
            # Of the logits' own spread rounding takes at most 0.05 in bfloat16, rows that mix 0.2 and more.
            apart = float((together[lane].float() - expected.float()).square().mean().sqrt())
            allowed = 2 * torch.finfo(expected.dtype).eps ** 0.5 * float(expected.float().std())
            if not apart <= allowed:
                return f"two of them together give other logits than each alone (by {apart:.2g})"
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
        return f"a first try failed ({type(error).__name__}: {error})"
    return None


@torch.no_grad()
def _run(adapter: ModelAdapterHF, ids: list[int], start: int, past: Any) -> torch.Tensor:
    device = adapter.model.get_input_embeddings().weight.device
    with adapter.enable_dense_mode():
        logits = adapter.model(
            input_ids=torch.tensor([ids], device=device),
            position_ids=torch.arange(start, start + len(ids), device=device)[None],
            past_key_values=past,
            use_cache=True,
            logits_to_keep=1,
        ).logits
    last: torch.Tensor = logits[0, -1]
    return last
