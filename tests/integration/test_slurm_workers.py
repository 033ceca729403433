"""`backend=slurm` with submitit's local executor: real processes, which import torch, so all tests are slow."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from sah.config.launcher import SlurmOptions
from sah.runners.workers.slurm import SlurmWorkers
from tests.integration.groups import SETTINGS, run_settings
from tests.integration.running import run, stored
from tests.integration.same_rows import check_same_rows
from tests.support.processes import descendants

pytestmark = pytest.mark.slow

SWEEP = tuple(
    (*setting, "dataset.num_examples=3", "generation.max_new_tokens=8", "fidelity=true") for setting in SETTINGS
)
LOCAL = SlurmOptions(cluster="local")


def jobs() -> list[int]:
    """The processes that answer, without those that only wait for them."""
    return [pid for pid, command in descendants(os.getpid()).items() if "submitit.core._submit" in command]


def test_two_jobs_give_the_rows_of_this_process_also_when_one_is_killed(caplog: pytest.LogCaptureFixture) -> None:
    run_settings(*SWEEP, folder="local")
    killed: list[int] = []

    def kill_one() -> None:
        until = time.monotonic() + 120
        while not killed and time.monotonic() < until:
            if any(path.read_bytes().count(b'"row"') >= 3 for path in Path("slurm").glob("slurm/rows/*/*.jsonl")):
                for pid in jobs()[:1]:
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
            time.sleep(0.002)

    thread = threading.Thread(target=kill_one)
    thread.start()
    with caplog.at_level("INFO", "sah"):
        run_settings(*SWEEP, folder="slurm", workers=SlurmWorkers(2, 2, LOCAL))
    thread.join()
    assert len(killed) == 1
    check_same_rows(Path("local"), Path("slurm"))
    assert caplog.text.count(" contexts; its log is") >= 2
    assert not jobs(), "jobs end with their group"
    assert not list(Path("slurm/slurm/rows").iterdir()), "what was read is not kept"
    assert not list(Path("slurm/slurm/jobs").glob("*.pkl")), "nor are copies of the contexts"


def test_jobs_that_end_before_they_begin_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here since the jobs' Python does not find its modules. Nothing is computed in this process instead."""
    broken = Path("broken")
    broken.mkdir()
    (broken / "torch.py").write_text("raise ImportError('no torch on this node')\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(broken.resolve()))
    options = ("hydra.launcher.backend=slurm", "hydra.launcher.slurm.cluster=local", "hydra.launcher.retries=1")
    done = run("-m", "hydra/launcher=grouped", "masker=topk", *options)
    assert done.code == 1
    assert "2 times in a row a SLURM job died before it began" in done.text
    assert "no torch on this node" in done.text
    assert "Traceback" not in done.text
    assert all(not point.predictions for point in stored().values())
