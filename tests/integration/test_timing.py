"""`timing=true`: what it leaves, what it shows, and what it leaves alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import sah.runners.timing as runner
from benchmarks import decode
from sah.results.store import StoredPoint
from tests.fakes.wandb_files import read_run
from tests.integration.conftest import Work
from tests.integration.running import Outcome, dense_of, jobs, outcomes, run, sparse_of, stored

PARTS = {"token", "attention", "selection", "rest"}


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rounds of what takes three."""
    time_decoding = runner.time_decoding
    monkeypatch.setattr(
        runner,
        "time_decoding",
        lambda *given, **more: time_decoding(*given, **more, new_tokens=3, rounds=2),
    )


def timing_of(point: StoredPoint) -> dict[str, Any]:
    """Read a point's timed run, which is the same in its file and in its metrics."""
    content: dict[str, Any] = json.loads((point.folder / "timing.json").read_text(encoding="utf-8"))
    assert point.metrics is not None
    assert point.metrics["timing"] == content
    return content


def line_of(done: Outcome, label: str) -> list[str]:
    """The words of a point's line in the table."""
    (line,) = (line.split() for line in done.out.splitlines() if line.split()[:1] == [label])
    return line


def test_a_timed_point_stores_and_shows_its_times() -> None:
    done = run("masker=quest", "density=0.2", "timing=true", "dataset.num_examples=3")
    assert done.code == 0, done.text
    point = sparse_of()
    timing = timing_of(point)
    assert set(timing["arms"]) == {"own", "grouped", "sparse"}
    assert timing["best_dense"] == min(("own", "grouped"), key=lambda form: timing["arms"][form]["wall"]["token"])
    assert (timing["label"], timing["threads"], timing["device"], timing["own_attention"]) == (
        "quest",
        1,
        "cpu",
        "sdpa",
    )
    assert [entry["example_key"] for entry in timing["examples"]] == [
        row.example_key for row in list(point.predictions.values())[:2]
    ]
    assert {row.run for row in point.predictions.values()} == {timing["run"]}
    for name, mean in timing["arms"].items():
        of_examples = [entry["arms"][name] for entry in timing["examples"]]
        for clock in ("wall", "cpu"):
            assert set(mean[clock]) == PARTS
            for part, value in mean[clock].items():
                assert value == pytest.approx(sum(arm[clock][part] for arm in of_examples) / 2)
    assert timing["arms"]["sparse"]["density"] == pytest.approx(0.2, abs=0.01)
    best = timing["arms"][timing["best_dense"]]["wall"]["token"]
    shown = [
        f"{best:.1f}",
        f"({timing['best_dense']})",
        "/",
        f"{timing['arms']['sparse']['wall']['token']:.1f}",
        "timed",
    ]
    assert line_of(done, "quest")[-5:] == shown
    assert "quest 0.2: " in done.text and "best dense form" in done.text
    assert not (dense_of().folder / "timing.json").exists()


def test_timing_changes_no_row_and_no_identity() -> None:
    assert run("masker=topk", "output_dir=plain").code == 0
    assert run("masker=topk", "output_dir=timed", "timing=true").code == 0
    plain, timed = stored(Path("plain")), stored(Path("timed"))
    assert plain.keys() == timed.keys()
    for name, point in plain.items():
        assert outcomes(timed[name]) == outcomes(point)
        assert timed[name].scores == point.scores


def test_a_finished_point_is_only_timed(work: Work) -> None:
    assert run("masker=topk").code == 0
    rows = {path: path.read_bytes() for path in Path("outputs").rglob("predictions.jsonl")}
    work.clear()
    done = run("masker=topk", "timing=true")
    assert done.code == 0, done.text
    assert work.counts == (0, 0, 0)
    assert {path: path.read_bytes() for path in Path("outputs").rglob("predictions.jsonl")} == rows
    first = timing_of(sparse_of())
    provenance = sparse_of().provenance
    assert provenance is not None
    assert ["timing=true" in entry["overrides"] for entry in provenance["runs"]] == [False, True]
    # A later command without it keeps the figures, one with it replaces them.
    again = run("masker=topk")
    assert timing_of(sparse_of()) == first
    assert line_of(again, "topk")[-1] == "timed"
    assert run("masker=topk", "timing=true").code == 0
    assert timing_of(sparse_of())["run"] != first["run"]


