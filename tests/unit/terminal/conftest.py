"""Commands run in this process, and finished work for them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sah.terminal.command import run
from tests.support.finished import Work

NAME = "2026-11-22/10-00-00"
Sah = Callable[..., tuple[int, str, str]]


@pytest.fixture
def sah(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Sah:
    """A function from a command and its arguments to exit code, output and errors; works in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(name: str, *arguments: object) -> tuple[int, str, str]:
        code = run(name, [str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def work(tmp_path: Path) -> Work:
    """Writes finished work into `outputs`."""
    return Work(tmp_path / "outputs")


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished sweep in an output folder, written once."""
    work = Work(tmp_path_factory.mktemp("written") / "outputs")
    dense = [1.0] * 12
    ids = [
        work.sparse("topk", 0.1, [1.0] * 10 + [0.0] * 2, dense),
        work.sparse("topk", 0.2, dense, dense),
        work.sparse("random", 0.1, [0.0] * 12, dense),
        work.sparse("random", 0.2, [1.0, 1.0, 1.0] + [0.0] * 9, dense),
    ]
    work.sweep(NAME, ids, failed=[("masker=quest", "The page is [too] long.")])
    return work.root


@pytest.fixture
def sweep(written: Path, work: Work) -> Path:
    """A finished sweep of one's own: top-k keeps the score, random loses it; one job failed."""
    shutil.copytree(written, work.root)
    folder = work.root / "sweeps" / NAME
    for record in folder.glob("*/job.json"):
        record.write_text(record.read_text().replace(str(written), str(work.root)))
    return folder
