"""Interleaved CPU timing of alternatives."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


def interleaved(arms: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Time alternatives in turn, so that a change of the machine's speed meets all of them.

    Args:
        arms: Name to what is timed.
        repeats: Rounds; one more round before them warms up.

    Returns:
        Median CPU seconds of each arm.
    """
    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for round_number in range(repeats + 1):
        for name, run in arms.items():
            start = time.process_time()
            run()
            if round_number:
                seconds[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}
