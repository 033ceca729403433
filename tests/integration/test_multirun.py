"""Sweeps: failing points, exit codes, the summary, presets."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from sah.adapters.context_cache import ContextCache
from sah.adapters.huggingface import ModelAdapterHF
from sah.metrics.verdict import VERDICTS
from sah.sparse_attention.maskers.topk import OracleTopK
from tests.integration.conftest import Work
from tests.integration.running import ROOT, jobs, lines, run, run_exactly, sparse_of, stored


def table_lines(text: str) -> list[list[str]]:
    """Read the lines of the printed table that stand for points, as words, without intervals and verdicts."""
    known = {point.label for point in stored().values()}
    told = [re.sub(rf"\[\S+, \S+\]|{'|'.join(VERDICTS)}", "", line).split() for line in text.splitlines()]
    return [words for words in told if words[:1] and words[0] in known]


def test_a_sweep_ends_with_one_table_of_all_points() -> None:
    done = run("-m", "masker=topk,random", "density=0.05,0.1", "fidelity=true", "attention_error=0.5")
    assert done.code == 0, done.text
    shown = [(words[0], float(words[6])) for words in table_lines(done.out)]
    assert shown == [("topk", 0.05), ("topk", 0.1), ("random", 0.05), ("random", 0.1)]
    (folder,) = Path("outputs/sweeps").glob("*/*")
    assert str(folder) in done.out
    notes = (
        "Verdicts are corrected for 4 comparisons by Holm's method",
        "Tied means that the interval lies within the margin of 0.05 around 0.",
        "Output error is a mean over ",
    )
    for note in notes:
        assert note in done.out and note in (folder / "table.md").read_text(encoding="utf-8")
    page = (folder / "table.md").read_text(encoding="utf-8").splitlines()
    header = [cell.strip() for cell in page[0].strip("|").split("|")]
    rows = [
        dict(zip(header, (cell.strip() for cell in line.strip("|").split("|")), strict=True))
        for line in page[2:]
        if line.startswith("|")
    ]
    assert [(row["setting"], float(row["density requested"])) for row in rows] == shown
    assert [(row["difference"], row["verdict"]) for row in rows] == [("+0.000 [-0.84, +0.84]", "not enough data")] * 4
    assert [record["status"] for record in jobs()] == ["ok"] * 4
    for record, row in zip(jobs(), rows, strict=True):
        assert Path(record["folder"]).name == record["point"]
        metrics = json.loads((Path(record["folder"]) / "metrics.json").read_text(encoding="utf-8"))
        assert float(row["density measured"]) == pytest.approx(
            metrics["sparse"]["measures"]["density_measured"], abs=5e-5
        )
    assert [path.name for path in Path().iterdir()] == ["outputs"]


def test_a_mistake_in_one_point_is_told_before_anything_runs(work: Work) -> None:
    done = run("-m", "masker=topk", "density=0.05,2,0.1")
    assert done.code == 1
    assert work.counts == (0, 0, 0)
    assert (jobs(), stored()) == ([], {})
    assert "1 of 3 points cannot be run" in done.text
    assert "density=2 is not allowed" in done.err and "In point 1 (density=2)" in done.text
    assert "Traceback" not in done.text


def test_a_sweep_in_which_all_points_fail_says_so() -> None:
    done = run("-m", "masker=topk", "density=0,2")
    assert done.code == 1
    assert "density=0 is not allowed" in done.text
    assert "density=2 is not allowed" in done.text
    assert "Traceback" not in done.text


def test_an_error_of_ours_in_one_point_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only mistakes of the user: a defect in one method leaves its traceback in the log and the others run."""

    def defective(self: OracleTopK, *given: object, **options: object) -> torch.Tensor:
        raise KeyError("a defect")

    monkeypatch.setattr(OracleTopK, "scores", defective)
    monkeypatch.setattr(OracleTopK, "fast_scores", defective)
    done = run("-m", "masker=topk,random")
    assert done.code == 1
    assert [record["status"] for record in jobs()] == ["failed", "ok"]
    assert "a defect" in done.text
    logs = [path.read_text(encoding="utf-8") for path in sorted(Path("outputs/sweeps").rglob("sah.log"))]
    assert any("Traceback" in text and "defective" in text for text in logs)
    assert sparse_of(label="random").metrics is not None


def test_a_sweep_started_again_computes_nothing(work: Work) -> None:
    command = ("-m", "masker=topk,random")
    first = run(*command)
    work.clear()
    again = run(*command)
    assert again.code == 0, again.text
    assert work.counts == (0, 0, 0)
    assert table_lines(again.out) == table_lines(first.out)


def test_a_single_run_and_a_sweep_share_points() -> None:
    assert run("masker=topk", "density=0.1").code == 0
    before = {point.id: lines(point) for point in stored().values()}
    assert run("-m", "masker=topk", "density=0.1,0.2").code == 0
    after = {point.id: lines(point) for point in stored().values()}
    assert {name: after[name] for name in before} == before
    assert sorted(map(len, after.values())) == [2, 2, 2]


def test_a_sweep_over_the_baseline_too() -> None:
    done = run("-m", "masker=dense,topk")
    assert done.code == 0, done.text
    assert [words[0] for words in table_lines(done.out)] == ["dense", "topk"]


def test_the_smoke_preset() -> None:
    done = run_exactly("+experiment=smoke")
    assert done.code == 0, done.text
    assert len(sparse_of().predictions) == 2


