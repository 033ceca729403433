"""Prefill attention: every sparse pattern, its estimate included, against the best dense causal form.

    python -m benchmarks.prefill [--lengths 4096 8192 16384] [--models smollm2 llama3-8b] [--repeats 3] [--write]
                                 [--json FILE]

One thread, float32, batch 1, density 0.1; medians over interleaved rounds after one that warms up. Data as described in
`benchmarks/prefill_arms.py`. The best dense form is the fastest of three by CPU time: torch's causal SDPA with shared
and with repeated keys, and the patterns' own kernel over all keys. The estimate is timed on its own as well; attention
is the rest of the call. The mass recalled is the share of dense softmax weight on the keys read, of `--mass-queries`
queries of every head; that of the heaviest keys of each query at this density stands beside it. Temporaries are the
peak of what torch allocates in one call, the output among it.
Nothing is measured while the tests are red that compare the patterns with their plain form.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.prefill_arms import DENSE, DENSITY, MODELS, PATTERNS, TARGET_LENGTH, TARGET_SPEEDUP, Model, Prompt
from benchmarks.profiling import peak_of_allocations
from sah.sparse_attention import PrefillPattern

ROOT = Path(__file__).resolve().parents[1]
README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- prefill -->", "<!-- /prefill -->"
EQUALITY_TESTS = "tests/unit/sparse_attention/prefill"
Clock = tuple[float, float]
"""Seconds of CPU and of wall time."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prefill")
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 8192, 16384])
    parser.add_argument("--models", choices=list(MODELS), nargs="+", default=list(MODELS))
    parser.add_argument("--repeats", type=int, default=3, help="timed rounds")
    parser.add_argument("--mass-queries", type=int, default=128, help="queries whose recalled mass is measured")
    parser.add_argument("--write", action="store_true", help="replace the figures in benchmarks/README.md")
    parser.add_argument("--json", type=Path, help="file to write all figures to")
    given = parser.parse_args(arguments)
    _check_equality()
    torch.set_num_threads(1)
    machine = f"{platform.system()} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    lines = [f"torch {torch.__version__}, machine {machine}, density {DENSITY:g}, repeats {given.repeats}, one thread"]
    print(lines[0], flush=True)
    cells = []
    for name in given.models:
        for length in given.lengths:
            with torch.inference_mode():
                cells.append(measure(MODELS[name], length, given.repeats, given.mass_queries))
            found = ["", *cell_lines(cells[-1])]
            print(*found, sep="\n", flush=True)
            lines += found
            if given.json:
                given.json.write_text(json.dumps(cells, indent=1), encoding="utf-8")
    ends = ["", *target_lines(cells)]
    print(*ends, sep="\n")
    if given.write:
        page = README.read_text(encoding="utf-8")
        start, end = page.index(BEGIN) + len(BEGIN), page.index(END)
        text = "\n".join(lines + ends)
        README.write_text(f"{page[:start]}\n```\n{text}\n```\n{page[end:]}", encoding="utf-8")


