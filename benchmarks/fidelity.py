"""What reading the dense answers costs beside answering: `fidelity=true`, with and without attention errors.

    python -m benchmarks.fidelity [--fast] [--rounds 3] [--write]

The settings, questions and context of `benchmarks.sweep`: ten settings, four questions, 2,048 tokens of prose, 16 new
tokens. One thread; arms run in turn, medians over rounds of CPU and wall seconds. `--fast` takes a tiny random
model: its figures mean nothing. `--write` puts the report into benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import datetime
import os
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.adapter import context_of
from benchmarks.sweep import BUDGET_BYTES, FAST, REAL
from benchmarks.sweep_lanes import SETTINGS, Spent, Sweep, endless
from experiments.study import write_block
from sah.adapters.factory import create_adapter
from sah.adapters.forced import Forced, ForcedLane, force_lanes
from sah.config.schema import ExperimentConfig
from sah.results.provenance import hardware, package_version

PAGE = Path(__file__).with_name("README.md")
RATE = float(ExperimentConfig.attention_error)
"""The default of `attention_error`."""


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--fast", action="store_true", help="a tiny random model; its figures mean nothing")
    parser.add_argument("--rounds", type=int, default=3, help="times that each arm runs")
    parser.add_argument("--write", action="store_true", help=f"put the report into {PAGE.name}")
    options = parser.parse_args(arguments)
    if options.write and options.fast:
        parser.error("--write takes the real thing")
    torch.set_num_threads(1)
    sizes = FAST if options.fast else REAL
    adapter = create_adapter(sizes.model)
    with endless(adapter):
        sweep = Sweep(adapter, context_of(adapter, sizes.tokens), sizes.new_tokens, BUDGET_BYTES)
        report = "\n".join(measure(sweep, sizes.model, options.rounds))
    print(report)
    if options.write:
        write_block(PAGE, "fidelity", f"```\n{report}\n```")


def measure(sweep: Sweep, model: str, rounds: int) -> Iterator[str]:
    """Time the arms in turn.

    Args:
        sweep: The lanes.
        model: What the model is called.
        rounds: Times that each arm runs.

    Yields:
        The report's lines.
    """
    arms = ("prefill", "answers", "reading", "comparing")
    spent = {name: Spent() for name in arms}
    run = sweep.together(list(SETTINGS), 2)
    for _ in range(rounds):
        with spent["prefill"].measure():
            sweep.adapter.prefill(sweep.context)
        run = sweep.together(list(SETTINGS))
        spent["answers"].cpu.append(run.cpu)
        spent["answers"].wall.append(run.wall)
        for name, rate in (("reading", 0.0), ("comparing", RATE)):
            lanes = forced_lanes(sweep, {n: a.token_ids for n, a in run.answers.items()}, rate)
            with spent[name].measure():
                found = list(force_lanes(sweep.adapter, sweep.cache, lanes, sweep.budget_bytes))
            failed = [outcome for _, outcome in found if not isinstance(outcome, Forced)]
            if failed:
                raise SystemExit(f"{len(failed)} readings failed, the first one: {failed[0]}")
    yield f"{hardware()['platform']}, torch {package_version('torch')}, one thread, float32"
    when = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M")
    yield f"{when} UTC, load of the machine {os.getloadavg()[0]:.1f}; {model}"
    yield f"{len(run.answers)} answers over a context of {sweep.cache.length:,} tokens; medians of {rounds} rounds"
    yield f"{'':66}{'CPU s':>9}{'wall s':>9}"
    told = {
        "prefill": "prefill",
        "answers": "all answers, dense and sparse, decoded together",
        "reading": "sparse settings read the dense answers",
        "comparing": f"the same, {RATE:.0%} of the queries compared with dense attention",
    }
    for name in arms:
        yield f"{told[name]:66}{spent[name].median:9.2f}{spent[name].median_wall:9.2f}"
    without = spent["prefill"].median + spent["answers"].median
    whole = without + spent["comparing"].median
    yield f"fidelity=true against fidelity=false, prefill in both: {whole / without:.2f}x"
    share = (spent["comparing"].median - spent["reading"].median) / whole
    yield f"share of the comparison with dense attention in the whole: {share:.1%}"


def forced_lanes(sweep: Sweep, ids: dict[int, list[int]], rate: float) -> list[ForcedLane]:
    """Make the lanes of all sparse settings over the dense answers, which come first among `ids`."""
    dense = {lane.question: ids[number] for number, lane in enumerate(sweep.lanes(list(SETTINGS))[:4])}
    return [
        ForcedLane(
            lane.adapter,
            tuple(sweep.adapter.prompts.question_ids(sweep.cache.prompt, lane.question)),
            tuple(dense[lane.question]),
            rate,
        )
        for lane in sweep.lanes([name for name in SETTINGS if SETTINGS[name]])
    ]


if __name__ == "__main__":
    main()
