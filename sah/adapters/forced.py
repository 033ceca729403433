"""Answers that are given: how likely a setting finds each token of a text, beside dense attention on the same text.

Teacher forcing: every lane reads the same question and the same answer, so that what differs is the attention alone.
Lanes of all settings go through the model in one batch: the question in one call, the answer's tokens in a second one.
Plain twin: `force_alone`, token by token.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from sah.adapters.attention_switch import META_DATA_KEY
from sah.adapters.context_cache import ContextCache
from sah.adapters.finite import not_finite
from sah.adapters.generation import check_finite, next_logits
from sah.adapters.lane_cache import bytes_a_token
from sah.adapters.lane_model import LaneModel
from sah.adapters.lane_settings import prepare_settings
from sah.adapters.lane_support import lanes_supported, rope_agrees
from sah.adapters.prefill import dense_question
from sah.adapters.proof import check_calls
from sah.errors import ModelError, SahError
from sah.sparse_attention.attention_errors import ATTENTION_ERRORS_KEY, HeadErrors
from sah.sparse_attention.config import DECODE, PHASES, QUESTION
from sah.sparse_attention.statistics import STATISTICS_KEY, AttentionStatistics

if TYPE_CHECKING:
    from sah.adapters.huggingface import ModelAdapterHF

_log = logging.getLogger(__name__)

_PIECE = 256
"""Tokens whose logits are turned into probabilities at once."""


@dataclass(frozen=True)
class ForcedLane:
    """A text behind a context under one setting."""

    adapter: ModelAdapterHF
    """The setting: an adapter of the model that prefilled the context, sparse or dense."""

    question_ids: tuple[int, ...]
    """Ids behind the context that are read first, at least one; their likelihood is not asked for."""

    token_ids: tuple[int, ...]
    """Ids behind those, at least one, whose likelihood is."""

    attention_error: float = 0.0
    """Share of the queries that are compared with dense attention in every sparse layer."""


@dataclass(frozen=True)
class Forced:
    """What a setting makes of a given text, in nats."""

    tokens: int
    log_likelihood: float
    """Sum over the tokens."""
    dense_log_likelihood: float
    """The same of dense attention."""
    kl: float
    """KL(dense, sparse) of the distributions of the next token, mean over the tokens."""
    top1_agreement: float
    """Share of the tokens at which dense and sparse attention would choose the same one."""
    density: float | None = None
    """Measured density of the phases that ran sparse; None where none did."""
    density_by_phase: dict[str, float | None] = field(default_factory=dict)
    calls_by_layer: dict[str, dict[int, int]] = field(default_factory=dict)
    """Calls of the sparse attention by phase and layer; in the decode phase each token counts as one."""
    attention_errors: dict[int, HeadErrors] = field(default_factory=dict)

    @property
    def is_finite(self) -> bool:
        """Whether all figures are finite; they are not where one form excludes a token of the text altogether."""
        return all(map(math.isfinite, (self.kl, self.log_likelihood, self.dense_log_likelihood)))


def force_lanes(
    adapter: ModelAdapterHF,
    cache: ContextCache,
    lanes: Sequence[ForcedLane],
    budget_bytes: int,
    reference: ContextCache | None = None,
) -> Iterator[tuple[int, Forced | Exception]]:
    """Run given texts in batches as wide as memory allows.

    Dense attention runs beside the lanes of each text in the same batch, as what they are compared with.

    Args:
        adapter: An adapter of the model that prefilled the context, dense.
        cache: The context; on return it holds exactly the context again.
        lanes: The lanes; those of one setting share an adapter.
        budget_bytes: Memory for what a batch takes beside the model and the context. One lane runs in any case.
        reference: The same context from another prefill, over which dense attention runs for comparison: the dense one,
            where `cache` is from a sparse prefill. None for `cache` itself.

    Yields:
        The number of a lane and what was found, or the error that kept it from being found.

    Raises:
        StateError: If another model prefilled the context.
    """
    for prefilled in (cache, reference or cache):
        adapter.check_cache(prefilled)
    batched = lanes_supported(adapter, cache)
    fitting: list[int] = []
    for number, lane in enumerate(lanes):
        try:
            adapter.check_fits(cache, len(lane.question_ids), len(lane.token_ids))
        except SahError as error:
            yield number, error
            continue
        fitting.append(number)
    together = [n for n in fitting if batched and rope_agrees(adapter, cache.length, _length(lanes[n]))]
    for batch in _batches(adapter, cache, lanes, together, budget_bytes):
        yield from _run(adapter, cache, lanes, batch, reference)
    for number in fitting:
        if number not in set(together):
            yield number, _alone_or_error(adapter, cache, lanes[number], reference)


def force_alone(
    adapter: ModelAdapterHF, cache: ContextCache, lane: ForcedLane
) -> tuple[torch.Tensor, AttentionStatistics, dict[int, HeadErrors]]:
    """Run a given text token by token: the plain form.

    Args:
        adapter: The setting; a dense one runs dense.
        cache: The context; on return it holds exactly the context again.
        lane: The text.

    Returns:
        The logits that each of its tokens was chosen from, (tokens, vocabulary), what the attention recorded, and what
        was compared with dense attention.

    Raises:
        ModelError: If numbers are not finite.
    """
    question, ids = list(lane.question_ids), list(lane.token_ids)
    sparse = adapter.sparse_attention is not None
    adapter.prepare_context(cache)
    meta_data = adapter.new_meta_data(cache, question, lane.attention_error) if sparse else {}
    statistics = meta_data.get(STATISTICS_KEY) or AttentionStatistics()
    extra = {META_DATA_KEY: meta_data} if sparse else {}
    question_is_dense = sparse and QUESTION not in adapter.sparse_phases
    rows: list[torch.Tensor] = []
    try:
        with torch.no_grad(), adapter.enable_sparse_mode() if sparse else adapter.enable_dense_mode():
            for step in range(len(ids)):
                given, start = (question, 0) if step == 0 else (ids[step - 1 : step], len(question) + step - 1)
                statistics.phase = DECODE if step else QUESTION
                dense = question_is_dense and step == 0
                more = {} if dense else extra
                with dense_question(adapter, meta_data) if dense else nullcontext():
                    rows.append(next_logits(adapter.model, cache, given, cache.length + start, more))
                    check_finite(rows[-1], adapter.model, cache, question + ids[:step], step, more)
    finally:
        cache.cut_back()
    return torch.stack(rows), statistics, meta_data[ATTENTION_ERRORS_KEY].by_layer() if sparse else {}


def _length(lane: ForcedLane) -> int:
    return len(lane.question_ids) + len(lane.token_ids)


def _text(lane: ForcedLane) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return lane.question_ids, lane.token_ids


def _batches(
    adapter: ModelAdapterHF, cache: ContextCache, lanes: Sequence[ForcedLane], chosen: Sequence[int], budget_bytes: int
) -> Iterator[list[int]]:
    """Cut lanes into batches, those of one text together where they fit; each has room for its dense references."""
    config = adapter.model.config.get_text_config()
    # A token's keys and values and a layer's activations; a rough upper estimate.
    a_token = bytes_a_token(cache.past_key_values) + 48 * config.hidden_size
    # Its logits, which are kept for the tokens that are judged, with copies in float32 and probabilities.
    logits = 16 * config.vocab_size
    by_text: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = {}
    for number in chosen:
        by_text.setdefault(_text(lanes[number]), []).append(number)
    batch: list[int] = []
    taken = 0
    for text, members in by_text.items():
        a_lane = sum(map(len, text)) * a_token + len(text[1]) * logits
        taken += a_lane
        for number in members:
            if batch and taken + a_lane > budget_bytes:
                yield batch
                batch, taken = [], a_lane
            batch.append(number)
            taken += a_lane
    if batch:
        yield batch


def _run(
    adapter: ModelAdapterHF,
    cache: ContextCache,
    lanes: Sequence[ForcedLane],
    batch: list[int],
    reference: ContextCache | None,
) -> Iterator[tuple[int, Forced | Exception]]:
    """Run a batch; where that fails its halves, and at last a lane alone."""
    try:
        found = _run_batch(adapter, cache, lanes, batch, reference)
    except Exception as error:
        if len(batch) == 1:
            _log.info("A given text failed in a batch (%s) and runs alone.", error)
            yield batch[0], _alone_or_error(adapter, cache, lanes[batch[0]], reference)
            return
        _log.info("A batch of %d given texts failed (%s); going on with its halves.", len(batch), error)
        # Halves by setting, so that one at fault comes to stand alone.
        ordered = sorted(batch, key=lambda number: id(lanes[number].adapter))
        for half in (ordered[: len(batch) // 2], ordered[len(batch) // 2 :]):
            yield from _run(adapter, cache, lanes, half, reference)
        return
    yield from found.items()


def _run_batch(
    adapter: ModelAdapterHF,
    cache: ContextCache,
    lanes: Sequence[ForcedLane],
    batch: Sequence[int],
    reference: ContextCache | None,
) -> dict[int, Forced | Exception]:
    texts = list(dict.fromkeys(_text(lanes[number]) for number in batch))
    dense_lanes = [ForcedLane(adapter, *text) for text in texts]
    # Dense attention over the same cache is what it is compared with.
    by_setting: dict[int, list[int]] = {}
    for number in batch:
        if reference is not None or lanes[number].adapter.sparse_attention is not None:
            by_setting.setdefault(id(lanes[number].adapter), []).append(number)
    numbers = [number for members in by_setting.values() for number in members]
    own_lanes = [lanes[number] for number in numbers]
    if reference is None:
        together = _read(adapter, cache, [*dense_lanes, *own_lanes])
        dense_readings, own_readings = together[: len(texts)], together[len(texts) :]
    else:
        dense_readings, own_readings = _read(adapter, reference, dense_lanes), _read(adapter, cache, own_lanes)
    dense = dict(zip(texts, dense_readings, strict=True))
    own = dict(zip(numbers, own_readings, strict=True))
    found: dict[int, Forced | Exception] = {}
    for number in batch:
        compared = dense[_text(lanes[number])]
        reading = own.get(number, compared)
        broken = reading.broken or compared.broken
        if broken is not None:
            found[number] = not_finite(*broken)
            continue
        try:
            found[number] = _judge(lanes[number], compared.logits, reading.logits, reading.statistics, reading.errors)
        except ModelError as error:
            found[number] = error
    return found


@dataclass
class _Reading:
    """What one lane made of its text."""

    logits: torch.Tensor
    """(tokens, vocabulary)."""
    statistics: AttentionStatistics
    errors: dict[int, HeadErrors]
    broken: tuple[int, str] | None = None
    """The call and the place where numbers were not finite."""


def _read(adapter: ModelAdapterHF, cache: ContextCache, rows: Sequence[ForcedLane]) -> list[_Reading]:
    """Run lanes over one cache in one batch; those of one setting stand together."""
    prepared = prepare_settings(cache, rows)
    room = max(_length(row) for row in rows)
    model = LaneModel(adapter, cache.past_key_values, cache.length, prepared.settings, room)
    questions = [row.question_ids for row in rows]
    first = model.run(QUESTION, range(len(rows)), questions, [0] * len(rows), dense=prepared.dense_questions)
    logits = [first.logits[place : place + 1] for place in range(len(rows))]
    broken: dict[int, tuple[int, str]] = {place: (0, where) for place, (_, where) in first.broken.items()}
    longer = [place for place, row in enumerate(rows) if len(row.token_ids) > 1]
    if longer:
        tokens = [rows[place].token_ids[:-1] for place in longer]
        starts = [len(questions[place]) for place in longer]
        rest = model.run(DECODE, longer, tokens, starts, dense=set(), every_token=True)
        ends = torch.tensor([len(ids) for ids in tokens]).cumsum(0).tolist()
        for at, (place, ids, end) in enumerate(zip(longer, tokens, ends, strict=True)):
            logits[place] = torch.cat([logits[place], rest.logits[end - len(ids) : end]])
            if at in rest.broken and place not in broken:
                token, where = rest.broken[at]
                broken[place] = (1 + token, where)
    readings: list[_Reading] = []
    for place in range(len(rows)):
        setting = prepared.of(place)
        statistics = AttentionStatistics()
        errors: dict[int, HeadErrors] = {}
        if setting.states is not None:
            lane = place - setting.first
            statistics = setting.states.statistics(lane)
            errors = setting.states.errors[lane].by_layer() if setting.states.errors else {}
        readings.append(_Reading(logits[place], statistics, errors, broken.get(place)))
    return readings


def _alone_or_error(
    adapter: ModelAdapterHF, cache: ContextCache, lane: ForcedLane, reference: ContextCache | None
) -> Forced | Exception:
    try:
        dense, *_ = force_alone(adapter, cache if reference is None else reference, lane)
        if lane.adapter.sparse_attention is None and reference is None:
            return _judge(lane, dense, dense, AttentionStatistics(), {})
        return _judge(lane, dense, *force_alone(lane.adapter, cache, lane))
    except Exception as error:
        return error


def _judge(
    lane: ForcedLane,
    dense: torch.Tensor,
    sparse: torch.Tensor,
    statistics: AttentionStatistics,
    errors: dict[int, HeadErrors],
) -> Forced:
    """Compare logits, (tokens, vocabulary) each.

    Raises:
        ModelError: If a layer that should run sparse did not.
    """
    is_sparse = lane.adapter.sparse_attention is not None
    calls = {phase: statistics.calls_by_layer(phase) for phase in PHASES} if is_sparse else {}
    if is_sparse:
        check_calls(lane.adapter, calls, len(lane.token_ids) - 1)
    ids = torch.tensor(lane.token_ids, device=dense.device).unsqueeze(-1)
    sums = torch.zeros(4, dtype=torch.double)
    for start in range(0, len(ids), _PIECE):
        piece = slice(start, start + _PIECE)
        p, q = dense[piece].float().log_softmax(-1), sparse[piece].float().log_softmax(-1)
        # A token that dense attention excludes altogether adds nothing.
        kl = torch.where(p > float("-inf"), p.exp() * (p - q), 0.0).sum()
        agree = (p.argmax(-1) == q.argmax(-1)).sum()
        parts = (kl, agree, q.gather(-1, ids[piece]).sum(), p.gather(-1, ids[piece]).sum())
        sums += torch.stack([part.double().cpu() for part in parts])
    kl_sum, agreed, likelihood, dense_likelihood = sums.tolist()
    return Forced(
        tokens=len(ids),
        log_likelihood=likelihood,
        dense_log_likelihood=dense_likelihood,
        # Rounding may leave the sum of equal distributions a little below zero.
        kl=kl_sum / len(ids) if not kl_sum < 0 else 0.0,
        top1_agreement=agreed / len(ids),
        density=statistics.density() if is_sparse else None,
        density_by_phase={phase: statistics.density(phase) for phase in PHASES} if is_sparse else {},
        calls_by_layer=calls,
        attention_errors=errors,
    )
