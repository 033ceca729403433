"""Settings and the rows of a model call that belong to them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from sah.adapters.lane_cache import LaneLayer
from sah.sparse_attention.base import SparseAttention
from sah.sparse_attention.lanes import LaneSeconds, LaneStates
from sah.sparse_attention.shared import SharedStates, readable


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

    watches: bool = False
    """Whether it runs dense in this call, and its attention sees what it wants of it."""

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

    by_hidden: dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    """By the tokens of the context that a layer no longer holds: lanes, lengths and readable keys on its device."""

    def states(self, layer: LaneLayer, which: int, device: torch.device) -> SharedStates:
        """Return keys (0) or values (1) of a layer as these rows see them."""
        if layer.hidden not in self.by_hidden:
            lengths = self.lengths.to(device) - layer.hidden
            kv_len = layer.context[which].shape[2] + self.used
            self.by_hidden[layer.hidden] = (self.lanes.to(device), lengths, readable(lengths, kv_len))
        lanes, lengths, may_read = (part.to(device) for part in self.by_hidden[layer.hidden])
        return SharedStates(
            layer.context[which],
            layer.own[which][self.setting.first : self.setting.stop],
            lanes,
            lengths,
            self.used,
            self.one_each,
            self.in_order,
            may_read,
        )
