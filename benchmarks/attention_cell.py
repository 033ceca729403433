"""One cell of `benchmarks.attention`: all arms at one dtype and one length, timed, weighed and judged."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.attention_arms import DENSE, DENSITY, STOCK, Arm, Stream
from benchmarks.attention_run import SparseRun
from benchmarks.profiling import largest_allocations, peak_of_allocations, slowest_operations
from benchmarks.timing import interleaved

TIME_KV_LEN = 65536
"""Length that the targets of time hold for."""
TEMPORARIES_KV_LEN = 131072
"""Length that the targets of temporaries hold for."""
MOST_TEMPORARIES = {True: 0.10, False: 0.25}
"""Share of the KV cache that temporaries may take, by whether a KV head's query heads share one set of keys."""

READ_BYTES = 512 << 20
"""Bytes read to measure the bandwidth."""
FLUSH_BYTES = 64 << 20
"""Bytes read before every timed call."""
PROFILED_CALLS = 5
STREAMING = "streaming_llm"
"""The arm that methods which evict are compared with."""
INEXACT = 3.0
"""A dense form with more than this many times the error of torch's own is no baseline: it is fast by rounding more."""

MOST_ERROR = {torch.float32: 1e-5, torch.bfloat16: 3e-2}
"""Largest relative error of a dense form's output. The matrix products round logits and weights to bfloat16."""


class Memory:
    """Memory to read: for the bandwidth, and to push a step's data out of the processor's caches."""

    def __init__(self) -> None:
        # Written to: pages that never were all lie in one page of zeros.
        self._numbers = torch.rand(READ_BYTES // 4)

    def read(self) -> None:
        """Read all of it once."""
        self._numbers.sum()

    def flush(self) -> None:
        """Read more than the caches hold. In a model the other layers do that between two calls of one layer."""
        self._numbers[: FLUSH_BYTES // 4].sum()


def measure_cell(
    dtype: torch.dtype,
    kv_len: int,
    arms: dict[str, Arm],
    repeats: int,
    memory: Memory,
    tick: Callable[[], object],
) -> dict[str, Any]:
    """Measure all arms at one dtype and one length.

    Args:
        dtype: Of keys, values and queries.
        kv_len: Keys of the context; each round has one more than the round before.
        arms: Name to sparse arm.
        repeats: Timed rounds, after one that warms up.
        memory: What is read for the bandwidth.
        tick: Called `repeats + 2` times, for the progress bar.

    Returns:
        Plain data: what belongs to the cell, and one entry for each dense and sparse arm.

    Raises:
        SystemExit: If a dense form gives a wrong result.
    """
    stream = Stream(kv_len, repeats + 1 + (PROFILED_CALLS + 3) * len(arms), dtype)
    errors = _errors_of_dense(stream)
    dense: dict[str, Callable[[], object]] = {name: partial(form, stream) for name, form in DENSE.items()}
    runs = {name: SparseRun(arm, stream) for name, arm in arms.items()}
    tick()

    def next_round() -> None:
        stream.advance()
        tick()

    steps = {name: run.step for name, run in runs.items()}
    seconds = interleaved(
        {"memory": memory.read, **dense, **steps}, repeats, before_round=next_round, before_call=memory.flush
    )
    exact_enough = [name for name in DENSE if errors[name] <= INEXACT * max(errors[stock] for stock in STOCK)]
    best = min(exact_enough, key=lambda name: seconds[name])
    bandwidth = READ_BYTES / seconds["memory"]
    cell: dict[str, Any] = {
        "dtype": str(dtype).removeprefix("torch."),
        "kv_len": kv_len,
        "kv_bytes": stream.kv_bytes,
        "best_dense": best,
        "best_stock": min(STOCK, key=lambda name: seconds[name]),
        "bandwidth": bandwidth,
        "heavy_mass": stream.mass_of_best(DENSITY),
        "dense": [],
        "sparse": [],
    }

    def next_step(run: SparseRun) -> Callable[[], object]:
        """Return a step of its own key: methods that evict do another thing with a query that they know."""

        def step() -> object:
            stream.advance()
            return run.step()

        return step

    def timed(name: str, read: dict[str, int]) -> dict[str, Any]:
        return {
            "arm": name,
            "ms": 1e3 * seconds[name],
            "share_of_dense_time": seconds[name] / seconds[best],
            "share_of_stock_time": seconds[name] / seconds[cell["best_stock"]],
            "share_of_streaming_time": seconds[name] / seconds[STREAMING] if STREAMING in seconds else None,
            "bytes_read": read,
            "share_of_bandwidth": sum(read.values()) / seconds[name] / bandwidth,
        }

    for name, call in dense.items():
        row = timed(name, {"selection": 0, "attention": stream.kv_bytes})
        cell["dense"].append({**row, "temporaries": peak_of_allocations(call), "error": errors[name]})
    # Read before any further step: all arms share the data, which grows by a key a step.
    read = {name: run.bytes_read() for name, run in runs.items()}
    held = {name: (run.density(), run.state_bytes()) for name, run in runs.items()}
    for name, run in runs.items():
        row = {
            **timed(name, read[name]),
            # The first step warmed up.
            "selection_ms": 1e3 * statistics.median(run.selection_seconds[1:]),
            "density": held[name][0],
            "temporaries": peak_of_allocations(next_step(run)) + run.workspace_bytes(),
            "state_bytes": held[name][1],
            "build_seconds": run.build_seconds,
        }
        row["targets"] = _judge(run, row, cell, memory, next_step(run))
        cell["sparse"].append(row)
    return cell


def _errors_of_dense(stream: Stream) -> dict[str, float]:
    """Return the relative error of each dense form's output against float64."""
    exact = stream.exact()
    errors = {name: float((form(stream).double() - exact).norm() / exact.norm()) for name, form in DENSE.items()}
    for name, error in errors.items():
        if not error <= MOST_ERROR[stream.dtype]:
            raise SystemExit(f"{name} has a relative error of {error:.2g}: no times are reported.")
    return errors


def _judge(
    run: SparseRun, row: dict[str, Any], cell: dict[str, Any], memory: Memory, step: Callable[[], object]
) -> list[dict[str, Any]]:
    """Compare an arm with the targets that hold at this length; a missed one gets a profile."""
    targets: list[dict[str, Any]] = []
    if cell["kv_len"] == TIME_KV_LEN and run.arm.most_time is not None:
        targets.append({"of": "time", "allowed": run.arm.most_time, "measured": row["share_of_dense_time"]})
    streaming = row["share_of_streaming_time"]
    if cell["kv_len"] == TIME_KV_LEN and run.arm.most_of_streaming is not None and streaming is not None:
        targets.append({"of": "evicting", "allowed": run.arm.most_of_streaming, "measured": streaming})
    if cell["kv_len"] == TEMPORARIES_KV_LEN:
        share = row["temporaries"] / cell["kv_bytes"]
        targets.append({"of": "temporaries", "allowed": MOST_TEMPORARIES[run.arm.by_group], "measured": share})
    for target in targets:
        target["met"] = target["measured"] <= target["allowed"]
        if not target["met"] and target["of"] != "temporaries":
            target["profile"] = slowest_operations(step, memory.flush, PROFILED_CALLS)
        elif not target["met"]:
            target["profile"] = largest_allocations(step)
    return targets
