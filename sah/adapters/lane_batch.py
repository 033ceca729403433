"""Decodes the lanes of one batch step by step."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sah.adapters.context_cache import ContextCache
from sah.adapters.generation import Answer
from sah.adapters.lane_model import LaneModel
from sah.adapters.lane_rows import LaneSetting
from sah.sparse_attention.config import DECODE, QUESTION
from sah.sparse_attention.lanes import LaneSeconds, LaneStates

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
        self._settings: list[LaneSetting] = []
        self._state_seconds: list[float] = []
        self._question_dense: set[int] = set()
        for _, members in itertools.groupby(range(len(lanes)), key=lambda lane: id(lanes[lane].adapter)):
            self._add_setting(list(members))
        room = max(len(lane.question_ids) + lane.max_new_tokens for lane in lanes)
        self._model = LaneModel(adapter, cache.past_key_values, cache.length, self._settings, room)

    @property
    def is_done(self) -> bool:
        """Whether every lane has its answer."""
        return not self.active

    def step(self) -> list[tuple[int, Answer]]:
        """Run all questions (the first time) or one token of every unfinished lane.

        Returns:
            Number and answer of the lanes that are done with it.
        """
        if not self.generated[self.active[0]]:
            tokens = [self.lanes[lane].question_ids for lane in self.active]
            starts = [0] * len(tokens)
            ids, _ = self._model.next_ids(QUESTION, self.active, tokens, starts, dense=self._question_dense)
        else:
            tokens = [self.generated[lane][-1:] for lane in self.active]
            starts = [len(self.lanes[lane].question_ids) + len(self.generated[lane]) - 1 for lane in self.active]
            ids, _ = self._model.next_ids(DECODE, self.active, tokens, starts, dense=set())
        done: list[int] = []
        for lane, new in zip(self.active, ids, strict=True):
            self.generated[lane].append(new)
            if new in self.adapter.stop_ids or len(self.generated[lane]) == self.lanes[lane].max_new_tokens:
                done.append(lane)
        self.active = [lane for lane in self.active if lane not in set(done)]
        return [(self.lanes[lane].number, self._answer(lane)) for lane in done]

    def _add_setting(self, members: list[int]) -> None:
        adapter = self.lanes[members[0]].adapter
        seconds = adapter.prepare_context(self.cache)
        self._state_seconds += [seconds, *([0.0] * (len(members) - 1))]
        states: LaneStates | None = None
        lane_seconds = LaneSeconds(len(members))
        if adapter.sparse_attention is not None:
            if QUESTION not in adapter.sparse_phases:
                self._question_dense.add(len(self._settings))
            ids = [self.lanes[lane].question_ids for lane in members]
            states = LaneStates([adapter.new_meta_data(self.cache, own) for own in ids], lane_seconds)
        self._settings.append(LaneSetting(members[0], members[-1] + 1, adapter.sparse_attention, states, lane_seconds))

    def _answer(self, lane: int) -> Answer:
        prepared, ids = self.lanes[lane], self.generated[lane]
        setting = next(setting for setting in self._settings if setting.first <= lane < setting.stop)
        states = setting.states
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
            density_by_phase=dict.fromkeys((QUESTION, DECODE)),
            attention_calls=0,
            sparse_layers=(),
            selection_seconds=0.0,
            attention_seconds=setting.seconds.of(lane - setting.first)[1],
        )
        if states is None:
            return answer
        return prepared.adapter.lane_answer(answer, states, lane - setting.first, self._state_seconds[lane])