def measure(model: Model, length: int, repeats: int, mass_queries: int) -> dict[str, Any]:
    """Measure all forms at one shape and length.

    Args:
        model: The shape.
        length: Tokens of the prompt.
        repeats: Timed rounds.
        mass_queries: Queries whose recalled mass is measured.

    Returns:
        Plain data; times in milliseconds.
    """
    prompt = Prompt(model, length)
    patterns = {name: PrefillPattern.create_from_config(config()) for name, config in PATTERNS.items()}
    given = (prompt.queries, prompt.keys, prompt.values, prompt.scaling)
    runs: dict[str, Callable[[], Any]] = {name: lambda form=form: form(prompt) for name, form in DENSE.items()}
    for name, pattern in patterns.items():
        runs[name] = lambda pattern=pattern: pattern.attend(*given)
        if hasattr(pattern, "choose"):
            runs[f"{name} estimate"] = lambda pattern=pattern: pattern.choose(
                prompt.queries, prompt.keys, prompt.scaling
            )
    clocks: dict[str, list[Clock]] = {name: [] for name in runs}
    for number in range(repeats + 1):
        for name, run in runs.items():
            cpu, wall = time.process_time(), time.perf_counter()
            run()
            if number:
                clocks[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    times = {
        name: [1000 * statistics.median(entry[place] for entry in found) for place in (0, 1)]
        for name, found in clocks.items()
    }
    best = min(DENSE, key=lambda name: times[name][0])
    masses, heaviest = recalled(prompt, patterns, mass_queries)
    rows = []
    for name, pattern in patterns.items():
        estimate = times.get(f"{name} estimate", [0.0, 0.0])
        rows.append(
            {
                "pattern": name,
                "cpu": times[name][0],
                "wall": times[name][1],
                "estimate": estimate[0],
                "speedup": times[best][0] / times[name][0],
                "density": pattern.attend(*given)[1],
                "mass": masses[name],
                "temporaries": peak_of_allocations(runs[name]),
            }
        )
    dense = [{"form": name, "cpu": times[name][0], "wall": times[name][1]} for name in DENSE]
    return {
        "shape": str(model),
        "length": length,
        "best": best,
        "best_temporaries": peak_of_allocations(runs[best]),
        "heaviest": heaviest,
        "dense": dense,
        "patterns": rows,
    }


def recalled(prompt: Prompt, patterns: dict[str, PrefillPattern], count: int) -> tuple[dict[str, float], float]:
    """Measure the softmax mass that patterns keep.

    Args:
        prompt: The data.
        patterns: Name to pattern.
        count: Queries to look at, evenly spaced.

    Returns:
        Name to mass, averaged over queries and heads, and the mass of each query's heaviest keys at the density.
    """
    picked = torch.linspace(0, prompt.length - 1, count).round().long()
    key = torch.arange(prompt.length)
    masses = dict.fromkeys(patterns, 0.0)
    heaviest = 0.0
    for head in range(prompt.model.kv_heads):
        # One KV head at a time: what `keep` builds is of the size of all pairs.
        queries, keys = prompt.of_kv_head(head)
        logits = (queries[:, :, picked] @ keys.mT * prompt.scaling).masked_fill(key > picked[:, None], float("-inf"))
        shares = torch.softmax(logits, dim=-1)
        for name, pattern in patterns.items():
            kept = pattern.keep(queries, keys, prompt.scaling)[:, :, picked]
            masses[name] += float((shares * kept).sum(-1).mean()) / prompt.model.kv_heads
        ordered = shares.sort(dim=-1, descending=True).values
        within = key < (DENSITY * (picked[:, None] + 1)).clamp(min=1)
        heaviest += float((ordered * within).sum(-1).mean()) / prompt.model.kv_heads
    return masses, heaviest


def cell_lines(cell: dict[str, Any]) -> Iterator[str]:
    """Write the table of one shape and length."""
    best = cell["best"]
    yield (
        f"{cell['shape']}, {cell['length']:,} tokens: best dense is {best}, {cell['best_temporaries'] / 1e6:.1f} MB; "
        f"the heaviest {DENSITY:.0%} of keys hold {cell['heaviest']:.3f} of the softmax mass"
    )
    yield f"{'':25}{'CPU ms':>9}{'wall ms':>9}{'estimate':>10}{'attention':>10}  {'against dense':15}" + (
        f"{'density':>8}{'mass':>7}{'MB':>8}"
    )
    for row in cell["dense"]:
        mark = f"{'':22}best dense" if row["form"] == best else ""
        yield f"{row['form']:25}{row['cpu']:9.1f}{row['wall']:9.1f}{mark}"
    for row in cell["patterns"]:
        times = f"{row['cpu']:9.1f}{row['wall']:9.1f}{row['estimate']:10.1f}{row['cpu'] - row['estimate']:10.1f}"
        faster = f"{row['speedup']:.2f}x faster" if row["speedup"] >= 1 else f"{1 / row['speedup']:.2f}x as long"
        figures = f"{row['density']:8.4f}{row['mass']:7.3f}{row['temporaries'] / 1e6:8.1f}"
        yield f"{row['pattern']:25}{times}  {faster:15}{figures}"


def target_lines(cells: list[dict[str, Any]]) -> Iterator[str]:
    """Judge the patterns at the length that the target holds for."""
    yield f"target at {TARGET_LENGTH:,} tokens, estimate included: at least {TARGET_SPEEDUP:g}x faster than best dense"
    for cell in cells:
        if cell["length"] == TARGET_LENGTH:
            for row in cell["patterns"]:
                met = "met" if row["speedup"] >= TARGET_SPEEDUP else "MISSED"
                yield f"{cell['shape']:20}{row['pattern']:25}{row['speedup']:6.2f}x  {met}"


def _check_equality() -> None:
    """Run the tests that compare the patterns with their plain form.

    Raises:
        SystemExit: If one of them fails or cannot be run.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", EQUALITY_TESTS]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(
            f"{result.stdout[-4000:]}{result.stderr[-1000:]}\n"
            "The tests of the patterns are red (above): no times are reported."
        )


if __name__ == "__main__":
    main()
