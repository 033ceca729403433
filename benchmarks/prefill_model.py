"""Sparse prefill end to end: seconds of a real model's whole prefill, every pattern against dense.

    python -m benchmarks.prefill_model [--tokens 8000] [--repeats 2] [--model embedded:smollm2-135m-instruct] [--write]

One thread, density 0.1, the library's reference prose, medians over interleaved rounds after one of 512 tokens that
warms up. Dense is the attention that the model was loaded with. Projections and MLPs take the same time in all arms, so
that the ratio stays below that of attention alone. What a sparse prefill changes in the answers is not shown here:
`python -m sah.run -m prefill=dense,block_topk` compares scores.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.adapter import context_of
from benchmarks.prefill_arms import DENSITY, PATTERNS
from sah.adapters.factory import create_adapter
from sah.errors import SahError
from sah.sparse_attention import PrefillConfig

README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- prefill-model -->", "<!-- /prefill-model -->"
WARM_UP_TOKENS = 512


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prefill_model")
    parser.add_argument("--tokens", type=int, default=8000, help="length of the context")
    parser.add_argument("--repeats", type=int, default=2, help="timed rounds")
    parser.add_argument("--model", default="embedded:smollm2-135m-instruct")
    parser.add_argument("--write", action="store_true", help="replace the figures in benchmarks/README.md")
    given = parser.parse_args(arguments)
    try:
        lines = measure(given.model, given.tokens, given.repeats)
    except SahError as error:
        raise SystemExit(str(error)) from None
    text = "\n".join(lines)
    print(text)
    if given.write:
        page = README.read_text(encoding="utf-8")
        start, end = page.index(BEGIN) + len(BEGIN), page.index(END)
        README.write_text(f"{page[:start]}\n```\n{text}\n```\n{page[end:]}", encoding="utf-8")


def measure(model: str, tokens: int, repeats: int) -> list[str]:
    """Prefill one context with every pattern in turn.

    Args:
        model: As of `model.name`.
        tokens: Length of the context.
        repeats: Timed rounds.

    Returns:
        Lines to print.

    Raises:
        SahError: If the model cannot be had, or its window is too short.
    """
    torch.set_num_threads(1)
    adapter = create_adapter(model)
    arms: dict[str, PrefillConfig | None] = {"dense": None, **{name: config() for name, config in PATTERNS.items()}}
    short = context_of(adapter, WARM_UP_TOKENS)
    for config in arms.values():
        adapter.prefill(short, config)
    context = context_of(adapter, tokens)
    cpu: dict[str, list[float]] = {name: [] for name in arms}
    wall: dict[str, list[float]] = {name: [] for name in arms}
    densities: dict[str, float] = {}
    length = 0
    for _ in range(repeats):
        for name, config in arms.items():
            cache = adapter.prefill(context, config)
            cpu[name].append(cache.prefill_cpu_seconds)
            wall[name].append(cache.prefill_seconds)
            densities[name], length = cache.prefill_density, cache.length
    dense = statistics.median(cpu["dense"])
    lines = [
        f"{model}, context {length} tokens, density {DENSITY:g}, rounds {repeats}, one thread",
        f"{'':25}{'CPU s':>8}{'wall s':>8}  {'against dense':15}{'density':>8}",
    ]
    for name in arms:
        took = statistics.median(cpu[name])
        faster = f"{dense / took:.2f}x faster" if took <= dense else f"{took / dense:.2f}x as long"
        told = "" if name == "dense" else faster
        lines.append(f"{name:25}{took:8.2f}{statistics.median(wall[name]):8.2f}  {told:15}{densities[name]:8.4f}")
    return lines


if __name__ == "__main__":
    main()
