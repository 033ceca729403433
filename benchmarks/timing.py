"""Interleaved CPU timing of alternatives."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

Step = Callable[[], object]


def interleaved(
    arms: dict[str, Step], repeats: int, *, before_round: Step | None = None, before_call: Step | None = None
) -> dict[str, float]:
    """Time alternatives in turn, so that a change of the machine's speed meets all of them.

    Args:
        arms: Name to what is timed.
        repeats: Rounds; one more round before them warms up.
        before_round: Called before every round, the first included; not timed.
        before_call: Called before every arm of every round; not timed.

    Returns:
        Median CPU seconds of each arm.
    """
    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for round_number in range(repeats + 1):
        if before_round is not None:
            before_round()
        for name, run in arms.items():
            if before_call is not None:
                before_call()
            start = time.process_time()
            run()
            if round_number:
                seconds[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}
