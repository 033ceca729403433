"""The memory of lanes over a long context, in a process of its own: prints a line of JSON.

    python -m benchmarks.sweep_memory {lanes,dense} [--tokens 8000] [--model ...] [--new-tokens 16]

`lanes` decodes the lanes of all settings together, `dense` one dense lane. Linux only: it reads /proc.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.adapter import context_of
from benchmarks.sweep_lanes import DENSE, QUESTIONS, SETTINGS, Sweep, endless
from sah.adapters.factory import create_adapter
from sah.adapters.lanes import answer_lanes

KIB = 1024
ARMS = ("lanes", DENSE)
ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("arm", choices=ARMS)
    parser.add_argument("--tokens", type=int, default=8000)
    parser.add_argument("--model", default="embedded:smollm2-135m-instruct")
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--budget-bytes", type=int, default=2 << 30)
    options = parser.parse_args()
    torch.set_num_threads(1)
    adapter = create_adapter(options.model)
    with endless(adapter):
        sweep = Sweep(adapter, context_of(adapter, options.tokens), options.new_tokens, options.budget_bytes)
        to_prefill = peak_bytes()
        before = reset_peak()
        lanes = sweep.lanes(list(SETTINGS)) if options.arm == "lanes" else sweep.lanes([DENSE])[-1:]
        answers = dict(answer_lanes(adapter, sweep.cache, lanes, options.budget_bytes))
        after = peak_bytes()
    tokens = [len(getattr(answer, "token_ids", [])) for answer in answers.values()]
    if tokens != [options.new_tokens] * (len(SETTINGS) * len(QUESTIONS) if options.arm == "lanes" else 1):
        raise SystemExit(f"Some lanes have no answer: {answers}")
    figures = {
        "lanes": len(lanes),
        "context_tokens": sweep.cache.length,
        "cache_bytes": sweep.cache.nbytes(),
        "to_prefill": to_prefill,
        "before": before,
        "after_prefill": after,
        "whole": max(to_prefill, after),
    }
    print(json.dumps(figures))


def peak_bytes() -> int:
    """Return the process's largest resident memory since the last reset."""
    return _status("VmHWM")


def reset_peak() -> int:
    """Give memory that is free back to the system, forget the peak so far, and return what is resident now.

    Raises:
        SystemExit: If the kernel does not allow it.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as error:
        raise SystemExit(f"The peak cannot be reset: {error}") from None
    resident = _status("VmRSS")
    if _status("VmHWM") > resident + (8 << 20):
        raise SystemExit("The peak was not reset.")
    return resident


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return KIB * int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


def measure_memory(arm: str, model: str, tokens: int, new_tokens: int) -> dict[str, int]:
    """Run one arm in a fresh process.

    Args:
        arm: `lanes` or `dense`.
        model: The model.
        tokens: Length of the context.
        new_tokens: Tokens of every answer.

    Returns:
        Its figures in bytes: peaks `to_prefill`, `after_prefill` and over the `whole`, and what was resident `before`
        the lanes.

    Raises:
        SystemExit: If it failed.
    """
    command = [sys.executable, "-m", "benchmarks.sweep_memory", arm, "--model", model, "--tokens", str(tokens)]
    done = subprocess.run(
        [*command, "--new-tokens", str(new_tokens)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(
            f"{done.stdout}{done.stderr[-3000:]}\n"
            f"The process that measures memory ended with {done.returncode} (what it said is above)."
        )
    figures: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return figures


if __name__ == "__main__":
    main()
