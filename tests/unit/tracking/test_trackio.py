"""Real trackio without a network, read back from its SQLite file and its folder of files."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trackio")
CHILD = Path(__file__).with_name("log_one_run.py")
ROOT = Path(__file__).parents[3]
NAME = "tiny topk 0123456789abcdef"


def _log_run(tmp_path: Path, *arguments: str, **environment: str) -> tuple[dict[str, Any], str]:
    """Run the child with a store of its own; give what it printed, and its warnings."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("TRACKIO_", "HF_"))}
    inherited |= {"HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT), "TRACKIO_DIR": str(tmp_path / "store")}
    done = subprocess.run(
        [sys.executable, str(CHILD), "trackio", str(tmp_path / "run"), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env=inherited | environment,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def _rows(tmp_path: Path, query: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(tmp_path / "store" / "mine.db") as store:
        return store.execute(query).fetchall()


@pytest.mark.slow
def test_a_run_told_twice_is_there_once_with_everything(tmp_path: Path) -> None:
    for _ in range(2):
        said, warnings = _log_run(tmp_path)
        assert said["failure"] is None and warnings == ""
        assert str(tmp_path / "store") in said["location"] and "trackio show --project mine" in said["location"]
    ((name, step, written),) = _rows(tmp_path, "SELECT run_name, step, metrics FROM metrics")
    assert (name, step) == (NAME, 0)
    metrics = json.loads(written)
    assert (metrics["score"], metrics["density_measured"], metrics["density"]) == (0.5, 0.1, 0.1)
    table = metrics["predictions"]["_value"]
    assert table[0] == {"key": "a:0", "prediction": "Zürich 7", "score": 1.0, "token_ids": "[1, 2]"}
    ((name, written),) = _rows(tmp_path, "SELECT run_name, config FROM configs")
    config = json.loads(written)
    assert name == NAME and config["masker"] == {"topk": {"density": 0.1}} and config["_Group"] == "sweep-1"
    assert (config["run_id"], config["job_type"], config["failed"]) == ("0123456789abcdef", "eval", False)
    assert config["tags"] == ["topk", "t" * 80] and config["summary"] == {"scores": {"dense": 1.0, "sparse": 0.5}}
    assert _rows(tmp_path, "SELECT name, type FROM artifacts") == [("results-sweep-1", "results")]
    assert _rows(tmp_path, "SELECT version FROM artifact_versions") == [(0,)], "equal files are no new version"
    blobs = [path.read_bytes() for path in (tmp_path / "store" / "artifacts").rglob("*") if path.is_file()]
    assert b"{}\n" in blobs
    assert not list((tmp_path / "store").rglob("*.html")), "a point's figures are in the page of its sweep"
    assert not _rows(tmp_path, "SELECT * FROM system_metrics")


@pytest.mark.slow
def test_a_sweep_has_its_figures_on_a_page_that_needs_no_network(tmp_path: Path) -> None:
    said, _ = _log_run(tmp_path, "sweep", "failed")
    assert said["failure"] is None
    (page,) = (tmp_path / "store" / "media").rglob("*.html")
    text = page.read_text(encoding="utf-8")
    assert text.count("Plotly.newPlot(") >= 1 and "<script src" not in text and len(text) > 1_000_000
    ((written,),) = _rows(tmp_path, "SELECT config FROM configs")
    assert json.loads(written)["failed"] is True


@pytest.mark.slow
def test_a_store_that_cannot_be_written_is_one_warning(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("no folder", encoding="utf-8")
    said, warnings = _log_run(tmp_path)
    assert "Not a directory" in said["failure"]
    assert warnings.count("The tracker 'trackio' failed") == 1 and "No result is lost" in warnings


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from sah.errors import ConfigError
    from sah.tracking.base import RunInfo
    from sah.tracking.trackio_config import TrackioConfig

    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(ConfigError, match=r"pip install 'sah\[trackio\]'"):
        TrackioConfig().create().start(RunInfo("id", "name", Path("unused")))
