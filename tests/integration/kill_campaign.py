"""Kills sweeps with SIGKILL at seeded moments, repeats the same command, and compares the rows with undisturbed ones.

    python -m tests.integration.kill_campaign [--kills 200] [--seed 0]

A sweep of several kinds of methods on the tiny model is killed one to four times: its main process, or one of the
workers that compute for it (an actor of Ray, a job of submitit's local executor). After a dead main process the same
command is started again; a dead worker is the main process's own matter. In the end the command has run to its end
without a kill, and the rows must be those of a sweep that nobody disturbed, none lost, none twice.

Commands are forked from this process, which spares them the imports. Workers are processes of their own.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import sah.runners.job
import sah.runners.launcher
import sah.runners.plan  # noqa: F401
from sah.adapters.factory import load_adapter_cached
from sah.config.model import ModelConfig
from sah.run import main
from tests.integration.running import arguments
from tests.integration.same_rows import check_same_rows
from tests.support.processes import descendants

SWEEP = arguments(
    "-m",
    "hydra/launcher=grouped",
    "masker=topk,quest,random,[sink,adaptive]",
    "dataset.num_examples=4",
    "generation.max_new_tokens=8",
)
ROWS = 20
"""Of the sweep: four contexts, dense and four settings."""

WORKERS = ("hydra.launcher.workers=2", "hydra.launcher.retries=9")
BACKENDS = {
    "local": (),
    "slurm": ("hydra.launcher.backend=slurm", "hydra.launcher.slurm.cluster=local", *WORKERS),
    "ray": ("hydra.launcher.backend=ray", *WORKERS),
}
WORKER_TITLES = {"slurm": "submitit.core._submit", "ray": "ray::Actor"}
SHARES = {"slurm": 0.15, "ray": 0.15}
"""Shares of the kills; the rest is `local`."""

LONGEST_SECONDS = 180.0
"""A command that takes longer hangs."""

RAY = """
import sys, ray
print(ray.init(address="local", num_cpus=2, include_dashboard=False).address_info["address"], flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class Kill:
    """One kill: whom, after how many rows on disk, and how many seconds after that."""

    victim: str
    """`main` or `worker`."""
    rows: int
    delay: float


class Command:
    """One run of the sweep, in a forked process."""

    def __init__(self, folder: Path, backend: str, more: Sequence[str], log: Path) -> None:
        self.folder = folder
        self.backend = backend
        self.log = log
        self.code: int | None = None
        self.was_killed = False
        self._deadline = time.monotonic() + LONGEST_SECONDS
        given = ["sah", *SWEEP, *BACKENDS[backend], *more, f"output_dir={folder}"]
        self.pid = os.fork()
        if self.pid == 0:
            _become(given, log)

    @property
    def runs(self) -> bool:
        """Whether it is still there; raises if it should have ended."""
        if self.code is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self.code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > self._deadline:
                self.kill()
                raise RuntimeError(f"The command hung. Its log is {self.log}.")
        return self.code is None

    def kill(self) -> None:
        """Kill it and wait for its end."""
        os.kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        self.was_killed = True
        self.code = os.waitstatus_to_exitcode(status)

    def wait(self) -> None:
        """Let it end by itself; raises if it failed."""
        while self.runs:
            time.sleep(0.005)
        if self.code:
            raise RuntimeError(f"The command failed with {self.code}. Its log is {self.log}.")


def _become(given: list[str], log: Path) -> None:
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.argv = given
    code = 1
    try:
        main()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    finally:
        sys.stdout.flush()
        os._exit(code)


def rows_on_disk(folder: Path) -> int:
    """Count the whole lines of all points."""
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("points/*/predictions.jsonl"))