def test_a_dense_point_times_both_dense_forms() -> None:
    done = run("masker=dense", "timing=true")
    assert done.code == 0, done.text
    timing = timing_of(dense_of())
    assert set(timing["arms"]) == {"own", "grouped"}
    assert line_of(done, "dense")[-3:] == ["/", "-", "timed"]
    assert "is the faster dense form" in done.text
    # The dense point keeps its own when a sparse one runs on the same examples.
    assert run("masker=topk").code == 0
    assert timing_of(dense_of()) == timing
    metrics = sparse_of().metrics
    assert metrics is not None and "timing" not in metrics


def test_a_sweep_times_every_point() -> None:
    done = run("-m", "masker=topk,dense", "timing=true")
    assert done.code == 0, done.text
    assert {timing_of(point)["label"] for point in stored().values()} == {"topk", "dense"}
    assert all(line_of(done, label)[-1] == "timed" for label in ("topk", "dense"))
    (page,) = Path("outputs/sweeps").rglob("table.md")
    assert page.read_text(encoding="utf-8").count(" timed |") == 2


def test_the_tracker_is_told() -> None:
    pytest.importorskip("wandb")
    assert run("masker=topk", "timing=true", "tracker=wandb").code == 0
    (folder,) = (path.parent for path in Path("outputs/runs").rglob("job.json"))
    summary = read_run(folder).summary
    timing = timing_of(sparse_of())
    assert summary["detail"]["timing"]["arms"]["sparse"]["wall"] == timing["arms"]["sparse"]["wall"]
    assert summary["timed"]["dense_form"] == timing["best_dense"]


def test_a_failing_timed_run_is_an_error_that_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: object, **more: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(runner, "time_decoding", fail)
    done = run("masker=topk", "timing=true")
    assert done.code == 1
    assert "The timed run failed: out of memory" in done.text
    assert "Traceback" not in done.text
    point = sparse_of()
    assert [row.status for row in point.predictions.values()] == ["ok", "ok"]
    assert len(point.scores) == 2
    assert point.metrics is not None and "timing" not in point.metrics
    assert jobs()[-1]["status"] == "failed"


def test_timing_is_true_or_false() -> None:
    done = run("masker=topk", "timing=maybe")
    assert done.code == 1
    assert "timing" in done.text and "true or false" in done.text
    assert not Path("outputs/points").exists()


def test_the_benchmark_reports_every_arm(capsys: pytest.CaptureFixture[str]) -> None:
    decode.main(["--model", "tiny:llama", "--tokens", "400", "--new-tokens", "2", "--repeats", "1", "--density", "0.1"])
    title, columns, *lines = capsys.readouterr().out.splitlines()
    assert "2 new tokens, rounds 1, density 0.1, one thread" in title
    assert columns.split() == " ".join(decode.COLUMNS).split()
    names = ["dense, own attention", "dense, grouped", "quest", "quest (group)", "streaming_llm"]
    for line, name in zip(lines[:5], names, strict=True):
        assert line.startswith(name)
        token, attention, selection, rest, _, density, _ = line[22:].split()
        assert float(token) == pytest.approx(float(attention) + float(selection) + float(rest), abs=0.02)
        assert density == "-" if name.startswith("dense") else float(density) == pytest.approx(0.1, abs=0.01)
    assert [line.partition(":")[0] for line in lines[5:]] == names[2:]


def test_a_context_beyond_the_window_is_refused() -> None:
    with pytest.raises(SystemExit, match="window"):
        decode.main(["--model", "tiny:llama", "--tokens", "20000"])
