"""Times decoding: the model's own attention, the grouped dense form and sparse attentions, in turn on the same tokens.

A timed run is apart from answering. Every arm is fed the same ids, the greedy answer of the model's own attention with
end tokens ignored, so that all do the same work; what an arm would have said is computed and not used. Each arm has a
state of its own, the cache is cut back between arms, and every other round runs them in reverse order.

While tokens are timed, a function that measures stands in for each attention function of the model, under the same
name in the registry's local overrides. A name of its own would not do: flash attention looks up its kernel by it.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sah.adapters import attention_switch as switch
from sah.adapters.context_cache import ContextCache
from sah.adapters.finite import FINITE_KEY
from sah.adapters.generation import decode_greedily, next_token
from sah.adapters.huggingface import ModelAdapterHF
from sah.adapters.prefill import dense_question
from sah.config.values import check_count
from sah.errors import DataError, ModelError, StateError
from sah.sparse_attention.allowed import allowed_keys
from sah.sparse_attention.config import DECODE, QUESTION
from sah.sparse_attention.kernels.grouped import grouped_attention
from sah.sparse_attention.kernels.masked import masked_attention
from sah.sparse_attention.statistics import STATISTICS_KEY, AttentionStatistics
from sah.sparse_attention.times import SELECTION, TIMES_KEY, AttentionTimes, now

OWN, GROUPED = "own", "grouped"
"""The dense arms: the attention that the model was loaded with, and the grouped form."""

TIMED_TOKENS = 16
TIMED_ROUNDS = 3

_CALL = "call"
"""Name in `AttentionTimes` for whole calls of an attention function."""

_Sample = dict[str, tuple[float, float]]
"""What one token took: (wall, CPU) seconds of the whole, of attention calls, and of the selection in them."""


@dataclass(frozen=True)
class Split:
    """Milliseconds a token, medians over tokens and rounds. Attention, selection and rest add up to the token."""

    token: float
    attention: float
    """In the attention functions of all layers, without selection."""
    selection: float
    """Choosing keys; 0 for a dense arm."""
    rest: float
    """Projections, MLPs, the cache, and all else."""


@dataclass(frozen=True)
class ArmTimes:
    """What an arm took."""

    wall: Split
    cpu: Split
    state_seconds: float
    """Wall seconds for what was derived from the context's keys before, once for all its questions."""
    density: float | None
    """Measured density of the timed tokens; None for a dense arm."""


@dataclass(frozen=True)
class TimedDecode:
    """A timed run over one question."""

    arms: dict[str, ArmTimes]
    """`own`, `grouped`, and the sparse arms by their names."""
    token_ids: list[int]
    """The ids that every arm decoded, one model call each."""
    context_tokens: int
    question_tokens: int
    rounds: int


