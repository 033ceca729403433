"""`python -m sah.report wandb FOLDER`: in files, and published to an HTTP stand-in of the server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.wandb_server import FakeWandbServer
from tests.integration.running import run

pytest.importorskip("wandb_workspaces")
KEY = "x" * 40


@pytest.fixture(autouse=True)
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home without credentials, and no W&B settings."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def sweep(*given: str) -> Path:
    """Run a small sweep; give its folder."""
    done = run("-m", "masker=topk,random", "density=0.1,0.3", "fidelity=true", *given)
    assert done.code == 0, done.text
    (folder,) = (path.parent for path in Path("outputs/sweeps").rglob("multirun.yaml"))
    return folder


def call(*command: str, server: FakeWandbServer | None = None) -> subprocess.CompletedProcess[str]:
    environment = {} if server is None else {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
    return subprocess.run(
        [sys.executable, "-m", *command],
        capture_output=True,
        text=True,
        timeout=180,
        env={**os.environ, **environment},
    )


def panels(spec: dict[str, Any]) -> list[dict[str, Any]]:
    grids = [block["metadata"] for block in spec["blocks"] if block["type"] == "panel-grid"]
    return [panel for grid in grids for panel in grid["panelBankSectionConfig"]["panels"]]


def words(spec: dict[str, Any]) -> str:
    return json.dumps([block for block in spec["blocks"] if block["type"] != "panel-grid"])


def chosen(spec: dict[str, Any]) -> dict[str, set[str]]:
    """Name of a run set to the ids of its runs."""
    grids = [block["metadata"] for block in spec["blocks"] if block["type"] == "panel-grid"]
    found: dict[str, set[str]] = {}
    for runs in (runs for grid in grids for runs in grid["runSets"]):
        (filtered,) = runs["filters"]["filters"]
        assert (filtered["key"], filtered["op"]) == ({"section": "run", "name": "name"}, "IN")
        found.setdefault(runs["name"], set()).update(filtered["value"])
    return found


def check_spec(spec: dict[str, Any], folder: Path) -> None:
    """Check that a report of the sweep has all its parts."""
    headings = [block["children"][0]["text"] for block in spec["blocks"] if block["type"] == "heading"]
    wanted = ["Verdicts", "Density curves", "What a score costs", "Scores by task", "Layers and heads"]
    assert [heading for heading in headings if heading in wanted] == wanted
    text = words(spec)
    for name in ("topk at density 0.1", "topk at density 0.3", "random at density 0.1", "random at density 0.3"):
        assert f"{name}: not enough data" in text
    assert "| model and data | setting |" in text and "| topk 0.1 | 0.000 [" in text
    assert "masker=random density=0.3" in text
    shown = panels(spec)
    kinds = {panel["viewType"] for panel in shown}
    assert {"Media Browser", "Scatter Plot", "Run Comparer", "Weave"} <= kinds
    media = [key for panel in shown if panel["viewType"] == "Media Browser" for key in panel["config"]["mediaKeys"]]
    assert {"density", "difference", "pareto-density", "pareto-bytes", "heads-output-error"} <= set(media)
    axes = [(p["config"]["xAxis"], p["config"]["yAxis"]) for p in shown if p["viewType"] == "Scatter Plot"]
    assert axes == [("summary:density_measured", "summary:score"), ("summary:decode_kv_bytes", "summary:score")]
    records = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*/job.json")]
    assert chosen(spec)["points"] == {record["point"] for record in records}


@pytest.mark.slow
def test_without_tracking_or_server_the_report_is_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    from sah.report.wandb_report import main

    folder = sweep()
    assert main([str(folder), "--offline", "--project", "mine"]) == 0
    told = capsys.readouterr().out
    assert "Not published (--offline)" in told and "tracker=wandb tracks it" in told
    assert f"wandb login && python -m sah.report wandb {folder}" in told
    written = json.loads((folder / "wandb_report" / "report.json").read_text(encoding="utf-8"))
    assert written["project"] == "mine" and "4 points, 0 failed" in written["description"]
    assert "topk at density 0.1: not enough data" in words(written["spec"])
    page = (folder / "wandb_report" / "report.html").read_text(encoding="utf-8")
    assert page.count("Plotly.newPlot(") >= 4 and "<script src" not in page and "What sets the runs apart" in page


@pytest.mark.slow
def test_offline_runs_uploaded_later_and_the_report_of_them() -> None:
    folder = sweep("tracker=wandb")
    done = call("sah.report", "wandb", str(folder))
    assert done.returncode == 0, done.stderr
    assert "Not published (no API key for" in done.stdout
    steps = done.stdout.partition("To publish it: ")[2].strip().split(" && ")
    assert [step.split()[:2] for step in steps] == [["wandb", "login"], ["wandb", "sync"], ["python", "-m"]]
    check_spec(json.loads((folder / "wandb_report" / "report.json").read_text(encoding="utf-8"))["spec"], folder)
    with FakeWandbServer() as server:
        early = call("sah.report", "wandb", str(folder), server=server)
        assert early.returncode == 0, early.stderr
        assert "5 of its runs are not uploaded yet: wandb sync" in early.stdout
        runs = [str(path) for pattern in steps[1].split()[2:] for path in Path().glob(pattern)]
        assert len(runs) == 5
        synced = call("wandb", "sync", *runs, server=server)
        assert synced.returncode == 0, synced.stderr
        done = call("sah.report", "wandb", str(folder), server=server)
        assert done.returncode == 0, done.stderr
        assert "not uploaded" not in done.stdout
        (report,) = server.reports.values()
        assert f"Published: {server.url}/local/sah/reports/" in done.stdout, "the second replaced the first"
        assert (report["entityName"], report["projectName"], report["type"]) == ("local", "sah", "runs")
        check_spec(report["spec"], folder)
        (summed,) = chosen(report["spec"])["sweep"]
        assert server.runs[summed]["jobType"] == "sweep"
        shown = {key for panel in panels(report["spec"]) for key in panel["config"].get("mediaKeys", [])}
        held = set(server.runs[summed]["summary"]) | {"heads-output-error"}
        assert shown <= held, "every figure that the report names is there"
        points = [server.runs[name] for name in chosen(report["spec"])["points"]]
        assert {run["groupName"] for run in points} == {server.runs[summed]["groupName"]}
        assert all("heads-output-error" in run["summary"] and "predictions" in run["summary"] for run in points)
        results = [name for name, artifact in server.artifacts.items() if artifact["type"] == "results"]
        assert len(results) == 1 and server.artifacts[results[0]]["state"] == "COMMITTED"
        assert server.unknown == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("server", "told"),
    [
        ({"refuse_keys": True}, "user is not logged in"),
        ({"fails_from": "upsertView"}, "did not respond in time"),
        ({"hangs_from": "upsertView"}, "did not respond in time"),
    ],
    ids=["refused", "fails", "hangs"],
)
def test_a_server_that_does_not_take_the_report(server: dict[str, Any], told: str) -> None:
    folder = sweep()
    with FakeWandbServer(**server) as fake:
        done = call("sah.report", "wandb", str(folder), server=fake)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"{fake.url} did not take the report" in done.stderr and told in done.stderr
    assert "To publish it: wandb login && python -m sah.report wandb" in done.stderr
    assert (folder / "wandb_report" / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    "breaks", [{"refuse_keys": True}, {"fails_from": "CreateRunFiles"}], ids=["refused", "fails midway"]
)
def test_a_sweep_goes_on_where_the_server_does_not(breaks: dict[str, Any]) -> None:
    given = ["model=tiny", "masker=topk", "density=0.1,0.3", "dataset.length=512", "dataset.num_examples=2"]
    with FakeWandbServer(**breaks) as server:
        timeouts = ["wandb.start_timeout=5", "wandb.finish_timeout=3", "tracker=wandb"]
        done = call("sah.run", "-m", *given, *timeouts, server=server)
    assert done.returncode == 0, done.stdout + done.stderr
    told = " ".join((done.stdout + done.stderr).split())
    warning = "refuses the API key" if "refuse_keys" in breaks else "did not take all of this run"
    assert told.count(warning) == 1 and "Traceback" not in told
    records = [json.loads(path.read_text(encoding="utf-8")) for path in Path("outputs/sweeps").rglob("job.json")]
    assert [record["status"] for record in records] == ["ok", "ok"]
    assert len(list(Path("outputs/sweeps").rglob("offline-run-*"))) >= 2, "the rest is kept offline"


@pytest.mark.slow
def test_a_sweep_whose_run_never_began_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    folder = sweep("tracker=wandb")
    note = json.loads((folder / "tracking.json").read_text(encoding="utf-8"))
    assert note["tracker"] == "wandb" and "run" not in note and note["location"] is None


def test_a_folder_without_results_and_a_missing_package(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sah.report.wandb_report import main

    assert main([str(tmp_path)]) == 1
    assert "holds no results" in " ".join(capsys.readouterr().err.split())
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    assert main([str(tmp_path)]) == 1
    assert "pip install 'sah[reports]'" in " ".join(capsys.readouterr().err.split())
