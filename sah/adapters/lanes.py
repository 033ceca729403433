"""Answers to many questions under many settings over one context, decoded together.

A lane is one question under one setting. All lanes read the one prefilled context; their rows go through the model in
one batch, and a lane that is done leaves it. A lane's answer is what `ModelAdapterHF.answer` gives, whatever runs
beside it: that is the plain form, which also takes the lanes one by one where a batch is not possible.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from sah.adapters.context_cache import ContextCache
from sah.adapters.generation import Answer
from sah.adapters.lane_batch import LaneBatch, PreparedLane
from sah.adapters.lane_cache import bytes_a_token
from sah.adapters.lane_products import MOST_NUMBERS
from sah.adapters.lane_support import lanes_supported, rope_agrees
from sah.config.values import DEFAULT_MAX_NEW_TOKENS
from sah.errors import ModelError, SahError
from sah.sparse_attention.kernels.shared import piece_numbers

if TYPE_CHECKING:
    from sah.adapters.huggingface import ModelAdapterHF

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lane:
    """One question under one setting."""

    adapter: ModelAdapterHF
    """The setting: an adapter of the model that prefilled the context, sparse or dense."""

    question: str
    answer_prefix: str = ""
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    attention_error: float = 0.0
    """Share of the queries that are compared with dense attention in every sparse layer; the answer stays the same."""


@dataclass
class LaneWidth:
    """What is known of how many lanes a batch can hold. Kept from one context to the next."""

    most: int | None = None
    """Set when memory ran out with more."""

    def shrink(self, tried: int) -> None:
        """Note that memory ran out with so many lanes, and let go of what the device's allocator holds."""
        self.most = (tried + 1) // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        elif torch.backends.mps.is_available():
            torch.mps.empty_cache()


def answer_lanes(
    adapter: ModelAdapterHF,
    cache: ContextCache,
    lanes: Sequence[Lane],
    budget_bytes: int,
    width: LaneWidth | None = None,
) -> Iterator[tuple[int, Answer | Exception]]:
    """Answer lanes in batches as wide as memory allows.

    Args:
        adapter: An adapter of the model that prefilled the context.
        cache: The context; on return it holds exactly the context again.
        lanes: The lanes. Those of one setting share an adapter and stand together.
        budget_bytes: Memory for what a batch takes beside the model and the context. One lane runs in any case. Where
            memory runs out all the same, narrower batches are tried.
        width: What earlier contexts taught of the width; written to.

    Yields:
        The number of a lane and its answer, or the error that kept it from having one, as soon as it is there.

    Raises:
        StateError: If another model prefilled the context.
    """
    adapter.check_cache(cache)
    alone: list[int] = []
    prepared: list[PreparedLane] = []
    # Many settings ask the same questions.
    known: dict[tuple[str, str], list[int]] = {}
    batched = lanes_supported(adapter, cache)
    for number, lane in enumerate(lanes):
        try:
            lane.adapter.check_cache(cache)
            asked = (lane.question, lane.answer_prefix)
            if asked not in known:
                known[asked] = adapter.prompts.question_ids(cache.prompt, *asked)
            lane.adapter.check_fits(cache, len(known[asked]), lane.max_new_tokens)
        except SahError as error:
            yield number, error
            continue
        ids = known[asked]
        if not batched or not rope_agrees(adapter, cache.length, len(ids) + lane.max_new_tokens):
            alone.append(number)
        else:
            prepared.append(PreparedLane(number, lane.adapter, ids, lane.max_new_tokens, lane.attention_error))
    queue = [prepared] if prepared else []
    width = width or LaneWidth()
    while queue:
        waiting = queue.pop(0)
        size = min(width.most or len(waiting), _fitting(adapter, cache, waiting, budget_bytes))
        chosen, later = waiting[:size], waiting[size:]
        done: set[int] = set()
        try:
            for number, answer in _decode(adapter, cache, chosen):
                done.add(number)
                yield number, answer
        except Exception as error:
            rest = [lane for lane in chosen if lane.number not in done]
            if _is_out_of_memory(error) and size > 1:
                width.shrink(size)
                _log.warning("Out of memory with %d answers in a batch: going on with %d.", size, width.most)
                later = rest + later
            elif len(settings := _by_setting(rest)) > 1:
                # Which setting is at fault shows when each has a batch of its own.
                _log.info("A batch of %d answers failed (%s); going on setting by setting.", size, error)
                queue = settings + queue
            else:
                _log.warning("A batch of %d answers failed (%s); its unfinished ones run one by one.", size, error)
                alone += [lane.number for lane in rest]
        if later:
            queue.insert(0, later)
    for number in sorted(alone):
        try:
            yield number, _alone(cache, lanes[number])
        except Exception as error:
            yield number, error


def _by_setting(lanes: Sequence[PreparedLane]) -> list[list[PreparedLane]]:
    return [list(members) for _, members in itertools.groupby(lanes, key=lambda lane: id(lane.adapter))]


def _decode(
    adapter: ModelAdapterHF, cache: ContextCache, lanes: Sequence[PreparedLane]
) -> Iterator[tuple[int, Answer | ModelError]]:
    batch = LaneBatch(adapter, cache, lanes)
    while not batch.is_done:
        yield from batch.step()


def _alone(cache: ContextCache, lane: Lane) -> Answer:
    return lane.adapter.answer(
        cache,
        lane.question,
        answer_prefix=lane.answer_prefix,
        max_new_tokens=lane.max_new_tokens,
        attention_error=lane.attention_error,
    )


def _fitting(adapter: ModelAdapterHF, cache: ContextCache, lanes: Sequence[PreparedLane], budget_bytes: int) -> int:
    """Count how many of the first lanes a batch may hold, at least one."""
    config = adapter.model.config.get_text_config()
    a_token = bytes_a_token(cache.past_key_values)
    # What a row's activations take in one layer, and its logits, in float32; a rough upper estimate.
    a_row = 4 * (12 * config.hidden_size + 3 * (getattr(config, "intermediate_size", None) or 4 * config.hidden_size))
    # Logits of a piece of rows with their copies, of one setting and of all together.
    heads, kv_len = config.num_attention_heads, cache.length
    rows = sum(len(lane.question_ids) for lane in lanes)
    a_piece = 4 * min(piece_numbers(adapter.model.device), rows * heads * kv_len)
    common = 8 * min(MOST_NUMBERS, len(lanes) * heads * kv_len)
    taken, width, room = 8 * a_piece + common, 0, 0
    for lane in lanes:
        # Every lane has the room of the longest.
        room = max(room, len(lane.question_ids) + lane.max_new_tokens)
        taken += a_row * len(lane.question_ids) + 8 * config.vocab_size
        if width and taken + (width + 1) * room * a_token > budget_bytes:
            break
        width += 1
    return width


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # Neither the CPU's allocator, nor MPS', nor cuBLAS have a class of their own.
    text = str(error)
    known = ("can't allocate memory", "not enough memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(part in text for part in known)