@torch.no_grad()
def time_decoding(
    dense: ModelAdapterHF,
    sparse: Mapping[str, ModelAdapterHF],
    cache: ContextCache,
    question: str,
    *,
    answer_prefix: str = "",
    new_tokens: int = TIMED_TOKENS,
    rounds: int = TIMED_ROUNDS,
) -> TimedDecode:
    """Time the decoding of one answer in both dense forms and in sparse attentions.

    Args:
        dense: The model.
        sparse: Name to an adapter of the same model; may be empty.
        cache: A prefilled context. Its keys and its state are as before afterwards.
        question: The question, whose tokens run untimed before each arm's answer.
        answer_prefix: Text that the answer starts with.
        new_tokens: Tokens to decode; fewer where the model's window has no room for them.
        rounds: Timed rounds; one more before them warms up.

    Returns:
        The times. On a GPU they hold the waits at the ends of selection and of each call, in every arm.

    Raises:
        ConfigError: If `new_tokens` or `rounds` is below 1.
        DataError: If the window has no room for a single token.
        ModelError: If an arm's attention was not called.
        StateError: If an adapter runs another model.
    """
    check_count("new_tokens", new_tokens, minimum=1)
    check_count("rounds", rounds, minimum=1)
    if any(adapter.model is not dense.model for adapter in sparse.values()):
        raise StateError("Arms of a timed run share one model. Make them with dense.with_sparse_attention(config).")
    question_ids = dense.prompts.question_ids(cache.prompt, question, answer_prefix)
    length = cache.length + len(question_ids)
    room = new_tokens if dense.window is None else min(new_tokens, dense.window - length)
    if room < 1:
        raise DataError(f"Context and question have {length} tokens and fill the model's window of {dense.window}.")
    with _grouped_mode(dense) as grouped:
        arms = {OWN: _Arm(dense, dense.enable_dense_mode, cache), GROUPED: _Arm(dense, grouped, cache)}
        arms |= {name: _Arm(adapter, adapter.enable_sparse_mode, cache) for name, adapter in sparse.items()}
        with dense.enable_dense_mode():
            forced = decode_greedily(
                dense.model, dense.tokenizer, cache, question_ids, room, frozenset(), sparse_meta_data=None
            ).token_ids
        for arm in arms.values():
            arm.warm_up(question_ids, forced)
        samples: dict[str, list[_Sample]] = {name: [] for name in arms}
        for number in range(rounds):
            for name in list(arms)[:: 1 if number % 2 == 0 else -1]:
                samples[name] += arms[name].decode(question_ids, forced)
    times = {name: arm.times(samples[name]) for name, arm in arms.items()}
    return TimedDecode(times, forced, cache.length, len(question_ids), rounds)


class _Arm:
    """One way to decode.

    Args:
        adapter: Whose attention runs; a dense adapter's mode decides.
        mode: Switches the model to the arm's attention.
        cache: The context; the arm shares its keys and derives a state of its own.
    """

    def __init__(
        self, adapter: ModelAdapterHF, mode: Callable[[], AbstractContextManager[None]], cache: ContextCache
    ) -> None:
        config = adapter.sparse_attention_config
        self.adapter = adapter
        self.mode = mode
        self.sparse_question = config is not None and QUESTION in config.phases
        self.density: float | None = None
        self.cache = replace(cache, context_state={})
        self.state_seconds = adapter.prepare_context(self.cache)

    @property
    def is_sparse(self) -> bool:
        """Whether the arm's attention takes `sparse_meta_data`."""
        return self.adapter.sparse_attention_config is not None

    def warm_up(self, question_ids: list[int], forced: list[int]) -> None:
        """Decode untimed, and see that the arm's attention is called."""
        record = AttentionStatistics()
        samples = self.decode(question_ids, forced, record)
        called = record.calls() > 0 if self.is_sparse else all(sample[_CALL][0] > 0 for sample in samples)
        if not called:
            raise ModelError(
                f"The decoding of {self.adapter.model_name!r} cannot be timed: no layer called the attention that "
                "was switched on. Its code does not use transformers' attention interface, or all layers are dense."
            )
        self.density = record.density(DECODE)

    def decode(
        self, question_ids: list[int], forced: list[int], record: AttentionStatistics | None = None
    ) -> list[_Sample]:
        """Run the question, then the forced ids one by one; the cache is cut back afterwards.

        Args:
            question_ids: Ids that follow the context's.
            forced: Ids to decode.
            record: Takes the density. Timed tokens go without it, since recording takes time.

        Returns:
            What each token took.
        """
        model, cache, times = self.adapter.model, self.cache, AttentionTimes()
        device = model.get_input_embeddings().weight.device
        extra: dict[str, Any] = {}
        if self.is_sparse:
            meta_data = self.adapter.new_meta_data(cache, question_ids)
            # The dense arms are not watched for numbers that are not finite, so the sparse one is not either.
            own = {STATISTICS_KEY: record, TIMES_KEY: times, FINITE_KEY: None}
            extra = {switch.META_DATA_KEY: {**meta_data, **own}}
        record = record or AttentionStatistics()
        samples: list[_Sample] = []
        try:
            record.phase = QUESTION
            meta = extra.get(switch.META_DATA_KEY, {})
            with self.mode() if self.sparse_question else dense_question(self.adapter, meta):
                next_token(model, cache, question_ids, cache.length, extra if self.sparse_question else {})
            record.phase = DECODE
            with self.mode(), _timed_calls(model, times, device):
                for position, token in enumerate(forced, cache.length + len(question_ids)):
                    times.seconds = {_CALL: (0.0, 0.0), SELECTION: (0.0, 0.0)}
                    start = now(device)
                    next_token(model, cache, [token], position, extra)
                    end = now(device)
                    samples.append({**times.seconds, "token": (end[0] - start[0], end[1] - start[1])})
        finally:
            cache.cut_back()
        return samples

    def times(self, samples: list[_Sample]) -> ArmTimes:
        """Summarise what was measured."""
        return ArmTimes(_split(samples, 0), _split(samples, 1), self.state_seconds, self.density)


