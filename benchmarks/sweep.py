"""What a sweep costs whose lanes are decoded together, against the same answers one by one.

    python -m benchmarks.sweep [--fast] [--rounds 3] [--alone-rounds 2] [--parts lanes memory own plan workers]
                               [--json FILE] [--write]

Ten settings, four questions, one context of 2,048 tokens of reference prose, 16 new tokens each: 40 lanes. One thread,
CPU time beside wall time; arms run in turn, medians over rounds. `--parts` chooses what is measured:

- `lanes`: 40 lanes together, the same one by one, 4 lanes of each setting, and the dense floor;
- `memory`: 40 lanes over a context of 8,000 tokens against one dense lane, each in a fresh process;
- `own`: what a sweep of these settings through the launcher takes beyond the model's calls;
- `plan`: composing and planning 500 points by `python -m sah.plan`;
- `workers`: the test that two Ray workers give the rows of one process.

`--fast` takes a tiny random model and short contexts: it shows that everything runs, its figures mean nothing.
`--write` puts the report into benchmarks/README.md. With `--json FILE` parts can be measured apart, at quiet times.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.adapter import context_of
from benchmarks.sweep_lanes import DENSE, Sweep, endless, measure_lanes
from benchmarks.sweep_memory import measure_memory
from benchmarks.sweep_own import measure_own, measure_plan
from benchmarks.sweep_report import lanes_figures, report_lines
from experiments.study import write_block
from sah.adapters.factory import create_adapter
from sah.results.provenance import hardware, package_version

ROOT = Path(__file__).resolve().parents[1]
PAGE = Path(__file__).with_name("README.md")
BLOCK = "sweep"
PARTS = ("lanes", "memory", "own", "plan", "workers")
WORKERS_TEST = "tests/integration/test_ray_workers.py::test_two_workers_give_the_rows_of_this_process"
BUDGET_BYTES = 2 << 30
"""Memory for a batch: the default of `lanes_gib`."""


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    model: str
    config: str
    """The model's file in conf/model."""

    tokens: int
    memory_tokens: int
    new_tokens: int
    prompt: int
    """Tokens of a prompt of the sweep whose own time is measured."""

    examples: int
    points: int


REAL = Sizes("embedded:smollm2-135m-instruct", "llama", 2048, 8000, 16, 2048, 4, 500)
FAST = Sizes("tiny:llama", "tiny", 256, 512, 4, 512, 1, 8)


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--fast", action="store_true", help="a tiny random model; its figures mean nothing")
    parser.add_argument("--rounds", type=int, default=3, help="times that each arm runs")
    parser.add_argument("--alone-rounds", type=int, default=2, help="rounds that hold the lanes one by one as well")
    parser.add_argument("--parts", choices=PARTS, nargs="*", default=list(PARTS))
    parser.add_argument("--no-copies", action="store_true", help="leave out the dense rows over copies of the context")
    parser.add_argument("--json", type=Path, help="file of all figures; parts that it holds are reported as well")
    parser.add_argument("--write", action="store_true", help=f"put the report into {PAGE.name}")
    options = parser.parse_args(arguments)
    if not 1 <= options.alone_rounds <= options.rounds:
        parser.error("--alone-rounds must be at least 1 and at most --rounds")
    if options.write and options.fast:
        parser.error("--write takes the real thing")
    sizes = FAST if options.fast else REAL
    torch.set_num_threads(1)
    figures = _begun(options.json, _about(sizes, options))
    if options.write and set(PARTS) - {*options.parts, *figures}:
        parser.error("--write takes all parts; those that --json FILE holds already need not be measured again")
    for part in (part for part in PARTS if part in options.parts):
        _tell(part)
        before = os.getloadavg()[0]
        figures[part] = _measure(part, sizes, options)
        date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M")
        figures["when"][part] = {"date": date, "load": [before, os.getloadavg()[0]]}
        if options.json:
            options.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    report = "\n".join(report_lines(figures))
    print(report)
    if options.write:
        write_block(PAGE, BLOCK, f"```\n{report}\n```")


def _begun(file: Path | None, about: dict[str, Any]) -> dict[str, Any]:
    """Go on with the figures of a file, if it was written for the same sizes, machine and versions."""
    if file is not None and file.exists():
        figures: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if figures["about"] != about:
            raise SystemExit(f"{file} holds figures of other conditions: {figures['about']}. Give another file.")
        return figures
    return {"about": about, "when": {}}


def _measure(part: str, sizes: Sizes, options: argparse.Namespace) -> Any:
    if part == "lanes":
        adapter = create_adapter(sizes.model)
        with endless(adapter):
            sweep = Sweep(adapter, context_of(adapter, sizes.tokens), sizes.new_tokens, BUDGET_BYTES)
            copied = not options.no_copies
            return lanes_figures(measure_lanes(sweep, options.rounds, options.alone_rounds, copied, _tell))
    if part == "memory":
        given = (sizes.model, sizes.memory_tokens, sizes.new_tokens)
        return {arm: measure_memory(arm, *given) for arm in ("lanes", DENSE)}
    if part == "own":
        return measure_own(sizes.config, sizes.prompt, sizes.examples)
    if part == "plan":
        return measure_plan(sizes.config, sizes.points)
    return _run_workers_test()


def _run_workers_test() -> dict[str, Any]:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", WORKERS_TEST]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).strip().splitlines()
    return {"test": WORKERS_TEST, "passed": done.returncode == 0, "said": lines[-1] if lines else ""}


def _about(sizes: Sizes, options: argparse.Namespace) -> dict[str, Any]:
    machine = hardware()
    return {
        "machine": f"{machine['platform']}, {machine['cpu']}, {machine['cores_usable']} cores, "
        f"{torch.backends.cpu.get_cpu_capability()}",
        "versions": ", ".join(
            f"{name} {package_version(name)}" for name in ("torch", "transformers", "hydra-core", "numpy")
        ),
        "python": sys.version.split()[0],
        "fast": options.fast,
        "model": sizes.model,
        "tokens": sizes.tokens,
        "memory_tokens": sizes.memory_tokens,
        "new_tokens": sizes.new_tokens,
        "rounds": options.rounds,
        "alone_rounds": options.alone_rounds,
    }


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
