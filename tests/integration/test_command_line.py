"""`sah` and `python -m sah.run` as processes of their own, as a user starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.running import ROOT, arguments, files_under, sparse_of

CONSOLE = "import sys; sys.argv[0] = 'sah'; from sah.cli import main; main()"


def start(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command of this checkout in the working folder."""
    return subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        check=False,
    )


def sah(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the console script's function."""
    return start("-c", CONSOLE, *arguments)


def test_the_console_script_composes() -> None:
    done = sah("masker=topk", "--cfg", "job")
    assert done.returncode == 0, done.stderr
    assert "heavy_size: null" in done.stdout and "embedded:smollm2-135m-instruct" in done.stdout
    assert list(Path().iterdir()) == []


def test_the_console_script_helps() -> None:
    done = sah("--help")
    assert done.returncode == 0, done.stderr
    for expected in ("sah run", "sah fetch", "masker", "topk", "+experiment", "smoke"):
        assert expected in done.stdout
    assert list(Path().iterdir()) == []


@pytest.mark.slow
def test_fetch_makes_a_model_ready(tmp_path: Path) -> None:
    """The tiny model needs no network; a second time nothing is written."""
    environment = {"SAH_CACHE_DIR": str(tmp_path / "cache"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = start("-c", CONSOLE, "fetch", "tiny", **environment)
    assert done.returncode == 0, done.stderr
    before = files_under(tmp_path / "cache")
    assert any(name.endswith("config.json") for name in before)
    assert start("-c", CONSOLE, "fetch", "tiny", **environment).returncode == 0
    assert files_under(tmp_path / "cache") == before


@pytest.mark.slow
def test_no_secret_is_written_in_a_sweep_or_a_run() -> None:
    for flags in ((), ("-m",)):
        done = start("-m", "sah.run", *arguments(*flags, "masker=topk", "+model.model_kwargs.token=s3cr3t"))
        assert done.returncode == 0, done.stderr
    assert len(list(Path().rglob("multirun.yaml"))) == 1
    assert [path for path in Path().rglob("*") if path.is_file() and b"s3cr3t" in path.read_bytes()] == []


@pytest.mark.slow
def test_the_module_runs_from_any_folder() -> None:
    done = start("-m", "sah.run", *arguments("masker=topk", "tracker=wandb"))
    assert done.returncode == 0, done.stderr
    assert "difference" in done.stdout and "topk" in done.stdout
    assert "Traceback" not in done.stderr
    assert [path.name for path in Path().iterdir()] == ["outputs"]
    point = sparse_of()
    assert str(point.folder.absolute()) in done.stdout
    assert len(list(Path("outputs/runs").rglob(f"offline-run-*/run-{point.id}.wandb"))) == 1
    assert point.provenance is not None
    (first,) = point.provenance["runs"]
    assert "sah.run" in first["command"] and "masker=topk" in first["command"]


@pytest.mark.slow
def test_exit_codes_of_a_sweep() -> None:
    whole = start("-m", "sah.run", *arguments("-m", "masker=topk,random", "density=0.05,0.1"))
    assert whole.returncode == 0, whole.stderr
    partly = start("-m", "sah.run", *arguments("-m", "masker=topk,random", "density=0.05,2"))
    assert partly.returncode == 1
    assert "density=2 is not allowed" in partly.stderr
    assert "Traceback" not in partly.stderr + partly.stdout