@pytest.mark.slow
def test_a_preset_that_holds_its_own_sweep_needs_no_flag(work: Work) -> None:
    done = run("+experiment=density_curve", "dataset.depths=2", "generation.max_new_tokens=2")
    assert done.code == 0, done.text
    shown = [(words[0], float(words[6])) for words in table_lines(done.out)]
    densities = [0.05, 0.1, 0.2, 0.4]
    maskers = ("topk", "quest", "double_sparsity", "streaming_llm", "random")
    assert sorted(shown) == sorted((masker, density) for masker in maskers for density in densities)
    assert len(work.prefills) == 2
    assert sorted(len(lines(point)) for point in stored().values()) == [2] * (1 + len(densities) * len(maskers))
    assert len(list(Path("outputs/sweeps").rglob("table.md"))) == 1


def test_what_a_preset_sweeps_can_be_narrowed_on_the_command_line() -> None:
    done = run("+experiment=density_curve", "masker=topk", "density=0.1,0.2", "generation.max_new_tokens=2")
    assert done.code == 0, done.text
    assert [(words[0], float(words[6])) for words in table_lines(done.out)] == [("topk", 0.1), ("topk", 0.2)]


def test_a_second_data_set_in_the_same_sweep(work: Work) -> None:
    done = run("-m", "masker=topk", "dataset.length=512,600")
    assert done.code == 0, done.text
    assert sorted(point.label for point in stored().values()) == ["dense", "dense", "topk", "topk"]
    assert len(work.prefills) == 4


@pytest.mark.slow
def test_a_sweep_reports_its_own_jobs_only() -> None:
    """A folder named by the user, or two sweeps begun in one second, may hold jobs of another sweep."""
    assert run("-m", "masker=topk", "density=0.05,0.2", "hydra.sweep.dir=outputs/mine").code == 0
    done = run("-m", "masker=topk", "density=0.1", "hydra.sweep.dir=outputs/mine")
    assert done.code == 0, done.text
    assert [float(words[6]) for words in table_lines(done.out)] == [0.1]


def test_an_unknown_masker_among_others_is_told_before_anything_runs(work: Work) -> None:
    done = run("-m", "masker=topk,nosuch,random")
    assert done.code == 1
    assert "nosuch" in done.text and "streaming_llm" in done.text
    assert "Traceback" not in done.text
    assert work.counts == (0, 0, 0)


@pytest.mark.slow
def test_recipes_can_be_swept() -> None:
    done = run("-m", "masker=topk,[sink,topk],[sink,local,random]")
    assert done.code == 0, done.text
    assert [words[0] for words in table_lines(done.out)] == ["topk", "sink+topk", "sink+local+random"]


@pytest.mark.slow
def test_places_of_sparsity_can_be_swept() -> None:
    done = run("-m", "masker=topk", "phases=[question,decode],[decode]", 'dense_layers=[],"0-1"')
    assert done.code == 0, done.text
    (page,) = Path("outputs/sweeps").rglob("table.md")
    rows = [line.split(" | ") for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("| topk")]
    assert [cells[0] for cells in rows] == ["| topk"] * 4, "what has a column is not told twice"
    places = ["question+decode", "question+decode (0-1 dense)", "decode", "decode (0-1 dense)"]
    assert [cells[1] for cells in rows] == places
    assert sum(point.label == "dense" for point in stored().values()) == 1


def test_layers_of_a_masker_name_their_point() -> None:
    done = run("-m", "masker=[sink,topk]", 'masker.topk.layers="1-",[1,2],2')
    assert done.code == 0, done.text
    (page,) = Path("outputs/sweeps").rglob("table.md")
    text = page.read_text(encoding="utf-8")
    assert '| sink+topk masker.topk.layers="1-" |' in text
    assert "| sink+topk masker.topk.layers=2 |" in text
    assert text.count("is the same point as") == 1, "[1,2] are the layers from 1 on in a model of three"


@pytest.mark.slow
def test_ctrl_c_ends_a_sweep_and_keeps_what_is_finished(monkeypatch: pytest.MonkeyPatch, work: Work) -> None:
    prefill = ModelAdapterHF.prefill

    def interrupted(self: ModelAdapterHF, context: str) -> ContextCache:
        if work.prefills:
            raise KeyboardInterrupt
        return prefill(self, context)

    with monkeypatch.context() as patched:
        patched.setattr(ModelAdapterHF, "prefill", interrupted)
        done = run("-m", "masker=topk,random,streaming_llm")
    assert done.code == 130
    assert "same command" in done.text and "Traceback" not in done.text
    before = {point.id: lines(point) for point in stored().values()}
    assert [len(rows) for rows in before.values()] == [1] * 4, "the first context's answers are kept"
    assert run("-m", "masker=topk,random,streaming_llm").code == 0
    for point in stored().values():
        assert lines(point)[:1] == before[point.id] and len(lines(point)) == 2


def test_points_that_differ_in_their_number_of_examples_alone() -> None:
    """They are one point, but not for the reason that the note gives for recipes."""
    done = run("-m", "masker=topk", "dataset.num_examples=1,3")
    assert done.code == 0, done.text
    assert "does not read what differs" not in done.text


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_networks")
def test_every_masker_runs_as_it_stands() -> None:
    done = run("-m", "masker=glob(*)", "density=0.2")
    assert done.code == 0, done.text
    every = {path.stem for path in (ROOT / "conf" / "masker").glob("*.yaml")}
    assert {point.label for point in stored().values()} == every
    assert {"quest", "double_sparsity", "adaptive", "magicpig", "dense"} <= every
    for point in stored().values():
        assert all(row.status == "ok" for row in point.predictions.values())
