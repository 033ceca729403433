"""Decodes the lanes of one batch step by step."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sah.adapters.context_cache import ContextCache
from sah.adapters.finite import not_finite
from sah.adapters.generation import Answer
from sah.adapters.lane_model import LaneModel
from sah.adapters.lane_settings import prepare_settings
from sah.adapters.proof import check_calls
from sah.errors import ModelError
from sah.sparse_attention.config import DECODE, PHASES, QUESTION

if TYPE_CHECKING:
    from sah.adapters.huggingface import ModelAdapterHF


@dataclass(frozen=True)
class PreparedLane:
    """A lane with its question's ids."""

    number: int
    """The lane's number among all that were asked for."""

    adapter: ModelAdapterHF
    question_ids: list[int]
    max_new_tokens: int
    attention_error: float = 0.0


class LaneBatch:
    """Answers lanes over one context, a token of every unfinished lane a step.

    Args:
        adapter: An adapter of the model that prefilled the context.
        cache: The context; read only, but for the state that settings derive from it.
        lanes: The lanes; those of one setting share an adapter and stand together.
    """

    def __init__(self, adapter: ModelAdapterHF, cache: ContextCache, lanes: Sequence[PreparedLane]) -> None:
        self.adapter = adapter
        self.cache = cache
        self.lanes = lanes
        self.generated: list[list[int]] = [[] for _ in lanes]
        self.active = list(range(len(lanes)))
        self._prepared = prepare_settings(cache, lanes)
        room = max(len(lane.question_ids) + lane.max_new_tokens for lane in lanes)
        self._model = LaneModel(adapter, cache.past_key_values, cache.length, self._prepared.settings, room)

    @property
    def is_done(self) -> bool:
        """Whether every lane has its answer."""
        return not self.active

    def step(self) -> list[tuple[int, Answer | ModelError]]:
        """Run all questions (the first time) or one token of every unfinished lane.

        Returns:
            Number and answer of the lanes that are done with it, or why they have none.
        """
        steps = len(self.generated[self.active[0]])
        if not steps:
            tokens = [self.lanes[lane].question_ids for lane in self.active]
            starts = [0] * len(tokens)
            output = self._model.run(QUESTION, self.active, tokens, starts, dense=self._prepared.dense_questions)
        else:
            tokens = [self.generated[lane][-1:] for lane in self.active]
            starts = [len(self.lanes[lane].question_ids) + steps - 1 for lane in self.active]
            output = self._model.run(DECODE, self.active, tokens, starts, dense=set())
        done: list[tuple[int, Answer | ModelError]] = []
        ended: set[int] = set()
        for place, (lane, new) in enumerate(zip(self.active, output.logits.argmax(-1).tolist(), strict=True)):
            if place in output.broken:
                done.append((self.lanes[lane].number, not_finite(steps, output.broken[place][1])))
                ended.add(lane)
                continue
            self.generated[lane].append(new)
            if new in self.adapter.stop_ids or steps + 1 == self.lanes[lane].max_new_tokens:
                done.append((self.lanes[lane].number, self._answer(lane)))
                ended.add(lane)
        self.active = [lane for lane in self.active if lane not in ended]
        return done

    def _answer(self, lane: int) -> Answer | ModelError:
        prepared, ids = self.lanes[lane], self.generated[lane]
        setting = self._prepared.of(lane)
        own, states = lane - setting.first, setting.states
        answer = Answer(
            text=str(self.adapter.tokenizer.decode(ids, skip_special_tokens=True)),
            token_ids=ids,
            stop_reason="eos" if ids[-1] in self.adapter.stop_ids else "length",
            num_question_tokens=len(prepared.question_ids),
            kv_len=self.cache.length + len(prepared.question_ids) + len(ids) - 1,
            question_seconds=None,
            question_cpu_seconds=None,
            decode_seconds=None,
            decode_cpu_seconds=None,
            density=None,
            density_by_phase=dict.fromkeys(PHASES),
            attention_calls=0,
            sparse_layers=(),
            selection_seconds=0.0,
            calls_by_layer={phase: {} for phase in PHASES},
            attention_seconds=setting.seconds.of(own)[1],
        )
        if states is None:
            return answer
        statistics, errors = states.statistics(own), states.errors
        calls = {phase: statistics.calls_by_layer(phase) for phase in PHASES}
        try:
            check_calls(prepared.adapter, calls, len(ids) - 1)
        except ModelError as error:
            return error
        selection, attention = states.seconds(own)
        return dataclasses.replace(
            answer,
            density=statistics.density(),
            density_by_phase={phase: statistics.density(phase) for phase in PHASES},
            attention_calls=statistics.calls(),
            sparse_layers=tuple(statistics.layers()),
            calls_by_layer=calls,
            output_error=None if errors is None else errors[own].mean(),
            attention_errors={} if errors is None else errors[own].by_layer(),
            state_seconds=self._prepared.state_seconds[lane],
            selection_seconds=selection,
            attention_seconds=attention,
        )
