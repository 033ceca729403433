"""Greedy decoding of one question over a prefilled context.

Follows kvpress's `generate_answer` (github.com/NVIDIA/kvpress): explicit positions that continue the context's, one
token at a time, until an end token or the limit. Unlike there, an end token ends the answer when it comes first, too.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from sah.adapters.attention_switch import META_DATA_KEY
from sah.adapters.context_cache import ContextCache
from sah.adapters.finite import FINITE_KEY, FiniteWatch, first_broken_layer, not_finite, usable
from sah.sparse_attention.attention_errors import ATTENTION_ERRORS_KEY, AttentionErrors, HeadErrors
from sah.sparse_attention.config import DECODE, QUESTION
from sah.sparse_attention.statistics import STATISTICS_KEY, AttentionStatistics
from sah.sparse_attention.times import now


@dataclass(frozen=True)
class Answer:
    """A generated answer with what it took."""

    text: str
    """The answer without special tokens."""

    token_ids: list[int]
    """Generated ids, the end token included where one came."""

    stop_reason: str
    """`eos` or `length`."""

    num_question_tokens: int
    """Tokens that went through the model in one chunk before the first generated one."""

    kv_len: int
    """Keys in the cache when the answer was complete."""

    question_seconds: float | None
    question_cpu_seconds: float | None
    """Time of the question's chunk, the first generated token included; None where other lanes shared its calls."""

    decode_seconds: float | None
    decode_cpu_seconds: float | None
    """Time of all further tokens; None where other lanes shared its calls."""

    density: float | None
    """Measured density of the phases that ran sparse, together; None where none did."""

    density_by_phase: dict[str, float | None]
    """Measured density of each phase; None for a phase that ran dense."""

    attention_calls: int
    """Calls of the sparse attention; 0 for a dense answer, and for one of a single token where only decoding is sparse
    (the question's call gives the first token)."""

    sparse_layers: tuple[int, ...]
    """Layers that ran sparse: those that attend to the whole sequence and are none of `dense_layers`."""

    calls_by_layer: dict[str, dict[int, int]] = field(default_factory=dict)
    """Calls of the sparse attention by phase and layer; layers without any are left out."""

    output_error: float | None = None
    """Relative output error of the sparse attention, mean over layers, heads and the queries that were compared with
    dense attention; None where none was. The times hold the comparison."""

    attention_errors: dict[int, HeadErrors] = field(default_factory=dict)
    """What was compared, by layer and head."""

    state_seconds: float | None = None
    """Wall seconds spent before this question on deriving state (page bounds, signatures) from the context's keys, no
    part of `question_seconds`; 0.0 where it was there already or none is needed, None for a dense answer."""

    attention_seconds: float | None = None
    selection_seconds: float | None = None
    """Wall seconds of attention, and of choosing keys before it, as the lane's share of its setting's calls; None for
    an answer that was decoded alone."""

    @property
    def decode_ms_per_token(self) -> float | None:
        """Milliseconds a token after the first; None if there was no other, or other lanes shared its calls."""
        steps = len(self.token_ids) - 1
        return 1000 * self.decode_seconds / steps if steps > 0 and self.decode_seconds is not None else None


