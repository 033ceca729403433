"""`hydra/launcher=grouped`: everything checked first, one prefill a context, and Hydra's jobs as they always were."""

from __future__ import annotations

import errno
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sah.adapters import factory
from sah.results.lock import WriterLock
from tests.integration.conftest import Work
from tests.integration.running import ROOT, files_under, jobs, lines, outcomes, plan, run, stored

SWEEP = ("-m", "masker=topk,random", "density=0.05,0.1")
SMALL = ("-m", "masker=topk", "density=0.05,0.1")


def job_folders(folder: Path) -> dict[str, dict[str, Any]]:
    """Read what lies in the job folders of the only sweep: file names, and JSON without times and folders."""
    (sweep,) = (folder / "outputs/sweeps").glob("*/*")
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(sweep.glob("*/*")):
        content = json.loads(path.read_text(encoding="utf-8")) if path.suffix == ".json" else None
        if path.name == "job.json":
            content = {key: content[key] for key in ("status", "overrides", "point", "examples", "label")}
        found[str(path.relative_to(sweep))] = content
    return found


@pytest.mark.parametrize("launcher", ["basic", pytest.param("joblib", marks=pytest.mark.slow)])
def test_jobs_are_those_of_hydras_own_launchers(
    launcher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: Work
) -> None:
    options = []
    if launcher == "joblib":
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
        options = ["hydra.launcher.n_jobs=2"]
    done = {}
    for name, given in (("ours", []), ("theirs", [f"hydra/launcher={launcher}", *options])):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        done[name] = run(*SWEEP, *given)
        assert done[name].code == 0, done[name].text
        assert len(work.prefills) == 2, "one a context, for all points together"
    assert "to prefill" in done["ours"].err, "the plan is shown before the work"
    assert "Group 1 of 1: tiny-llama, niah, points: 4" in done["ours"].text
    assert "Group 1 of 1" not in done["theirs"].text
    (log,) = (tmp_path / "ours").glob("outputs/sweeps/*/*/sah.log")
    assert "Group 1 of 1" in log.read_text(encoding="utf-8")
    ours, theirs = job_folders(tmp_path / "ours"), job_folders(tmp_path / "theirs")
    assert ours == theirs
    assert [ours[f"{number}/job.json"]["overrides"][:2] for number in range(4)] == [
        ["masker=topk", "density=0.05"],
        ["masker=topk", "density=0.1"],
        ["masker=random", "density=0.05"],
        ["masker=random", "density=0.1"],
    ]
    points = [stored(tmp_path / name / "outputs") for name in ("ours", "theirs")]
    assert points[0].keys() == points[1].keys()
    for point in points[0]:
        here, there = (outcomes(found[point]) for found in points)
        assert {key: row[:3] for key, row in here.items()} == {key: row[:3] for key, row in there.items()}


def test_the_mistakes_of_all_points_are_told_together(work: Work) -> None:
    done = run("-m", "masker=topk,random,streaming_llm", "masker.topk.heavy_size=4", "density=0.1,2", "seed=1,-1")
    assert done.code == 1
    assert work.counts == (0, 0, 0)
    assert (jobs(), stored()) == ([], {})
    text = done.text
    assert "11 of 12 points cannot be run, so none was started" in text
    assert text.count("masker.topk.heavy_size is set, but the recipe has no masker 'topk'") == 1
    assert "In 8 points: 4 (masker=random density=0.1 seed=1)" in text and "and 5 more." in text
    assert text.count("density=2 is not allowed") == text.count("seed=-1 is not allowed") == 1
    assert "In 2 points: 1 (masker=topk density=0.1 seed=-1), 3 (masker=topk density=2 seed=-1)." in text
    assert "Traceback" not in text


def test_a_mistake_of_all_points_names_none(work: Work) -> None:
    done = run("-m", "masker=topk", "density=0.1,0.2", "execution=quick")
    assert done.code == 1
    assert "execution='quick' is not allowed" in done.text and "In all 2 points." in done.text
    assert work.counts == (0, 0, 0)


def test_what_does_not_fit_the_model_is_told_before_any_work(work: Work) -> None:
    done = run("-m", "masker=topk", "dense_layers=[],[7],[0]")
    assert done.code == 1
    assert work.counts == (0, 0, 0)
    assert jobs() == []
    assert "1 of 3 points cannot be run" in done.text and "dense_layers=[7]" in done.text


