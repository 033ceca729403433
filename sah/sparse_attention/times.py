"""Where a call's time goes: choosing keys, and attending to them."""

from __future__ import annotations

import time
from typing import Any

import torch

TIMES_KEY = "times"
"""Key of `sparse_meta_data` under which a timed run puts its `AttentionTimes`."""

SELECTION = "selection"
ATTENTION = "attention"


class AttentionTimes:
    """Adds up wall and CPU seconds by what they went into. Made for timed runs: it waits for the device at every lap.

    Attributes:
        seconds: Name to (wall, CPU) seconds.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, tuple[float, float]] = {SELECTION: (0.0, 0.0), ATTENTION: (0.0, 0.0)}

    def add(self, name: str, wall: float, cpu: float) -> None:
        """Add seconds under a name."""
        before = self.seconds.get(name, (0.0, 0.0))
        self.seconds[name] = (before[0] + wall, before[1] + cpu)


class Laps:
    """Hands each lap of one attention call to the run's `AttentionTimes`; does nothing where there is none.

    Args:
        sparse_meta_data: State of the question at hand.
        device: Where the call runs.
    """

    def __init__(self, sparse_meta_data: dict[Any, Any], device: torch.device) -> None:
        times = sparse_meta_data.get(TIMES_KEY)
        self._times = times if isinstance(times, AttentionTimes) else None
        self._device = device
        self._last = (0.0, 0.0)
        if self._times is not None:
            self._last = now(device)

    def end(self, name: str) -> None:
        """End a lap and begin the next."""
        if self._times is not None:
            current = now(self._device)
            self._times.add(name, current[0] - self._last[0], current[1] - self._last[1])
            self._last = current


def now(device: torch.device) -> tuple[float, float]:
    """Return (wall, CPU) seconds, having waited for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter(), time.process_time()