class Campaign:
    """Kills until there are enough."""

    def __init__(self, kills: int, seed: int, folder: Path) -> None:
        self.random = random.Random(seed)
        self.folder = folder
        self.done: Counter[str] = Counter()
        self.open = {backend: round(kills * share) for backend, share in SHARES.items()}
        self.open["local"] = kills - sum(self.open.values())
        self._more: dict[str, tuple[str, ...]] = {"local": (), "slurm": (), "ray": ()}

    def run(self) -> None:
        """Run all of it; raises at the first difference, whose folder stays."""
        undisturbed = self.folder / "undisturbed"
        Command(undisturbed, "local", (), self.folder / "undisturbed.log").wait()
        if rows_on_disk(undisturbed) != ROWS:
            raise RuntimeError(f"The undisturbed sweep has {rows_on_disk(undisturbed)} rows, not {ROWS}.")
        with contextlib.ExitStack() as stack:
            for number in range(10_000):
                left = [backend for backend, kills in self.open.items() if kills > 0]
                if not left:
                    break
                backend = self.random.choices(left, [self.open[name] for name in left])[0]
                if backend == "ray" and not self._more["ray"]:
                    self._more["ray"] = (f"hydra.launcher.ray.address={stack.enter_context(ray_cluster())}",)
                self._disturb(number, backend, undisturbed)
            for backend in BACKENDS:
                print(
                    f"{backend}: "
                    + ", ".join(
                        f"{self.done[backend, victim]} kills of the {victim}"
                        for victim in ("main", "worker")
                        if self.done[backend, victim]
                    )
                )

    def _disturb(self, number: int, backend: str, undisturbed: Path) -> None:
        folder, log = self.folder / f"sweep-{number}", self.folder / f"sweep-{number}.log"
        began = time.monotonic()
        told: list[str] = []
        command: Command | None = None
        for _ in range(min(self.random.randint(1, 4), self.open[backend])):
            kill = self._plan(backend)
            if command is None or not command.runs:
                command = Command(folder, backend, self._more[backend], log)
            hit = _strike(command, kill)
            if hit:
                self.done[backend, kill.victim] += 1
                self.open[backend] -= 1
            told.append(f"{kill.victim} at {kill.rows} rows + {kill.delay:.3f} s{'' if hit else ' (ended before)'}")
        if command is None or command.was_killed:
            command = Command(folder, backend, self._more[backend], log)
        command.wait()
        check_same_rows(undisturbed, folder)
        print(f"sweep {number}, {backend}: {'; '.join(told)}: same rows, {time.monotonic() - began:.1f} s", flush=True)
        shutil.rmtree(folder)

    def _plan(self, backend: str) -> Kill:
        draw = self.random
        if backend == "local":
            return Kill("main", draw.randint(0, ROWS), draw.uniform(0, 0.3))
        victim = draw.choice(("main", "worker", "worker"))
        # Workers take seconds to come up: many moments are to lie in that time, but not all.
        if draw.random() < 0.3:
            return Kill(victim, 0, draw.uniform(0, 8.0))
        return Kill(victim, draw.randint(1, ROWS - 1), draw.uniform(0, 0.1))


def _strike(command: Command, kill: Kill) -> bool:
    """Kill as planned; tell whether there was anything left to kill."""
    while command.runs and rows_on_disk(command.folder) < kill.rows:
        time.sleep(0.002)
    until = time.monotonic() + kill.delay
    while command.runs and time.monotonic() < until:
        time.sleep(0.001)
    if kill.victim == "main":
        if command.runs:
            command.kill()
            return True
        return False
    while command.runs:
        for pid, title in sorted(_workers(command)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                print(f"  killed {pid} ({title})", flush=True)
                return True
        time.sleep(0.005)
    return False


def _workers(command: Command) -> list[tuple[int, str]]:
    # Ray's actors come from the cluster's processes, which this process has started.
    root = os.getpid() if command.backend == "ray" else command.pid
    title = WORKER_TITLES[command.backend]
    return [(pid, found) for pid, found in descendants(root).items() if title in found]


@contextlib.contextmanager
def ray_cluster() -> Iterator[str]:
    """Start Ray in a process of its own and give its address; starting it for each command would take too long."""
    os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0")
    process = subprocess.Popen(
        [sys.executable, "-c", RAY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    if process.stdout is None or process.stdin is None:
        raise RuntimeError("no pipes")
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait(60)


def run_all() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    load_adapter_cached(ModelConfig(name="tiny:llama"))
    folder = Path(tempfile.mkdtemp(prefix="sah-kills-"))
    began = time.monotonic()
    Campaign(options.kills, options.seed, folder).run()
    shutil.rmtree(folder)
    print(
        f"{options.kills} kills, seed {options.seed}, {time.monotonic() - began:.0f} s: the rows of every sweep are "
        "those of the undisturbed one, none lost, none twice."
    )


if __name__ == "__main__":
    run_all()