def test_data_that_cannot_be_had_refuse_the_sweep_once(work: Work) -> None:
    qa = ROOT / "tests/data/qa.jsonl"
    done = run("-m", "dataset=jsonl", f"dataset.path={qa},nowhere.jsonl", "masker=topk,random")
    assert done.code == 1
    assert "2 of 4 points cannot be run, so none was started" in done.text
    assert done.text.count("dataset.path=nowhere.jsonl does not exist") == 1
    assert "In 2 points: 2 (dataset.path=nowhere.jsonl masker=topk), 3 (dataset.path=nowhere.jsonl" in done.text
    assert work.counts == (0, 0, 0) and list(Path().iterdir()) == []


@pytest.mark.parametrize("launcher", ["grouped", "basic"])
def test_a_refused_sweep_leaves_no_folder(launcher: str) -> None:
    wrong = "density=0.1,2" if launcher == "grouped" else "masker.topk.nothing=1,2"
    given = ("-m", "masker=topk", wrong, f"hydra/launcher={launcher}")
    assert run(*given).code == 1
    assert list(Path().iterdir()) == []
    Path("outputs/sweeps").mkdir(parents=True)
    assert run(*given).code == 1
    assert list(Path("outputs").rglob("*")) == [Path("outputs/sweeps")], "what was there before stays"
    Path("mine/0").mkdir(parents=True)
    Path("mine/note.txt").write_text("kept")
    assert run(*given, "hydra.sweep.dir=mine").code == 1
    assert {path.name for path in Path("mine").iterdir()} == {"0", "note.txt", "multirun.yaml"}


def test_a_refused_search_leaves_no_folder() -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    done = run("+experiment=search_density", "density=2,3", "hydra.sweeper.n_trials=2")
    assert done.code == 1 and "density=" in done.text and "is not allowed" in done.text
    assert list(Path().iterdir()) == []


@pytest.mark.slow
def test_the_points_of_all_batches_are_checked_first(work: Work) -> None:
    done = run("-m", "masker=topk", "density=0.1,2", "hydra.sweeper.max_batch_size=1")
    assert done.code == 1
    assert work.counts == (0, 0, 0) and jobs() == []
    done = run("-m", "masker=topk", "density=0.1,0.2", "hydra.sweeper.max_batch_size=1")
    assert done.code == 0, done.text
    assert [record["overrides"][1] for record in jobs()] == ["density=0.1", "density=0.2"]


def test_mistakes_are_told_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom sah.run import main\nsys.argv = ['sah', '-m', 'masker=topk,random', 'density=2']\n"
        "try:\n    main()\nexcept SystemExit as ended:\n    print(ended.code, 'torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.split()[-2:] == ["1", "False"], done.stdout + done.stderr
    assert "density=2 is not allowed" in done.stderr


def test_a_model_that_cannot_be_had_stops_no_other() -> None:
    done = run("-m", "model.name=tiny:llama,./nowhere", "masker=topk")
    assert done.code == 1
    assert [record["status"] for record in jobs()] == ["ok", "failed"]
    assert "Not planned, left to its job" in done.text and "there is no such folder" in done.text


@pytest.mark.slow
def test_a_point_that_another_run_writes_stops_no_other(tmp_path: Path) -> None:
    folders = {}
    for line in plan(*SMALL).out.splitlines():
        words = line.split()
        if words[:1] and words[0].isdigit():
            folders[int(words[0])] = tmp_path / "outputs/points" / words[3]
    folders[1].mkdir(parents=True)
    lock = WriterLock(folders[1])
    lock.acquire()
    try:
        done = run(*SMALL)
    finally:
        lock.release()
    assert done.code == 1
    assert [record["status"] for record in jobs()] == ["ok", "failed"]
    assert "is being written by process" in done.text and "Traceback" not in done.text
    assert run(*SMALL).code == 0


def test_a_full_disk_ends_the_sweep_and_keeps_the_rows_before(monkeypatch: pytest.MonkeyPatch) -> None:
    import sah.results.files as files

    original, appended = files.write_all, itertools.count(1)

    def full(handle: int, data: bytes) -> None:
        if b'"prediction"' in data and data.endswith(b"}\n") and next(appended) > 3:
            original(handle, data[:20])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(handle, data)

    with monkeypatch.context() as patched:
        patched.setattr(files, "write_all", full)
        done = run(*SMALL)
    assert done.code == 1
    assert "No space left" in done.err and "same command" in done.err and "Traceback" not in done.text
    assert jobs() == [], "no job is tried on a full disk"
    before = [line for point in stored().values() for line in lines(point)]
    assert len(before) == 3
    assert run(*SMALL).code == 0
    after = [line for point in stored().values() for line in lines(point)]
    assert len(after) == 6 and all(line in after for line in before)


