"""`backend=ray`: real actors on one machine. Each test starts processes that import torch, so all are slow."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from sah.config.launcher import RayOptions
from sah.errors import WorkerError
from sah.runners.workers.ray import RayWorkers
from tests.integration.groups import SETTINGS, run_settings
from tests.integration.running import lines, stored
from tests.integration.same_rows import check_same_rows
from tests.support.processes import descendants

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]

SWEEP = tuple(
    (*setting, "dataset.num_examples=4", "generation.max_new_tokens=8", "fidelity=true") for setting in SETTINGS
)


def rows_on_disk(folder: str) -> int:
    """Count the whole lines of all points."""
    return sum(path.read_bytes().count(b"\n") for path in Path(folder).glob("points/*/predictions.jsonl"))


def actors() -> list[int]:
    """The actors' processes that are at work."""
    return [pid for pid, command in descendants(os.getpid()).items() if command.startswith("ray::Actor.answer")]


@contextmanager
def killer(rows: int, folder: str, most: int) -> Iterator[list[int]]:
    """Kill actors at work as soon as so many rows are on disk, one after another; yields the killed ones."""
    killed: list[int] = []
    stop = threading.Event()

    def kill() -> None:
        while not stop.is_set() and len(killed) < most:
            if rows_on_disk(folder) >= rows:
                for pid in [pid for pid in actors() if pid not in killed][:1]:
                    if not rows:
                        time.sleep(0.5)  # it is to be at work
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                        killed.append(pid)
            time.sleep(0.01)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        stop.set()
        thread.join()


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rows of this process."""
    folder = tmp_path_factory.mktemp("local")
    run_settings(*SWEEP, folder=folder)
    return folder


def test_two_workers_give_the_rows_of_this_process(local: Path) -> None:
    run_settings(*SWEEP, folder="ray", workers=RayWorkers(2, 0, RayOptions()))
    check_same_rows(local, Path("ray"))
    assert descendants(os.getpid()) and not actors(), "actors end with their group"


def test_a_killed_actor_costs_only_its_unfinished_rows(local: Path, caplog: pytest.LogCaptureFixture) -> None:
    with killer(6, "ray", most=1) as killed:
        run_settings(*SWEEP, folder="ray", workers=RayWorkers(2, 1, RayOptions()))
    assert len(killed) == 1
    assert "died over context" in caplog.text or "died before it began" in caplog.text
    check_same_rows(local, Path("ray"))


def test_a_context_that_no_actor_survives_is_told_and_tried_by_the_same_command(
    caplog: pytest.LogCaptureFixture,
) -> None:
    setting = ("masker=topk", "dataset.num_examples=1", "generation.max_new_tokens=600")
    with killer(0, "ray", most=2) as killed:
        run_settings(setting, folder="ray", workers=RayWorkers(1, 1, RayOptions()))
    assert len(killed) == 2
    assert "is given up, 2 rows are missing" in caplog.text
    for point in stored(Path("ray")).values():
        (row,) = point.predictions.values()
        assert row.status == "model_failed" and "hydra.launcher.retries=1" in (row.error or "")
    run_settings(setting, folder="ray", workers=RayWorkers(1, 1, RayOptions()))
    for point in stored(Path("ray")).values():
        assert [row["status"] for row in lines(point)] == ["model_failed", "ok"]


@pytest.mark.parametrize(
    ("workers", "options", "told"),
    [
        (1, RayOptions(num_gpus=1), ["hydra.launcher.ray.num_gpus=1", "GPU", "num_gpus=0"]),
        (1, RayOptions(num_cpus=64), ["hydra.launcher.ray.num_cpus=64", "at most 2", "num_cpus=2"]),
        (3, RayOptions(num_cpus=1), ["hydra.launcher.workers=3", "at most 2", "hydra.launcher.workers=2"]),
    ],
)
def test_what_the_cluster_does_not_have_is_told_at_once(workers: int, options: RayOptions, told: list[str]) -> None:
    with pytest.raises(WorkerError) as refused:
        run_settings(SETTINGS[0], workers=RayWorkers(workers, 0, options))
    assert all(text in str(refused.value) for text in told), refused.value
    assert rows_on_disk("outputs") == 0


def test_the_log_of_actors_reaches_the_user_and_more_of_them_than_processors_share_these(
    caplog: pytest.LogCaptureFixture,
) -> None:
    run_settings(("masker=topk", "generation.max_new_tokens=9000"), workers=RayWorkers(3, 0, RayOptions()))
    assert "window is 8192" in caplog.text
    assert rows_on_disk("outputs") == 4
