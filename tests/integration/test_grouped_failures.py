"""A disk that fills up and a folder that becomes read-only while a whole sweep runs as a group."""

from __future__ import annotations

import errno
import itertools
import os
from pathlib import Path
from typing import Any

import pytest

import sah.results.files as files
from sah.adapters.huggingface import ModelAdapterHF
from sah.errors import WorkerError
from sah.runners.job import JobContext, run_experiment
from sah.runners.session import Session
from tests.integration.conftest import Work
from tests.integration.groups import experiments, run_settings
from tests.integration.running import files_under, jobs, run, stored
from tests.integration.same_rows import check_same_rows

SWEEP = ("-m", "hydra/launcher=grouped", "masker=topk,random", "density=0.1")
"""6 rows: 2 contexts, dense and 2 settings."""


def rows() -> dict[str, bytes]:
    """The content of every point's rows."""
    return {path.parent.name: path.read_bytes() for path in Path("outputs/points").rglob("predictions.jsonl")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same sweep without a failure."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert run(*SWEEP, f"output_dir={folder}").code == 0
    return folder


def finish(expected_before: dict[str, bytes], undisturbed: Path) -> None:
    """Run the same command again, and compare with an undisturbed run; what was there stays in place."""
    done = run(*SWEEP)
    assert done.code == 0, done.text
    for name, content in expected_before.items():
        assert rows()[name].startswith(content)
    check_same_rows(undisturbed, Path("outputs"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "everything"), [(errno.ENOSPC, False), (errno.EROFS, True)], ids=["full", "read-only"]
)
def test_a_disk_that_takes_no_more_ends_the_sweep(
    code: int, everything: bool, undisturbed: Path, monkeypatch: pytest.MonkeyPatch, work: Work
) -> None:
    """From the fourth row on nothing can be written; in one of the cases small files still can."""
    original, appended = files.write_all, itertools.count(1)
    failing = False

    def refusing(handle: int, data: bytes) -> None:
        nonlocal failing
        is_row = b'"prediction"' in data and data.startswith(b'{"schema_version"')
        failing = failing or (is_row and next(appended) == 4)
        if failing and (is_row or everything):
            if is_row:
                original(handle, data[:20])
            raise OSError(code, os.strerror(code))
        original(handle, data)

    with monkeypatch.context() as patched:
        patched.setattr(files, "write_all", refusing)
        done = run(*SWEEP)
    assert done.code == 1
    assert os.strerror(code) in done.text and "same command" in done.text and "output_dir=" in done.text
    assert "Traceback" not in done.text
    before = rows()
    assert sum(content.count(b"\n") for content in before.values()) == 3
    assert len(work.prefills) <= 2, "no job tries alone what the group could not write"
    for name, content in before.items():
        assert len(stored()[name].predictions) == content.count(b"\n"), "every row is whole"
    finish(before, undisturbed)


def test_a_point_that_may_not_be_written_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another run's lock is another matter: here permission is missing, and the other point goes on."""
    assert run(*SWEEP).code == 0
    (folder,) = (point.folder for point in stored().values() if point.label == "topk")
    (folder / "predictions.jsonl").write_bytes(b"")
    real_open = os.open

    def refusing(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if os.path.abspath(os.fspath(path)).startswith(str(folder.resolve())) and flags & (os.O_WRONLY | os.O_RDWR):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real_open(path, flags, *rest, **more)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refusing)
        done = run(*SWEEP)
    assert done.code == 1
    assert [record["status"] for record in jobs()[-2:]] == ["failed", "ok"]
    assert f"Could not lock {folder.resolve()}: Permission denied" in done.text.replace("\n", " ")
    assert "permissions there" in done.text and "output_dir=PATH" in done.text
    assert "is being written" not in done.text and "Traceback" not in done.text


def test_a_dense_baseline_that_fails_is_tried_once(monkeypatch: pytest.MonkeyPatch, work: Work) -> None:
    check_fits = ModelAdapterHF.check_fits

    def defective(self: ModelAdapterHF, *given: Any) -> None:
        if self.sparse_attention_config is None:
            raise KeyError("a defect")
        check_fits(self, *given)

    monkeypatch.setattr(ModelAdapterHF, "check_fits", defective)
    done = run(*SWEEP)
    assert done.code == 1
    assert [record["status"] for record in jobs()] == ["failed", "failed"]
    assert all("a defect" in record["error"] for record in jobs())
    assert len(work.prefills) == 2, "no job tries again what its group could not do"
    alone = run("masker=topk", "density=0.1", "output_dir=alone")
    assert alone.code == 1 and "a defect" in alone.text, "without its baseline a point is not complete"


def test_what_other_processes_left_out_is_not_computed_here(work: Work) -> None:
    (experiment,) = experiments(("masker=topk",))
    for backend in ("ray", "slurm"):
        with pytest.raises(WorkerError, match=f"hydra.launcher.backend={backend} did not give them"):
            run_experiment(experiment, JobContext(Path(), sweep="mine", backend=backend), Session(), {})
    assert work.counts == (0, 0, 0) and not Path("outputs").exists()
    run_settings(("masker=topk",))
    _, metrics, _ = run_experiment(experiment, JobContext(Path(), sweep="mine", backend="ray"), Session(), {})
    assert metrics["sparse"]["decode_kv_bytes"] > 0


def test_points_in_a_read_only_folder_stay_as_they_are(undisturbed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(*SWEEP[:-2], "masker=topk").code == 0
    before = files_under(Path("outputs/points"))
    points = str(Path("outputs/points").resolve())
    real_open, real_mkdir = os.open, Path.mkdir

    def read_only(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if os.path.abspath(os.fspath(path)).startswith(points) and flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        return real_open(path, flags, *rest, **more)

    def no_folder(self: Path, *given: Any, **more: Any) -> None:
        if str(self.absolute()).startswith(points) and not self.exists():
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))
        real_mkdir(self, *given, **more)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", read_only)
        patched.setattr(Path, "mkdir", no_folder)
        done = run(*SWEEP)
    assert done.code == 1
    assert "Read-only file system" in done.text and "output_dir=" in done.text
    assert "Traceback" not in done.text
    assert files_under(Path("outputs/points")) == before
    finish(rows(), undisturbed)