def test_a_finished_sweep_needs_no_weights(monkeypatch: pytest.MonkeyPatch, work: Work) -> None:
    assert run(*SMALL).code == 0
    before = files_under(Path("outputs/points"))
    work.clear()
    for name in ("_loaded", "_outlines"):
        monkeypatch.setattr(factory, name, {})
    monkeypatch.setattr(factory, "create_adapter", None)  # what loads weights
    done = run(*SMALL)
    assert done.code == 0, done.text
    assert "Nothing is left to compute" in done.err
    assert work.counts == (0, 0, 0) and files_under(Path("outputs/points")) == before


def test_equal_points_run_once_and_have_a_job_each() -> None:
    done = run("-m", "masker=topp", "density=0.1,0.2")
    assert done.code == 0, done.text
    assert "2 points, 1 of them equal to another one and run once" in done.text
    assert [record["status"] for record in jobs()] == ["ok", "ok"]
    assert sorted(len(lines(point)) for point in stored().values()) == [2, 2]


def test_one_point_in_two_folders_is_computed_in_both() -> None:
    done = run("-m", "masker=topk", "output_dir=first,second", "hydra.sweep.dir=jobs")
    assert done.code == 0, done.text
    first, second = (stored(Path(name)) for name in ("first", "second"))
    assert first.keys() == second.keys() and len(first) == 2
    for folder in (first, second):
        assert [len(lines(point)) for point in folder.values()] == [2, 2]
    for name, folder in (("first", first), ("second", second)):
        assert {point.config["output_dir"] for point in folder.values()} == {name}


def test_what_ends_a_point_in_one_folder_ends_it_in_no_other(tmp_path: Path) -> None:
    (words,) = (line.split() for line in plan("masker=topk").out.splitlines() if line.split()[:2] == ["0", "topk"])
    folder = tmp_path / "second/points" / words[3]
    folder.mkdir(parents=True)
    lock = WriterLock(folder)
    lock.acquire()
    try:
        done = run("-m", "masker=topk", "output_dir=first,second", "hydra.sweep.dir=outputs/sweeps/mine")
    finally:
        lock.release()
    assert done.code == 1 and "is being written by process" in done.text
    assert [record["status"] for record in jobs()] == ["ok", "failed"]


def test_secrets_are_hidden_although_nothing_runs() -> None:
    Path("mine").mkdir()
    token = "+model.tokenizer_kwargs.token=hf_of_mine"
    done = run("-m", "masker=topk", "density=0.1,2", token, "hydra.sweep.dir=mine")
    assert done.code == 1
    assert "hf_of_mine" not in done.text
    assert "hf_of_mine" not in Path("mine/multirun.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            "hydra.launcher.backend=cluster",
            "hydra.launcher.backend='cluster' is not allowed. Allowed: local, ray, slurm",
        ),
        ("hydra.launcher.workers=2", "1 with backend=local"),
        ("hydra.launcher.retries=-1", "hydra.launcher.retries=-1 is not allowed"),
        ("hydra.launcher.slurm.mem_gb=0", "hydra.launcher.slurm.mem_gb=0.0 is not allowed"),
        ("hydra.launcher.ray.address=foo", "hydra.launcher.ray.address='foo' is not allowed. Allowed: null or local"),
        ("hydra.launcher.ray.address=ten:x1", "HOST:PORT of a cluster's head. Write for example: hydra.launcher.ray"),
        ("hydra.launcher.worker=2", "hydra.launcher.worker is not a key of hydra.launcher. Allowed: backend, ray"),
    ],
)
def test_a_wrong_option_of_the_launcher_is_told(given: str, expected: str, work: Work) -> None:
    done = run("-m", "masker=topk", given)
    assert done.code == 1
    assert expected in done.text and "Traceback" not in done.text
    assert work.counts == (0, 0, 0)


def test_a_preset_may_choose_another_launcher(tmp_path: Path) -> None:
    (tmp_path / "mine/experiment").mkdir(parents=True)
    preset = "# @package _global_\ndefaults:\n  - override /hydra/launcher: basic\n"
    (tmp_path / "mine/experiment/own.yaml").write_text(preset, encoding="utf-8")
    done = run("--config-dir", "mine", "-m", "+experiment=own", "masker=topk")
    assert done.code == 0, done.text
    assert "Launching 1 jobs locally" in done.text and "Group 1 of 1" not in done.text


@pytest.mark.slow
def test_the_trials_of_a_search_ride_on_the_same_contexts(work: Work) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    sweeper = ["hydra/sweeper=optuna", "hydra/sweeper/sampler=random"]
    options = [f"hydra.sweeper.{given}" for given in ("n_trials=4", "n_jobs=2", "direction=maximize")]
    done = run("-m", *sweeper, *options, "masker=choice(topk,random)", "density=interval(0.05,0.3)")
    assert done.code == 0, done.text
    assert [record["status"] for record in jobs()] == ["ok"] * 4
    assert len(work.prefills) == 2
