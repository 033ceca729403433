"""The same command goes on where the last one stopped; a changed one starts its own rows."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sah.results.rows import PredictionRow
from sah.results.store import PointStore
from tests.integration.conftest import Work
from tests.integration.running import (
    ROOT,
    arguments,
    dense_of,
    files_under,
    lines,
    outcomes,
    run,
    sparse_of,
    stored,
)

KILLED = ("masker=topk", "dataset.num_examples=4", "generation.max_new_tokens=12")
"""8 rows: 4 dense and 4 sparse."""


def rows_on_disk(folder: Path) -> int:
    """Count the whole lines of all points, of both kinds."""
    files = [path for name in ("predictions", "fidelity") for path in folder.glob(f"points/*/{name}.jsonl")]
    return sum(path.read_bytes().count(b"\n") for path in files)


def check_against(undisturbed: Path, resumed: Path) -> None:
    """Compare what two output folders hold, times apart."""
    before, after = stored(undisturbed), stored(resumed)
    assert before.keys() == after.keys()
    for key, point in before.items():
        written = [f"{row['example_key']}:{row['question_index']}" for row in lines(after[key])]
        assert written == list(point.predictions), "no row is lost, none is there twice"
        assert outcomes(after[key]) == outcomes(point)
        assert after[key].scores == point.scores
        if point.label != "dense":
            assert after[key].metrics is not None and point.metrics is not None
            assert after[key].metrics["comparison"]["scores"] == point.metrics["comparison"]["scores"]


def test_a_finished_run_computes_nothing(work: Work) -> None:
    first = run("masker=topk")
    assert first.code == 0, first.text
    before = {path.parent.name: path.read_bytes() for path in Path().rglob("predictions.jsonl")}
    metrics = sparse_of().metrics
    work.clear()
    again = run("masker=topk")
    assert again.code == 0, again.text
    assert work.counts == (0, 0, 0)
    assert {path.parent.name: path.read_bytes() for path in Path().rglob("predictions.jsonl")} == before
    assert sparse_of().metrics == metrics
    assert [line for line in again.out.splitlines() if line.split()[:1] == ["topk"]] == [
        line for line in first.out.splitlines() if line.split()[:1] == ["topk"]
    ]


def test_more_examples_add_rows_and_change_none(work: Work) -> None:
    assert run("masker=topk", "dataset.num_examples=2").code == 0
    before = {path: path.read_bytes() for path in Path("outputs/points").rglob("predictions.jsonl")}
    work.clear()
    assert run("masker=topk", "dataset.num_examples=5").code == 0
    assert work.counts == (3, 3, 3)
    assert len(stored()) == 2
    for path, content in before.items():
        assert path.read_bytes().startswith(content)
        assert path.read_bytes().count(b"\n") == 5
    metrics = sparse_of().metrics
    assert metrics is not None
    assert metrics["sparse"]["rows"] == metrics["dense"]["rows"] == 5


def test_fewer_examples_aggregate_only_those(work: Work) -> None:
    assert run("masker=topk", "dataset.num_examples=3").code == 0
    work.clear()
    done = run("masker=topk", "dataset.num_examples=1")
    assert done.code == 0
    assert work.counts == (0, 0, 0)
    metrics = sparse_of().metrics
    assert metrics is not None
    assert metrics["comparison"]["scores"]["string_match_all"]["pairs"] == 1
    assert len(lines(sparse_of())) == 3


@pytest.mark.slow
def test_dense_rows_are_computed_once_for_all_recipes(work: Work) -> None:
    assert run("masker=topk").code == 0
    dense = dense_of()
    content = (dense.folder / "predictions.jsonl").read_bytes()
    work.clear()
    for others in (["masker=random"], ["density=0.3"], ["execution=research"]):
        done = run(*others)
        assert done.code == 0, done.text
    assert work.counts[1:] == (0, 6)
    assert (dense_of().folder / "predictions.jsonl").read_bytes() == content


def test_ctrl_c_keeps_what_is_finished_and_says_so(monkeypatch: pytest.MonkeyPatch, work: Work) -> None:
    calls = 0
    append = PointStore.append

    def interrupted(self: PointStore, row: PredictionRow) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        append(self, row)

    monkeypatch.setattr(PointStore, "append", interrupted)
    done = run("masker=topk", "output_dir=resumed")
    assert done.code == 130
    assert "same command" in done.text
    assert "Traceback" not in done.text
    assert rows_on_disk(Path("resumed")) == 3
    work.clear()
    assert run("masker=topk", "output_dir=resumed").code == 0
    assert work.counts[1:] == (0, 1)
    assert run("masker=topk", "output_dir=undisturbed").code == 0
    check_against(Path("undisturbed"), Path("resumed"))


@pytest.mark.parametrize("keep", [1, -30, -1])
def test_a_last_line_cut_short_is_computed_again(work: Work, keep: int) -> None:
    assert run("masker=topk").code == 0
    shutil.copytree("outputs", "undisturbed")
    path = sparse_of().folder / "predictions.jsonl"
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second[:keep])
    work.clear()
    done = run("masker=topk")
    assert done.code == 0, done.text
    # Only the newline is missing in the last case: the row itself is whole.
    assert work.counts[1:] == ((0, 0) if keep == -1 else (0, 1))
    check_against(Path("undisturbed"), Path("outputs"))
    if keep not in (0, -1):
        assert "cut short" in done.text


def test_lost_scores_and_metrics_are_made_again(work: Work) -> None:
    assert run("masker=topk").code == 0
    shutil.copytree("outputs", "undisturbed")
    for name in ("scores.jsonl", "metrics.json", "provenance.json"):
        for path in Path("outputs").rglob(name):
            path.unlink()
    work.clear()
    assert run("masker=topk").code == 0
    assert work.counts == (0, 0, 0)
    check_against(Path("undisturbed"), Path("outputs"))


def test_another_metric_is_scored_without_computing(work: Work) -> None:
    assert run("masker=topk").code == 0
    before = files_under(Path("outputs/points"))
    work.clear()
    done = run("masker=topk", "dataset.metrics=[token_f1]")
    assert done.code == 0, done.text
    assert work.counts == (0, 0, 0)
    assert "token_f1" in done.out
    after = files_under(Path("outputs/points"))
    assert before.keys() == after.keys()
    predictions = [name for name in before if name.endswith("predictions.jsonl")]
    assert [before[name] for name in predictions] == [after[name] for name in predictions]


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_as_if_undisturbed(work: Work) -> None:
    """A process forks one run after another and kills each with SIGKILL at a seeded moment."""
    assert run(*KILLED, "output_dir=undisturbed").code == 0
    moments = [(0, 0.0), (1, 0.01), (4, 0.03), (7, 0.0), (8, 0.01)]
    script = Path(__file__).with_name("kill_forked_runs.py")
    done = subprocess.run(
        [sys.executable, str(script), json.dumps(moments), *arguments(*KILLED)],
        capture_output=True,
        text=True,
        timeout=180,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    kills = 0
    for number, (killed, rows) in enumerate(said):
        folder = Path(f"killed-{number}")
        kills += killed
        assert rows >= moments[number][0]
        work.clear()
        resumed = run(*KILLED, f"output_dir={folder}")
        assert resumed.code == 0, resumed.text
        assert sum(work.counts[1:]) == 8 - rows
        check_against(Path("undisturbed"), folder)
    assert kills >= 3, said


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 4, 11])
def test_a_killed_sweep_on_the_command_line_resumes(rows: int) -> None:
    command = arguments("-m", "masker=topk,random", "density=0.05,0.1", "dataset.num_examples=3")
    whole = [sys.executable, "-m", "sah.run", *command]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert run(*command, "output_dir=undisturbed").code == 0
    process = subprocess.Popen(whole, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while rows_on_disk(Path("outputs")) < rows and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert rows_on_disk(Path("outputs")) >= rows
    again = subprocess.run(whole, env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert again.returncode == 0, again.stderr
    check_against(Path("undisturbed"), Path("outputs"))


@pytest.mark.slow
def test_two_processes_share_dense_rows() -> None:
    """Two recipes on the same examples, started together: each dense answer is computed once."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "sah.run", *arguments(f"masker={masker}", "dataset.num_examples=6")],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for masker in ("topk", "random")
    ]
    for process in processes:
        _, errors = process.communicate(timeout=180)
        assert process.returncode == 0, errors
    for masker in ("topk", "random"):
        assert run(f"masker={masker}", "dataset.num_examples=6", "output_dir=undisturbed").code == 0
    check_against(Path("undisturbed"), Path("outputs"))