class Stopwatch:
    """Wall and CPU seconds since it was made; waits for the device first."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._start = now(device)

    def read(self) -> tuple[float, float]:
        """Return (wall, CPU) seconds since the last reading, and start again."""
        current, before = now(self.device), self._start
        self._start = current
        return current[0] - before[0], current[1] - before[1]


def next_logits(model: Any, cache: ContextCache, ids: list[int], position: int, extra: dict[str, Any]) -> torch.Tensor:
    """Run ids behind those that a cache holds through the model.

    Args:
        model: A causal language model of transformers.
        cache: The cache; the ids' keys are appended to it.
        ids: The ids.
        position: Position of the first one.
        extra: Further arguments of the model's call.

    Returns:
        The logits after the last one, (vocabulary,).
    """
    watch = extra.get(META_DATA_KEY, {}).get(FINITE_KEY)
    if watch is not None:
        watch.begin()
    device = model.get_input_embeddings().weight.device
    logits: torch.Tensor = model(
        input_ids=torch.tensor([ids], device=device),
        position_ids=torch.arange(position, position + len(ids), device=device)[None],
        past_key_values=cache.past_key_values,
        use_cache=True,
        logits_to_keep=1,
        **extra,
    ).logits
    return logits[0, -1]


def next_token(model: Any, cache: ContextCache, ids: list[int], position: int, extra: dict[str, Any]) -> int:
    """Return the likeliest id after ids behind those that a cache holds; arguments as of `next_logits`."""
    return int(next_logits(model, cache, ids, position, extra).argmax())


def check_finite(
    logits: torch.Tensor, model: Any, cache: ContextCache, behind: list[int], step: int, extra: dict[str, Any]
) -> None:
    """Refuse logits that are not finite.

    Args:
        logits: Of `next_logits`.
        model: The model.
        cache: The context; may hold tokens behind it, which are cut off to find the layer.
        behind: All ids behind the context so far.
        step: Number of the answer's token.
        extra: Further arguments of the model's call.

    Raises:
        ModelError: If one is NaN or infinite; names layer, head and step.
    """
    if bool(usable(logits[None])):
        return
    watch = extra.get(META_DATA_KEY, {}).get(FINITE_KEY)
    if isinstance(watch, FiniteWatch):
        raise not_finite(step, watch.where(slice(None))[1])
    cache.cut_back()
    raise not_finite(step, first_broken_layer(model, behind, cache.length, cache.past_key_values))


@torch.no_grad()
def decode_greedily(
    model: Any,
    tokenizer: Any,
    cache: ContextCache,
    question_ids: list[int],
    max_new_tokens: int,
    stop_ids: frozenset[int],
    sparse_meta_data: dict[Any, Any] | None,
    dense_question: AbstractContextManager[None] | None = None,
) -> Answer:
    """Answer a question in whichever attention the model is switched to.

    Args:
        model: A causal language model of transformers.
        tokenizer: Its tokenizer.
        cache: The prefilled context; on return, also by exception, it holds exactly the context again.
        question_ids: Ids that follow the context's.
        max_new_tokens: Most tokens to generate, at least 1.
        stop_ids: Ids that end the answer.
        sparse_meta_data: Passed to every sparse model call, or None for dense attention.
        dense_question: Switches to dense attention for the question's chunk; None leaves it as it is.

    Returns:
        The answer.
    """
    extra = {} if sparse_meta_data is None else {META_DATA_KEY: sparse_meta_data}
    statistics = AttentionStatistics() if sparse_meta_data is None else sparse_meta_data[STATISTICS_KEY]
    errors = (sparse_meta_data or {}).get(ATTENTION_ERRORS_KEY) or AttentionErrors(0.0)

    watch = Stopwatch(model.get_input_embeddings().weight.device)
    try:
        statistics.phase = QUESTION
        with dense_question or nullcontext():
            first = {} if dense_question else extra
            logits = next_logits(model, cache, question_ids, cache.length, first)
            check_finite(logits, model, cache, question_ids, 0, first)
        generated = [int(logits.argmax())]
        question_times = watch.read()
        statistics.phase = DECODE
        position = cache.length + len(question_ids)
        while generated[-1] not in stop_ids and len(generated) < max_new_tokens:
            logits = next_logits(model, cache, generated[-1:], position, extra)
            check_finite(logits, model, cache, [*question_ids, *generated], len(generated), extra)
            generated.append(int(logits.argmax()))
            position += 1
        decode_times = watch.read()
    finally:
        cache.cut_back()
    return Answer(
        text=tokenizer.decode(generated, skip_special_tokens=True),
        token_ids=generated,
        stop_reason="eos" if generated[-1] in stop_ids else "length",
        num_question_tokens=len(question_ids),
        kv_len=position,
        question_seconds=question_times[0],
        question_cpu_seconds=question_times[1],
        decode_seconds=decode_times[0],
        decode_cpu_seconds=decode_times[1],
        density=statistics.density(),
        density_by_phase={phase: statistics.density(phase) for phase in (QUESTION, DECODE)},
        attention_calls=statistics.calls(),
        sparse_layers=tuple(statistics.layers()),
        calls_by_layer={phase: statistics.calls_by_layer(phase) for phase in (QUESTION, DECODE)},
        output_error=errors.mean(),
        attention_errors=errors.by_layer(),
    )
