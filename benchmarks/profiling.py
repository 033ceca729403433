"""What a call allocates, and which operations it spends its time in."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable
from statistics import median
from typing import Any

from torch.profiler import ProfilerActivity, profile

# The profiler writes a line to the terminal at every start and end, unless its log is turned down before the first.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

LISTED = 8
"""Operations that are listed."""


def peak_of_allocations(run: Callable[[], object]) -> int:
    """Return the most bytes that a call holds at once of what it allocates.

    Every allocation through torch is seen, also inside its kernels; what its libraries allocate themselves is not.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    recorded = profiler.profiler.kineto_results.events()
    events = [event for event in recorded if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def largest_allocations(run: Callable[[], object]) -> list[dict[str, Any]]:
    """Return the operations that allocate most in a call, in bytes, less what they free again themselves."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    averages = sorted(profiler.key_averages(), key=lambda a: a.self_cpu_memory_usage, reverse=True)
    return [{"op": a.key, "calls": a.count, "bytes": a.self_cpu_memory_usage} for a in averages[:LISTED]]


def slowest_operations(run: Callable[[], object], before: Callable[[], object], calls: int) -> list[dict[str, Any]]:
    """Return the operations that take most time of their own, in milliseconds a call.

    The profiler knows wall time only; the median over the calls leaves out what other processes took now and then.

    Args:
        run: What is profiled.
        before: Called before every call, not profiled.
        calls: Calls to profile.
    """
    spent: defaultdict[str, list[float]] = defaultdict(list)
    count: dict[str, int] = {}
    for _ in range(calls):
        before()
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            run()
        for average in profiler.key_averages():
            spent[average.key].append(average.self_cpu_time_total / 1e3)
            count[average.key] = average.count
    medians = sorted(((median(values), op) for op, values in spent.items()), reverse=True)
    return [{"op": op, "calls": count[op], "ms": milliseconds} for milliseconds, op in medians[:LISTED]]
