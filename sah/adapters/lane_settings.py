"""The settings of a batch of lanes, each ready to run over one context."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from sah.adapters.context_cache import ContextCache
from sah.adapters.lane_rows import LaneSetting
from sah.sparse_attention.config import QUESTION
from sah.sparse_attention.lanes import LaneSeconds, LaneStates

if TYPE_CHECKING:
    from sah.adapters.huggingface import ModelAdapterHF


class LaneRequest(Protocol):
    """What a lane is at least."""

    @property
    def adapter(self) -> ModelAdapterHF:
        """Its setting."""

    @property
    def question_ids(self) -> Sequence[int]:
        """Ids that follow the context's."""

    @property
    def attention_error(self) -> float:
        """Share of its queries that are compared with dense attention."""


@dataclass
class LaneSettings:
    """Settings in the order of their lanes."""

    settings: list[LaneSetting] = field(default_factory=list)

    state_seconds: list[float] = field(default_factory=list)
    """Seconds spent on deriving state from the context, one a lane; the first of a setting has them all."""

    dense_questions: set[int] = field(default_factory=set)
    """Numbers of sparse settings whose question runs dense."""

    def of(self, lane: int) -> LaneSetting:
        """Return the setting of a lane."""
        return next(setting for setting in self.settings if setting.first <= lane < setting.stop)


def prepare_settings(cache: ContextCache, lanes: Sequence[LaneRequest]) -> LaneSettings:
    """Derive what the settings of lanes need of a context, and make the state of each lane.

    Args:
        cache: The context; read only, but for the state that settings derive from it.
        lanes: The lanes; those of one setting share an adapter and stand together.

    Returns:
        Their settings.
    """
    made = LaneSettings()
    for _, numbers in itertools.groupby(range(len(lanes)), key=lambda lane: id(lanes[lane].adapter)):
        members = [lanes[number] for number in numbers]
        adapter, first = members[0].adapter, len(made.state_seconds)
        made.state_seconds += [adapter.prepare_context(cache), *([0.0] * (len(members) - 1))]
        states: LaneStates | None = None
        seconds = LaneSeconds(len(members))
        if adapter.sparse_attention is not None:
            if QUESTION not in adapter.sparse_phases:
                made.dense_questions.add(len(made.settings))
            own = [adapter.new_meta_data(cache, lane.question_ids, lane.attention_error) for lane in members]
            states = LaneStates(own, seconds)
        made.settings.append(LaneSetting(first, first + len(members), adapter.sparse_attention, states, seconds))
    return made
