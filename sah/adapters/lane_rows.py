"""Settings and the rows of a model call that belong to them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from sah.adapters.lane_cache import LaneLayer
from sah.sparse_attention.base import SparseAttention
from sah.sparse_attention.lanes import LaneSeconds, LaneStates
from sah.sparse_attention.shared import SharedStates


@dataclass(frozen=True)
class LaneSetting:
    """The lanes of one setting, which stand together."""

    first: int
    stop: int
    """Its lanes are first to stop - 1."""

    attention: SparseAttention | None
    """None for dense attention."""

    states: LaneStates | None
    """State of its lanes; None for dense attention."""

    seconds: LaneSeconds
    """Takes the time of its attention calls."""

    wide: set[int] = field(default_factory=set)
    """Layers in which it asked for the logits of all keys when it was last called."""


@dataclass(frozen=True)
class LaneRows:
    """Rows of one call that belong to one setting."""

    rows: slice
    setting: LaneSetting
    lanes: torch.Tensor
    """Lane of each row, counted from the setting's first."""

    lengths: torch.Tensor
    used: int
    one_each: bool
    in_order: bool

    def states(self, layer: LaneLayer, which: int, device: torch.device) -> SharedStates:
        """Return keys (0) or values (1) of a layer as these rows see them."""
        return SharedStates(
            layer.context[which],
            layer.own[which][self.setting.first : self.setting.stop],
            self.lanes.to(device),
            self.lengths.to(device) - layer.hidden,
            self.used,
            self.one_each,
            self.in_order,
        )
