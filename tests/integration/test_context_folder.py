"""`context_folder`: a second run reads the contexts that the first one prefilled."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

import sah.runners.job as job
from sah.results.rows import PredictionRow
from sah.results.store import StoredPoint
from sah.runners.session import Session
from tests.integration.conftest import Work
from tests.integration.running import ROOT, Outcome, dense_of, files_under, run, sparse_of

TIMES = ("seconds", "run", "prefill_reused")


@pytest.fixture
def run_anew(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that runs the command as a new process would: with nothing in memory."""

    def start(*given: str) -> Outcome:
        monkeypatch.setattr(job, "_session", Session())
        named = any(argument.startswith("context_folder=") for argument in given)
        return run(*given) if named else run(*given, "context_folder=contexts")

    return start


def without_times(point: StoredPoint) -> dict[str, dict[str, Any]]:
    """Rows without what differs between two runs of the same work."""
    return {key: _without_times(row) for key, row in point.predictions.items()}


def _without_times(row: PredictionRow) -> dict[str, Any]:
    fields = dataclasses.asdict(row)
    return {name: value for name, value in fields.items() if not any(part in name for part in TIMES)}


@pytest.mark.parametrize("model", ["tiny:llama", "tiny:gemma3"])
def test_a_second_run_prefills_nothing(run_anew: Any, work: Work, model: str) -> None:
    settings = ("masker=topk", f"model.name={model}")
    first = run_anew(*settings, "output_dir=one")
    assert first.code == 0, first.text
    assert len(work.prefills) == 2
    kept = files_under(Path("contexts"))
    assert len(kept) == 2

    work.clear()
    second = run_anew(*settings, "output_dir=other")
    assert second.code == 0, second.text
    assert work.prefills == []
    assert files_under(Path("contexts")) == kept
    for find in (dense_of, sparse_of):
        one, other = find(Path("one")), find(Path("other"))
        assert without_times(one) == without_times(other)
        assert len(other.predictions) == 2
        rows = other.predictions
        assert all(row.prefill_reused for row in rows.values())
        assert sum(not row.prefill_reused for row in one.predictions.values()) == (2 if find is dense_of else 0)
        for key, row in one.predictions.items():
            assert rows[key].prefill_seconds == row.prefill_seconds
            assert rows[key].prefill_cpu_seconds == row.prefill_cpu_seconds


def test_another_data_set_with_the_same_text_reads_the_same_file(run_anew: Any, work: Work) -> None:
    qa = f"dataset.path={ROOT / 'tests/data/qa.jsonl'}"
    assert run_anew("dataset=jsonl", qa, "masker=sink").code == 0
    contexts = len(work.prefills)
    Path("copy.jsonl").write_bytes((ROOT / "tests/data/qa.jsonl").read_bytes() + b"\n")
    work.clear()
    assert run_anew("dataset=jsonl", "dataset.path=copy.jsonl", "masker=sink", "output_dir=other").code == 0
    assert work.prefills == []
    assert len(files_under(Path("contexts"))) == contexts


def test_without_a_folder_nothing_is_written(run_anew: Any, work: Work) -> None:
    assert run_anew("masker=sink", "context_folder=null").code == 0
    assert run_anew("masker=sink", "context_folder_gib=0", "output_dir=other").code == 0
    assert len(work.prefills) == 4
    assert not Path("contexts").exists()


@pytest.mark.slow
def test_a_damaged_context_is_prefilled_again(run_anew: Any, work: Work) -> None:
    assert run_anew("masker=topk", "output_dir=one").code == 0
    file = sorted(Path("contexts").iterdir())[0]
    data = file.read_bytes()
    file.write_bytes(data[:-5000] + b"\x40" * 5000)
    work.clear()
    done = run_anew("masker=topk", "output_dir=other")
    assert done.code == 0
    assert done.text.count("prefilled again") == 1 and file.name[:20] in done.text.replace(" ", "")
    assert len(work.prefills) == 1
    assert without_times(sparse_of(Path("one"))) == without_times(sparse_of(Path("other")))
    assert file.exists() and len(files_under(Path("contexts"))) == 2
    work.clear()
    assert run_anew("masker=topk", "output_dir=third").code == 0
    assert work.prefills == []


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_costs_one_warning(run_anew: Any, work: Work) -> None:
    Path("contexts").write_text("in the way")
    done = run_anew("-m", "masker=topk,sink")
    assert done.code == 0
    assert done.text.count("cannot be written") == 1
    assert len(work.prefills) == 2, "memory still shares them"
    assert Path("contexts").read_text() == "in the way"
