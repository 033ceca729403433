"""Decode attention: every method in its fast execution against the best dense form.

    python -m benchmarks.attention [--kv-len 4096 65536] [--dtype bfloat16] [--arms quest-group topk-head]
                                   [--repeats 9] [--json FILE]

One thread, medians of CPU time over interleaved rounds; 32 query heads, 8 KV heads, head_dim 128, batch 1, one query a
call. Each round is a decode step: one key more in buffers that have room, new queries, the methods' state grown from
that of the round before. The processor's caches are emptied before every call. Keys have runs of a common topic over
noise, and queries ask for a topic, so that few keys hold most of the mass (`benchmarks/attention_arms.py`).
The best dense form is the fastest of four in the same rounds: the model's own call, SDPA over grouped queries, and two
that are written as matrix products (`dense-matmul`, `dense-matmul-by-head`). A form with more than three times the
error of torch's own SDPA (bfloat16 products round logits and weights) is shown, but is no baseline.
The memory bandwidth is that of `torch.sum` over 512 MB of random float32 numbers, measured in the same rounds. Bytes
read follow from the method's state and from the keys that its mask keeps. Temporaries are the peak of what torch
allocates in one call and the buffers that calls use again; the method's state is listed apart.
Nothing is measured while the tests are red that compare the executions with each other.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.attention_arms import ARMS, HEAD_DIM, HEADS, KV_HEADS
from benchmarks.attention_cell import Memory, measure_cell
from benchmarks.attention_report import cell_lines, curve_lines, target_lines

ROOT = Path(__file__).resolve().parents[1]
_MATRIX = "tests/unit/sparse_attention/test_matrix.py::test_"
EQUALITY_TESTS = [
    _MATRIX + "research_equals_efficient",
    _MATRIX + "output_is_the_importance_estimate_over_the_mask",
    _MATRIX + "a_full_budget_is_exactly_dense",
    _MATRIX + "a_masker_only_adds_and_never_changes_its_arguments",
    _MATRIX + "a_chunk_equals_token_by_token",
    "tests/unit/sparse_attention/test_lists.py",
    "tests/unit/sparse_attention/test_agreement.py",
]
"""Tests that must pass before anything is measured, as pytest names them."""

KV_LENGTHS = [4096, 16384, 65536, 131072]
DTYPES = ["float32", "bfloat16"]


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    options = _options(arguments)
    _check_equality()
    torch.set_num_threads(1)
    memory = Memory()
    arms = {name: ARMS[name] for name in options.arms}
    about = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": f"{platform.system()} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "heads": HEADS,
        "kv_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "repeats": options.repeats,
    }
    print(", ".join(f"{name} {value}" for name, value in about.items()) + ", one thread")
    cells: list[dict[str, Any]] = []
    with _progress() as progress:
        total = len(options.dtype) * sum(options.kv_len) * (options.repeats + 2)
        task = progress.add_task("", total=total)
        for dtype in options.dtype:
            for kv_len in options.kv_len:
                progress.update(task, description=f"{dtype}, kv_len {kv_len:,}")

                def tick(keys: int = kv_len) -> None:
                    progress.advance(task, keys)

                cells.append(measure_cell(getattr(torch, dtype), kv_len, arms, options.repeats, memory, tick))
                if options.json:
                    options.json.write_text(json.dumps({**about, "cells": cells}, indent=1), encoding="utf-8")
                # Keys, values and states of the longest cell take some GB: they go before the next one comes.
                gc.collect()
    for cell in cells:
        print("", *cell_lines(cell), sep="\n")
    print("", *target_lines(cells), sep="\n")
    print("", *curve_lines(cells), sep="\n")


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kv-len", type=int, nargs="+", default=KV_LENGTHS, help="lengths of the context")
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=DTYPES)
    parser.add_argument("--arms", choices=list(ARMS), nargs="+", default=list(ARMS), help="sparse arms; dense ones run")
    parser.add_argument("--repeats", type=int, default=9, help="timed rounds")
    parser.add_argument("--json", type=Path, help="file to write all figures to")
    options = parser.parse_args(arguments)
    for name, value in (("--kv-len", min(options.kv_len)), ("--repeats", options.repeats)):
        if value < 1:
            parser.error(f"{name} must be at least 1, but got {value}")
    return options


def _check_equality() -> None:
    """Run the tests that compare executions.

    Raises:
        SystemExit: If one of them fails or cannot be run.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *EQUALITY_TESTS]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(
            f"{result.stdout[-4000:]}{result.stderr[-1000:]}\n"
            "The tests that compare the executions are red (above): no times are reported."
        )


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


if __name__ == "__main__":
    main()
