"""Real wandb: offline runs read back from disk, online runs against an HTTP stand-in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.wandb_files import media, read_run
from tests.fakes.wandb_server import FakeWandbServer

pytest.importorskip("wandb")
CHILD = Path(__file__).with_name("log_one_run.py")
ROOT = Path(__file__).parents[3]
KEY = "x" * 40
RUN_ID = "0123456789abcdef"


@pytest.fixture
def server() -> Iterator[FakeWandbServer]:
    with FakeWandbServer() as fake:
        yield fake


def _log_runs(tmp_path: Path, mode: str, *arguments: str, **environment: str) -> tuple[list[dict[str, Any]], str]:
    """Run the child in a folder and home of its own; give what it printed, and its warnings."""
    work, home = tmp_path / "work", tmp_path / "home"
    work.mkdir(exist_ok=True)
    home.mkdir(exist_ok=True)
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "XDG_"))}
    done = subprocess.run(
        [sys.executable, str(CHILD), mode, str(tmp_path / "run"), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=work,
        env={**inherited, "HOME": str(home), "PYTHONPATH": str(ROOT), **environment},
    )
    assert done.returncode == 0, done.stderr
    assert list(work.iterdir()) == [], "nothing is written to the working folder"
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


@pytest.mark.slow
def test_an_offline_run_holds_everything_in_the_folder_given(tmp_path: Path) -> None:
    (said,), warnings = _log_runs(tmp_path, "auto")
    assert said["failure"] is None and warnings == ""
    assert str(tmp_path / "run") in said["location"] and "wandb sync" in said["location"]
    run = read_run(tmp_path / "run")
    assert (run.id, run.name, run.group, run.job_type, run.project) == (
        RUN_ID,
        "tiny topk",
        "sweep-1",
        "eval",
        "sah",
    )
    assert sorted(run.tags) == sorted(["topk", "t" * 64, "mine"])
    assert run.config == {"masker": {"topk": {"density": 0.1}}, "seed": 0, "labels": ["a", "b"]}
    assert run.summary["scores"] == {"dense": 1.0, "sparse": 0.5} and run.summary["density"] == 0.1
    assert run.exit_code == 0
    assert run.summary["score"] == 0.5 and run.summary["density_measured"] == 0.1
    assert run.axes == {"score": "density_measured", "density_measured": ""}
    content = media(tmp_path / "run", run, "predictions")
    assert content["columns"] == ["key", "prediction", "score", "token_ids"]
    assert content["data"] == [["a:0", "Zürich 7", 1.0, "[1, 2]"], ["b:0", "", None, "[]"]]
    assert media(tmp_path / "run", run, "curve")["data"][0]["y"] == [0.5]
    assert len(run.history) == 1 and run.history[0]["_step"] == 0
    assert run.artifact_types["results-sweep-1"] == "results"
    (kept,) = run.artifacts["results-sweep-1"].items()
    assert kept[0] == "points/a/rows.jsonl" and kept[1].read_text(encoding="utf-8") == "{}\n"
    copies = [path for files in run.artifacts.values() for path in files.values()]
    assert len(copies) == 2 and all(tmp_path / "run" in path.parents for path in copies)


def test_a_failed_run_is_marked_and_nothing_is_captured_beyond_the_results(tmp_path: Path) -> None:
    _log_runs(tmp_path, "offline", "failed")
    run = read_run(tmp_path / "run")
    assert run.exit_code == 1
    assert not run.kinds & {"stats", "output", "output_raw", "environment"}
    names = {path.name for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert not names & {"output.log", "requirements.txt", "wandb-metadata.json", CHILD.name}


def test_disabled_writes_nothing(tmp_path: Path) -> None:
    for mode, environment in (("disabled", {}), ("auto", {"WANDB_MODE": "disabled"})):
        (said,), warnings = _log_runs(tmp_path, mode, **environment)
        assert said == {"location": None, "failure": None} and warnings == ""
        assert not list((tmp_path / "run").rglob("*.wandb"))


@pytest.mark.parametrize("source", ["environment", pytest.param("netrc", marks=pytest.mark.slow)])
def test_auto_is_online_where_a_key_is_configured(tmp_path: Path, server: FakeWandbServer, source: str) -> None:
    environment = {"WANDB_BASE_URL": server.url}
    if source == "environment":
        environment["WANDB_API_KEY"] = KEY
    else:
        (tmp_path / "home").mkdir()
        netrc = tmp_path / "home" / ".netrc"
        netrc.write_text(f"machine {server.url.removeprefix('http://')}\n  login user\n  password {KEY}\n")
        netrc.chmod(0o600)
    (said,), _ = _log_runs(tmp_path, "auto", **environment)
    assert said == {"location": f"{server.url}/local/sah/runs/{RUN_ID}", "failure": None}
    run = server.runs[RUN_ID]
    assert (run["displayName"], run["groupName"], run["jobType"]) == ("tiny topk", "sweep-1", "eval")
    assert sorted(run["tags"]) == sorted(["topk", "t" * 64, "mine"])
    assert run["config"]["masker"]["value"] == {"topk": {"density": 0.1}}
    assert run["summary"]["scores"] == {"dense": 1.0, "sparse": 0.5}
    assert run["summary"]["predictions"]["nrows"] == 2 and run["exitcode"] == 0
    for name, of in (("predictions", "table"), ("curve", "plotly")):
        uploaded = json.loads(server.files[f"/upload/{RUN_ID}/{run['summary'][name]['path']}"])
        assert uploaded["data"][0][1 if of == "table" else "y"] == ("Zürich 7" if of == "table" else [0.5])
    assert server.artifacts["results-sweep-1"]["type"] == "results"
    assert server.artifacts["results-sweep-1"]["state"] == "COMMITTED"
    assert server.files["/upload/artifact/points/a/rows.jsonl"] == b"{}\n"
    declared = {metric["1"]: metric for metric in run["config"]["_wandb"]["value"]["m"]}
    assert set(declared) == {"score", "density_measured"} and "5" in declared["score"], "drawn over another metric"
    assert not [path for path in server.files if path.endswith(("output.log", "requirements.txt", ".py"))]
    assert server.unknown == []


def _told(server: FakeWandbServer) -> Any:
    """What the server knows of the run, without times and names that a client makes up."""
    run = server.runs[RUN_ID]
    history = [{key: _named(value) for key, value in row.items() if key[0] != "_"} for row in run["history"]]
    summary = {key: _named(value) for key, value in run["summary"].items() if key[0] != "_"}
    config = {key: value for key, value in run["config"].items() if key != "_wandb"}
    return history, summary, config, [run[key] for key in ("groupName", "jobType", "tags", "exitcode")]


def _named(value: Any) -> Any:
    return {k: v for k, v in value.items() if "artifact_path" not in k} if isinstance(value, dict) else value


@pytest.mark.slow
def test_a_resumed_point_is_the_same_run_online_and_by_sync(tmp_path: Path, server: FakeWandbServer) -> None:
    for _ in range(2):
        (said,), _ = _log_runs(tmp_path, "online", WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY)
        assert said["failure"] is None
    assert list(server.runs) == [RUN_ID] and len(server.runs[RUN_ID]["history"]) == 1
    assert server.unknown == []
    offline = tmp_path / "offline"
    offline.mkdir()
    for _ in range(2):
        _log_runs(offline, "offline")
        time.sleep(1.1)  # wandb names folders by the second
    folders = sorted((offline / "run" / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    with FakeWandbServer() as later:
        for _ in range(2):
            _sync(offline, folders, later)
        assert list(later.runs) == [RUN_ID] and later.unknown == []
        assert _told(later) == _told(server)
        names = {path for path in server.files if "media" in path or "artifact/points" in path}
        assert names and {path: server.files[path] for path in names} == {path: later.files[path] for path in names}


def _sync(home: Path, folders: list[Path], server: FakeWandbServer) -> None:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "XDG_"))}
    done = subprocess.run(
        [sys.executable, "-m", "wandb", "sync", *map(str, folders)],
        env={**inherited, "HOME": str(home), "WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_environment_may_ask_for_offline_although_a_key_is_there(tmp_path: Path, server: FakeWandbServer) -> None:
    environment = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}
    _log_runs(tmp_path, "auto", **environment)
    assert server.operations == [] and read_run(tmp_path / "run").exit_code == 0


@pytest.mark.slow
def test_a_refused_key_with_auto_keeps_this_and_later_runs_offline(tmp_path: Path) -> None:
    with FakeWandbServer(refuse_keys=True) as server:
        said, warnings = _log_runs(tmp_path, "auto", "again", WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY)
    assert [entry["failure"] for entry in said] == [None, None]
    assert all("wandb sync" in entry["location"] for entry in said)
    assert warnings.count("No online run on") == 1 and "refuses the API key" in warnings
    assert len(list((tmp_path / "run").glob("wandb/offline-run-*/run-*.wandb"))) == 2


def test_a_refused_key_with_online_is_a_warning_and_ends_nothing(tmp_path: Path) -> None:
    with FakeWandbServer(refuse_keys=True) as server:
        (said,), warnings = _log_runs(tmp_path, "online", WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY)
    assert said["location"] is None and "refuses the API key" in said["failure"]
    assert "wandb login --relogin" in said["failure"] and warnings.count("No result is lost") == 1


@pytest.mark.slow
def test_a_malformed_key_is_named(tmp_path: Path) -> None:
    (said,), warnings = _log_runs(tmp_path, "auto", WANDB_API_KEY="short")
    assert said["failure"] is None and "WANDB_API_KEY" in warnings and "kept offline" in warnings
    assert "short" not in warnings.replace("too short", "")


@pytest.mark.slow
def test_online_without_a_key_is_a_warning(tmp_path: Path) -> None:
    (said,), _ = _log_runs(tmp_path, "online", WANDB_BASE_URL="http://127.0.0.1:9")
    assert "No API key configured" in said["failure"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "breaks", [{"fails_from": "CreateArtifact"}, {"hangs_from": "CreateRunFiles"}], ids=["fails", "hangs"]
)
def test_a_server_that_breaks_midway_neither_blocks_nor_loses(tmp_path: Path, breaks: dict[str, Any]) -> None:
    with FakeWandbServer(**breaks) as server:
        began = time.monotonic()
        environment = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
        said, warnings = _log_runs(tmp_path, "auto", "impatient", "again", **environment)
        assert time.monotonic() - began < 60
    assert server.broken and [entry["failure"] for entry in said] == [None, None]
    assert warnings.count("did not take all of this run within 3 s") == 1 and "wandb sync" in warnings
    assert said[0]["location"].startswith("http") and "offline-run" in said[1]["location"], "later runs do not wait"
    run = read_run(tmp_path / "run", "run-*")
    assert run.summary["scores"] == {"dense": 1.0, "sparse": 0.5}
    assert run.history[-1]["predictions"]["nrows"] == 2


@pytest.mark.slow
def test_a_server_that_is_not_there_leads_to_an_offline_run(tmp_path: Path) -> None:
    environment = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": KEY}
    (said,), warnings = _log_runs(tmp_path, "auto", "impatient", **environment)
    assert said["failure"] is None and "No online run on http://127.0.0.1:9" in warnings
    assert read_run(tmp_path / "run").summary["density"] == 0.1