def _split(samples: list[_Sample], clock: int) -> Split:
    token = 1000 * statistics.median(sample["token"][clock] for sample in samples)
    selection = 1000 * statistics.median(sample[SELECTION][clock] for sample in samples)
    attention = 1000 * statistics.median(sample[_CALL][clock] - sample[SELECTION][clock] for sample in samples)
    return Split(token, attention, selection, token - attention - selection)


@contextmanager
def _grouped_mode(dense: ModelAdapterHF) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Register the grouped dense form, and give what switches the model to it."""
    name = switch.unique_name()
    switch.register(name, grouped_dense)
    try:
        yield lambda: switch.switched(switch.implementations(dense.model), name)
    finally:
        switch.unregister(name)


def grouped_dense(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend densely, the heads of a KV head as queries of one; an attention function of transformers.

    Args:
        module: The attention module.
        query: (batch, heads, q_len, head_dim).
        key: (batch, kv_heads, kv_len, head_dim).
        value: (batch, kv_heads, kv_len, value_dim).
        attention_mask: Boolean, (batch, 1, q_len, kv_len), or None where one query may read every key.
        scaling: Factor of the dot products; None is 1 / sqrt(head_dim).
        dropout: Not used: models are timed in evaluation.
        **kwargs: `s_aux` and `softcap`, which only the plain form knows; chunks of several queries take it as well.

    Returns:
        Output (batch, q_len, heads, value_dim), and None for the weights.
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    sinks, softcap = kwargs.get("s_aux"), kwargs.get("softcap")
    if query.shape[2] == 1 and sinks is None and softcap is None:
        output = grouped_attention(query, key, value, attention_mask, scaling)
    else:
        allowed = allowed_keys(attention_mask, query, key).float()
        output, _ = masked_attention(query, key, value, allowed, scaling, sinks=sinks, softcap=softcap)
    return output.transpose(1, 2).contiguous(), None


@contextmanager
def _timed_calls(model: torch.nn.Module, times: AttentionTimes, device: torch.device) -> Iterator[None]:
    """Measure every attention call of the model's decoder in the mode that it is in."""
    overrides: dict[str, Any] = ALL_ATTENTION_FUNCTIONS._local_mapping
    before = dict(overrides)
    try:
        for _, name in switch.implementations(model):
            overrides[name] = _timed(ALL_ATTENTION_FUNCTIONS.get(name), times, device)
        yield
    finally:
        overrides.clear()
        overrides.update(before)


def _timed(attention: Callable[..., Any] | None, times: AttentionTimes, device: torch.device) -> Callable[..., Any]:
    def measured(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        # "eager" stands in no registry: each model's file has its own.
        function = attention or vars(sys.modules[type(module).__module__])["eager_attention_forward"]
        start = now(device)
        output = function(module, *args, **kwargs)
        end = now(device)
        times.add(_CALL, end[0] - start[0], end[1] - start[1])
        return output

    return measured
