"""sah's own time in a sweep, beyond the model's: runs `python -m sah.run -m` in this process and prints a line of JSON.

    python -m benchmarks.sweep_own [--model llama] [--length 2048] [--examples 4]

The sweep has the ten settings of `benchmarks.sweep_lanes` as presets in a folder of its own. A sweep of a tiny model
goes before it, so that imports are not counted. The model's time is that of loading its weights and of its calls
(prefills, questions, tokens, with what attention does in them); all else is ours.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from typing import Any
from unittest import mock

from hydra.core.global_hydra import GlobalHydra

from benchmarks.sweep_lanes import SETTINGS

ROOT = Path(__file__).resolve().parents[1]
PRESETS = {
    "dense": "[dense]",
    "topk_2": "[topk]\ndensity: 0.02",
    "topk_5": "[topk]\ndensity: 0.05",
    "topk_10": "[topk]\ndensity: 0.1",
    "quest_5": "[quest]\ndensity: 0.05",
    "quest_10": "[quest]\ndensity: 0.1",
    "streaming_llm_10": "[streaming_llm]\ndensity: 0.1",
    "random_10": "[random]\ndensity: 0.1",
    "topp": "[topp]\nmasker: {topp: {top_p: 0.9}}",
    "adaptive": "[sink,local,topk,adaptive]\nmasker: {topk: {heavy_size: 0.05}}",
}
"""The settings as the command line has them, in the same order."""

PARTS = {
    "composing and checking": ("sah.runners.launcher", "compose_jobs"),
    "the plan": ("sah.runners.plan", "make_plan"),
    "a group's rows": ("sah.runners.group", "run_group"),
    "scores and records of jobs": ("sah.runners.job", "run_job"),
}
"""Where our time goes, by the functions that are timed; what is left is Hydra's and the tables'."""

Seconds = tuple[float, float]
"""CPU and wall seconds."""


class Clock:
    """Adds up the time of the model, and of parts of the sweep without it."""

    def __init__(self) -> None:
        self.spent: dict[str, Seconds] = {}
        self._begun: list[Seconds] = []
        self.reset()

    def reset(self) -> None:
        """Forget all times."""
        self.spent.update(dict.fromkeys(("whole", "load", "calls", *PARTS), (0.0, 0.0)))

    def add(self, name: str, seconds: Seconds) -> None:
        """Add to a name's time."""
        self.spent[name] = plus(self.spent[name], seconds)

    def model(self) -> Seconds:
        """Return the model's time so far."""
        return plus(self.spent["load"], self.spent["calls"])

    def begin(self, *_: object) -> None:
        """Begin a call of the model."""
        self._begun.append(now())

    def end(self, *_: object) -> None:
        """End it."""
        self.add("calls", minus(now(), self._begun.pop()))

    def loading(self, load: Callable[..., None]) -> Callable[..., None]:
        """Wrap what makes an adapter: takes its time, and then that of the model's calls, if it has weights."""

        def make(adapter: Any, *args: Any, **kwargs: Any) -> None:
            begun = now()
            load(adapter, *args, **kwargs)
            if adapter.model.device.type != "meta":
                self.add("load", minus(now(), begun))
                adapter.model.register_forward_pre_hook(self.begin)
                adapter.model.register_forward_hook(self.end)

        return make

    def part(self, name: str, run: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a part of the sweep: takes its time less the model's."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            begun, model = now(), self.model()
            try:
                return run(*args, **kwargs)
            finally:
                self.add(name, minus(minus(now(), begun), minus(self.model(), model)))

        return timed

    @contextmanager
    def running(self) -> Iterator[None]:
        """Take the time of everything that is named inside the `with` block."""
        from sah.adapters.huggingface import ModelAdapterHF

        with ExitStack() as stack:
            stack.enter_context(mock.patch.object(ModelAdapterHF, "__init__", self.loading(ModelAdapterHF.__init__)))
            for name, (module, function) in PARTS.items():
                owner = importlib.import_module(module)
                timed = self.part(name, getattr(owner, function))
                stack.enter_context(mock.patch.object(owner, function, timed))
            yield


def now() -> Seconds:
    """Read both clocks."""
    return time.process_time(), time.perf_counter()


def plus(one: Seconds, other: Seconds) -> Seconds:
    """Add times."""
    return one[0] + other[0], one[1] + other[1]


def minus(one: Seconds, other: Seconds) -> Seconds:
    """Subtract times."""
    return one[0] - other[0], one[1] - other[1]


def main() -> None:
    """Run the sweep and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="llama", help="a file of conf/model")
    parser.add_argument("--length", type=int, default=2048, help="tokens of a prompt")
    parser.add_argument("--examples", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_presets(folder / "conf" / "experiment")
        sweep = [f"model={options.model}", f"dataset.length={options.length}"]
        clock = Clock()
        with clock.running():
            run_sweep(folder, "imports", ["model=tiny", "dataset.length=512", "dataset.num_examples=1"])
            clock.reset()
            begun = now()
            run_sweep(folder, "sweep", [*sweep, f"dataset.num_examples={options.examples}"])
            clock.add("whole", minus(now(), begun))
        rows = [
            json.loads(line)
            for path in (folder / "sweep" / "points").glob("*/predictions.jsonl")
            for line in path.read_text(encoding="utf-8").splitlines()
        ]
    failed = [row for row in rows if row["status"] != "ok"]
    if failed or len(rows) != len(SETTINGS) * options.examples:
        raise SystemExit(f"The sweep has {len(rows)} answers, of which {len(failed)} failed.")
    print(json.dumps({"answers": len(rows), "spent": clock.spent}))


def write_presets(folder: Path) -> None:
    """Write the settings as presets of an experiment group."""
    folder.mkdir(parents=True)
    for name, recipe in PRESETS.items():
        masker, _, values = recipe.partition("\n")
        text = f"# @package _global_\ndefaults:\n  - override /masker: {masker}\n  - _self_\n{values}\n"
        (folder / f"setting_{name}.yaml").write_text(text, encoding="utf-8")


def run_sweep(folder: Path, output: str, overrides: list[str]) -> None:
    """Run the sweep of all presets in this process.

    Raises:
        SystemExit: If a point failed.
    """
    from sah.run import main as run

    presets = ",".join(f"setting_{name}" for name in PRESETS)
    command = ["sah", "-m", f"hydra.searchpath=[file://{folder / 'conf'}]", f"+experiment={presets}"]
    # What is measured beside the answers has benchmarks of its own.
    bare = ["fidelity=false", "report=false", "tracker=none"]
    common = ["hydra/launcher=grouped", "dataset=niah", *bare, f"output_dir={folder / output}"]
    GlobalHydra.instance().clear()
    with mock.patch.object(sys, "argv", [*command, *common, *overrides]):
        run()


def measure_own(model: str, length: int, examples: int) -> dict[str, Any]:
    """Run the sweep in a fresh process.

    Args:
        model: A file of conf/model.
        length: Tokens of a prompt.
        examples: Contexts.

    Returns:
        `answers`, and `spent`: CPU and wall seconds of the `whole`, of the model's `load` and `calls`, and of `PARTS`.

    Raises:
        SystemExit: If it failed.
    """
    command = [sys.executable, "-m", "benchmarks.sweep_own", "--model", model]
    command += ["--length", str(length), "--examples", str(examples)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(
            f"{done.stdout[-2000:]}{done.stderr[-4000:]}\n"
            f"The process that runs the sweep ended with {done.returncode} (what it said is above)."
        )
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def measure_plan(model: str, points: int) -> dict[str, Any]:
    """Time `python -m sah.plan` for a sweep of four methods, its start and imports included.

    Args:
        model: A file of conf/model.
        points: Points of the sweep, a multiple of four.

    Returns:
        `points`, and `seconds`: CPU and wall.

    Raises:
        SystemExit: If it failed.
    """
    densities = ",".join(f"{0.001 * (number + 1):.3f}" for number in range(points // 4))
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "sah.plan", "masker=topk,quest,streaming_llm,random", f"density={densities}"]
        command += [f"model={model}", "dataset=niah", "tracker=none", f"output_dir={folder}"]
        before, begun = getrusage(RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        wall, after = time.perf_counter() - begun, getrusage(RUSAGE_CHILDREN)
    if done.returncode or done.stdout.count("masker=") != points:
        raise SystemExit(f"{done.stdout[-2000:]}{done.stderr[-4000:]}\nThe plan failed (above).")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"points": points, "seconds": (cpu, wall)}


if __name__ == "__main__":
    main()
