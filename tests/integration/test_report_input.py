"""`python -m sah.report` on folders in every state: what can be read is reported, the rest is named."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report_folder import Sweep, make_sweep
from sah.report.local import main
from sah.report.records import read_records
from sah.runners.records import clear_records
from sah.terminal.show import main as show
from tests.integration.running import run

SWEEP = Sweep(methods=2, densities=(0.05, 0.1), lengths=(512, 1024), contexts=4)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    return make_sweep(tmp_path / "outputs", SWEEP)


@pytest.fixture(autouse=True)
def no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take seconds, and are looked at elsewhere."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)


def index(folder: Path) -> dict[str, Any]:
    text = (folder / "report" / "data" / "index.js").read_text()
    found: dict[str, Any] = json.loads(text[text.index(",") + 1 : text.rindex(")")])
    return found


def point_of(folder: Path, place: int) -> Path:
    """Folder of the point of a job."""
    return Path(json.loads((folder / str(place) / "job.json").read_text())["folder"])


def told(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    return " ".join((captured.out + captured.err).split())


def test_a_sweep(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(sweep)]) == 0
    assert told(capsys) == f"Report of {SWEEP.points} points: {sweep / 'report' / 'index.html'}"
    found = index(sweep)
    assert [section["slug"] for section in found["sections"]] == ["g1", "g2", "n1"]
    assert {len(section["points"]) for section in found["sections"][:2]} == {SWEEP.points // 2}
    assert found["problems"] == []


@pytest.mark.parametrize("kind", ["job", "point", "output folder"])
def test_other_folders(sweep: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    folders = {"job": sweep / "0", "point": point_of(sweep, 0), "output folder": sweep.parents[2]}
    assert main([str(folders[kind])]) == 0
    found = index(folders[kind])
    count = sum(len(section["points"]) for section in found["sections"])
    assert count == (SWEEP.points + len(SWEEP.lengths) if kind == "output folder" else 1)
    assert found["problems"] == []


def test_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nowhere")]) == 1
    assert "nowhere is no folder. Give one that sah wrote to, e.g. outputs" in told(capsys)


def test_an_empty_folder_gets_no_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 1
    assert f"{tmp_path} holds no results" in told(capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_above_sweeps_names_them(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(sweep.parents[1])]) == 1
    assert str(sweep) in told(capsys)


def test_one_bad_folder_does_not_stop_the_others(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "nowhere"), str(sweep)]) == 1
    assert (sweep / "report" / "index.html").is_file()
    with pytest.raises(SystemExit) as ended:
        main([str(sweep), str(sweep / "0"), "--output", str(tmp_path / "there")])
    assert ended.value.code == 2


def cut_metrics(point: Path) -> None:
    text = (point / "metrics.json").read_text()
    (point / "metrics.json").write_text(text[: len(text) // 2])


def break_row(point: Path) -> None:
    lines = (point / "predictions.jsonl").read_text().splitlines()
    (point / "predictions.jsonl").write_text("\n".join(["{broken", *lines[1:]]) + "\n")


def other_version(point: Path) -> None:
    stored = json.loads((point / "point.json").read_text())
    (point / "point.json").write_text(json.dumps({**stored, "schema_version": 99}))


def no_metrics(point: Path) -> None:
    (point / "metrics.json").unlink()


def other_metrics(point: Path) -> None:
    (point / "metrics.json").write_text('{"metrics": ["f1"], "label": "topk"}')


def changed(path: Path, change: Any) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def no_queries(metrics: dict[str, Any]) -> None:
    heads = metrics["sparse"]["attention_by_head"]
    heads["rows"] = [0] * len(heads["rows"])


def no_number(metrics: dict[str, Any]) -> None:
    metrics["comparison"]["scores"]["string_match_all"]["difference"] = "0.5"


def nothing_compared(point: Path) -> None:
    changed(point / "metrics.json", no_queries)


def text_for_a_number(point: Path) -> None:
    changed(point / "metrics.json", no_number)


def no_identity(point: Path) -> None:
    changed(point / "point.json", lambda stored: stored.update(identity="lost"))


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (nothing_compared, "metrics.json cannot be read (ZeroDivisionError"),
        (text_for_a_number, "metrics.json cannot be read (TypeError: difference is '0.5')"),
        (no_identity, "point.json is damaged"),
        (cut_metrics, "metrics.json"),
        (no_metrics, "its run did not end"),
        (other_metrics, "another version of sah wrote them, or they are damaged"),
        (break_row, "predictions.jsonl"),
        (other_version, "schema_version 99"),
    ],
)
def test_a_damaged_point_is_named_and_the_rest_reported(
    sweep: Path, damage: Any, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    point = point_of(sweep, 0)
    damage(point)
    outputs = sweep.parents[2]
    assert main([str(outputs)]) == 0
    found = index(outputs)
    assert sum(len(section["points"]) for section in found["sections"]) == SWEEP.points + len(SWEEP.lengths) - 1
    assert any(problem in line and point.name in line for line in found["problems"]), found["problems"]
    assert problem in told(capsys)


def test_a_last_row_cut_short_is_left_out(sweep: Path) -> None:
    rows = point_of(sweep, 0) / "predictions.jsonl"
    rows.write_bytes(rows.read_bytes()[:-20])
    assert main([str(sweep)]) == 0
    text = (sweep / "report" / "data" / "p0.js").read_text()
    shown = json.loads(text[text.index(",") + 1 : text.rindex(")")])["rows"]
    assert [row["sparse"] is None for row in shown] == [False] * (SWEEP.contexts - 1) + [True]


def test_a_record_that_cannot_be_read(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (sweep / "1" / "job.json").write_text('{"status": ')
    assert main([str(sweep)]) == 0
    assert any("job.json" in problem for problem in index(sweep)["problems"])


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda record: no_queries(record["metrics"]), "ZeroDivisionError"),
        (lambda record: no_number(record["metrics"]), "difference is '0.5'"),
        (lambda record: record.pop("point"), "KeyError: 'point'"),
        (lambda record: record.pop("folder"), "KeyError: 'folder'"),
        (lambda record: record.update(metrics=[1]), "TypeError"),
        (lambda record: record.update(questions=3), "questions is no list of texts"),
        (lambda record: record.update(overrides=[1]), "overrides is no list of texts"),
    ],
)
@pytest.mark.parametrize("command", ["report", "show"])
def test_a_damaged_record_is_named_and_the_rest_reported(
    sweep: Path, damage: Any, problem: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    changed(sweep / "1" / "job.json", damage)
    if command == "show":
        assert show([str(sweep), "--json"]) == 0
        [found] = json.loads(capsys.readouterr().out)
        assert len(found["points"]) == SWEEP.points - 1
    else:
        assert main([str(sweep)]) == 0
        found = index(sweep)
        assert sum(len(section["points"]) for section in found["sections"]) == SWEEP.points - 1
    [line] = found["problems"]
    assert str(sweep / "1" / "job.json") in line and problem in line


def test_a_job_that_did_not_end(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (sweep / "1" / "job.json").rename(sweep / "1" / "config.json")
    (sweep / "77").mkdir()
    assert main([str(sweep)]) == 0
    found = index(sweep)
    assert found["problems"] == [f"Job 1 of {sweep} did not end: run the same command again."]
    assert found["problems"][0] in told(capsys)


def test_a_shorter_sweep_in_the_same_folder_tells_of_no_unended_job(sweep: Path) -> None:
    (sweep / "1" / "config.json").write_text("{}")
    clear_records(sweep)
    problems: list[str] = []
    assert read_records(sweep, problems) == [] and problems == []


def test_an_output_folder_that_moved(sweep: Path, tmp_path: Path) -> None:
    sweep.parents[2].rename(tmp_path / "elsewhere")
    moved = tmp_path / "elsewhere" / "sweeps" / sweep.parent.name / sweep.name
    assert main([str(moved)]) == 0
    found = index(moved)
    assert found["problems"] == []
    assert sum(len(section["points"]) for section in found["sections"]) == SWEEP.points
    text = (moved / "report" / "data" / "p0.js").read_text()
    shown = json.loads(text[text.index(",") + 1 : text.rindex(")")])
    assert shown["folder"].startswith(str(tmp_path / "elsewhere" / "points")) and shown["dense_folder"] is not None


def test_a_sweep_whose_points_lie_elsewhere(sweep: Path, tmp_path: Path) -> None:
    sweep.rename(tmp_path / "alone")
    assert main([str(tmp_path / "alone")]) == 0
    found = index(tmp_path / "alone")
    assert found["problems"] == [] and sum(len(part["points"]) for part in found["sections"]) == SWEEP.points


def test_a_missing_point_of_a_sweep(sweep: Path) -> None:
    gone = point_of(sweep, 0)
    shutil.rmtree(gone)
    assert main([str(sweep)]) == 0
    found = index(sweep)
    assert any(gone.name in problem for problem in found["problems"])
    assert sum(len(section["points"]) for section in found["sections"]) == SWEEP.points - 1


def test_a_missing_dense_arm(sweep: Path) -> None:
    dense = json.loads((sweep / "0" / "job.json").read_text())["metrics"]["dense_point"]
    shutil.rmtree(sweep.parents[2] / "points" / dense)
    assert main([str(sweep)]) == 0
    found = index(sweep)
    [problem] = found["problems"]
    assert "dense arm" in problem and dense in problem
    text = (sweep / "report" / "data" / "p0.js").read_text()
    shown = json.loads(text[text.index(",") + 1 : text.rindex(")")])
    assert shown["dense_folder"] is None
    assert all(row["dense"] is None and row["sparse"] is not None for row in shown["rows"])
    [point] = [point for section in found["sections"] for point in section["points"] if point["place"] == 0]
    assert isinstance(point["cells"]["difference"], list)  # as it was stored


def test_failed_jobs_alone_are_reported(sweep: Path) -> None:
    for record in sweep.glob("*/job.json"):
        record.write_text('{"status": "failed", "overrides": ["masker=topk"], "error": "ModelError: no memory"}')
    assert main([str(sweep)]) == 0
    found = index(sweep)
    assert found["sections"] == []
    assert found["failures"] == [["masker=topk", "ModelError: no memory"]] * SWEEP.points


def test_a_file_in_the_way(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (sweep / "report").write_text("a file")
    assert main([str(sweep)]) == 1
    assert "Choose another folder with --output DIR" in told(capsys)
    assert (sweep / "report").read_text() == "a file"


@pytest.mark.slow
def test_the_command(sweep: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sah.report", str(sweep), "--output", str(tmp_path / "there")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "there" / "index.html").is_file()
    assert list((tmp_path / "there" / "figures").glob("*.png"))
    assert not (sweep / "report").exists()


@pytest.mark.slow
def test_a_sweep_ends_with_its_report(tmp_path: Path) -> None:
    done = run("-m", "masker=topk,random", "report=true", "hydra.sweep.dir=here")
    assert done.code == 0, done.text
    assert "Report: " in done.out
    assert sum(len(section["points"]) for section in index(tmp_path / "here")["sections"]) == 2
    again = run("-m", "masker=topk,random", "hydra.sweep.dir=there", "report=false")
    assert again.code == 0 and not (tmp_path / "there" / "report").exists()


@pytest.mark.slow
def test_a_report_that_fails_changes_no_sweep(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "report").write_text("a file")
    done = run("-m", "masker=topk,random", "report=true", "hydra.sweep.dir=here")
    assert done.code == 0, done.text
    assert done.err.count("was not written") == 1
    assert "python -m sah.report" in done.err
    assert "Its results are complete" in done.err
    assert (tmp_path / "here" / "table.md").is_file()
    assert all(json.loads((tmp_path / "here" / str(job) / "job.json").read_text())["status"] == "ok" for job in (0, 1))
