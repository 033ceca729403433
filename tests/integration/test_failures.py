"""Failures in the middle of a run: what is kept, what is said, and what the next run does."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from sah.adapters.generation import Answer
from sah.adapters.huggingface import ModelAdapterHF
from sah.adapters.lane_batch import LaneBatch, PreparedLane
from sah.results.rows import PredictionRow
from sah.tracking.none import NoTracker
from tests.integration.conftest import Work
from tests.integration.running import ROOT, dense_of, jobs, outcomes, run, sparse_of, stored, write_rows

QA = ("dataset=jsonl", f"dataset.path={ROOT / 'tests/data/qa.jsonl'}", "masker=topk")


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that makes the model fail at sparse answers to a question, and mends it again."""
    init, answer = LaneBatch.__init__, ModelAdapterHF.answer

    def make(text: str | None, error: Exception | None = None, dense: bool = False) -> None:
        def broken(adapter: ModelAdapterHF, question: str) -> bool:
            return text is not None and text in question and dense is (adapter.sparse_attention is None)

        def failing(self: ModelAdapterHF, cache: Any, question: str, **options: Any) -> Answer:
            if broken(self, question):
                raise error or RuntimeError("the model broke down")
            return answer(self, cache, question, **options)

        def failing_batch(self: LaneBatch, adapter: ModelAdapterHF, cache: Any, lanes: Sequence[PreparedLane]) -> None:
            if any(broken(lane.adapter, adapter.tokenizer.decode(lane.question_ids)) for lane in lanes):
                raise error or RuntimeError("the model broke down")
            init(self, adapter, cache, lanes)

        monkeypatch.setattr(ModelAdapterHF, "answer", failing)
        monkeypatch.setattr(LaneBatch, "__init__", failing_batch)

    return make


def statuses(point_rows: dict[str, PredictionRow]) -> list[str]:
    return [row.status for row in point_rows.values()]


@pytest.mark.parametrize("dense", [False, True])
def test_a_model_error_costs_one_row_and_is_tried_again(refuse: Callable[..., None], work: Work, dense: bool) -> None:
    refuse("How much salt", dense=dense)
    done = run(*QA)
    assert done.code == 1
    assert "the model broke down" in done.text
    assert "Traceback" not in done.text
    failed, whole = (dense_of(), sparse_of()) if dense else (sparse_of(), dense_of())
    assert statuses(failed.predictions) == ["ok", "ok", "model_failed", "ok"]
    assert statuses(whole.predictions) == ["ok"] * 4
    (row,) = (row for row in failed.predictions.values() if row.status != "ok")
    assert row.error is not None and "the model broke down" in row.error
    assert row.prediction == "" and row.density_measured is None
    assert row.key not in failed.scores, "a failure is no score of zero"
    metrics = sparse_of().metrics
    assert metrics is not None
    assert metrics["comparison"]["scores"]["token_f1"]["pairs"] == 3
    (record,) = jobs()
    assert record["status"] == "failed" and "the model broke down" in record["error"]

    refuse(None)
    before = outcomes(whole)
    work.clear()
    again = run(*QA)
    assert again.code == 0, again.text
    assert sorted(outcomes(whole)) == sorted(before)
    assert statuses(dense_of().predictions) == statuses(sparse_of().predictions) == ["ok"] * 4
    metrics = sparse_of().metrics
    assert metrics is not None
    assert metrics["comparison"]["scores"]["token_f1"]["pairs"] == 4


def test_only_the_failed_question_is_tried_again(refuse: Callable[..., None], work: Work) -> None:
    refuse("How much salt")
    assert run(*QA).code == 1
    refuse(None)
    work.clear()
    assert run(*QA).code == 0
    assert [question.strip() for question in work.dense + work.sparse] == ["How much salt is used?"]


def test_an_answer_broken_off_leaves_the_context_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error comes from inside the model, with tokens of the batch in the cache already, and does not come again."""
    from sah.adapters.factory import load_adapter_cached
    from sah.config.model import ModelConfig

    assert run(*QA, "output_dir=undisturbed").code == 0
    model = load_adapter_cached(ModelConfig(name="tiny:llama")).model
    forward, calls = model.forward, itertools.count(1)
    failed: list[int] = []

    def failing(*given: Any, **options: Any) -> Any:
        number = next(calls)
        result = forward(*given, **options)
        if number in (3, 12):
            failed.append(number)
            raise RuntimeError("a fault that passes")
        return result

    monkeypatch.setattr(model, "forward", failing)
    assert run(*QA).code == 0
    assert failed == [3, 12]
    expected = {point.label: sorted(outcomes(point).items()) for point in stored(Path("undisturbed")).values()}
    assert {point.label: sorted(outcomes(point).items()) for point in stored().values()} == expected


@pytest.mark.slow
def test_a_failing_point_of_a_sweep_is_shown_with_what_it_has(refuse: Callable[..., None]) -> None:
    refuse("How much salt")
    done = run("-m", *QA, "density=0.1,0.2")
    assert done.code == 1
    assert [record["status"] for record in jobs()] == ["failed", "failed"]
    assert done.out.count("failed)") == 2, "the table counts the missing answers"


def test_a_single_run_with_a_missing_answer_still_shows_its_table(refuse: Callable[..., None]) -> None:
    refuse("How much salt")
    done = run(*QA)
    assert done.code == 1
    assert "difference" in done.out and "topk" in done.out


def test_a_prompt_longer_than_the_window_names_its_line(work: Work) -> None:
    short = {"context": "Short.", "question": "What?", "answers": "x"}
    write_rows(Path("long.jsonl"), short, {**short, "context": "word " * 3000}, short | {"context": "Other."})
    done = run("dataset=jsonl", "dataset.path=long.jsonl")
    assert done.code == 1
    assert "line 2" in done.text and "8192" in done.text
    assert "Traceback" not in done.text
    assert work.counts == (0, 0, 0)


@pytest.mark.slow
def test_an_answer_that_no_longer_fits_is_an_invalid_row_and_the_others_are_kept(work: Work) -> None:
    """The loader counts one answer token where the file gives no limit, and the run asks for more."""
    from sah.adapters.factory import create_adapter

    adapter, question = create_adapter("tiny:llama"), "What?"
    long = "word " * 400
    while adapter.count_prompt_tokens(long, "\n\n" + question) > 600 - 10:
        long = long[:-1]
    write_rows(Path("edge.jsonl"), *({"context": c, "question": question, "answers": "x"} for c in ("One.", long, "2")))
    settings = ("dataset=jsonl", "dataset.path=edge.jsonl", "+model.model_kwargs.max_position_embeddings=600")
    done = run(*settings, "masker=sink", "generation.max_new_tokens=20")
    assert done.code == 1
    assert "window is 600" in done.text
    assert "Traceback" not in done.text
    for point in (dense_of(), sparse_of()):
        assert statuses(point.predictions) == ["ok", "invalid_input", "ok"]
    work.clear()
    assert run(*settings, "masker=sink", "generation.max_new_tokens=20").code == 1
    assert work.counts[1:] == (1, 1), "only what failed is tried again"


@pytest.mark.parametrize("call", ["start", "log_summary", "log_table", "finish"])
def test_a_failing_tracker_loses_nothing(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def broken(*given: Any, **options: Any) -> None:
        raise ConnectionError("the server is gone")

    monkeypatch.setattr(NoTracker, call, broken)
    done = run("masker=topk")
    assert done.code == 0, done.text
    assert "the server is gone" in done.text
    assert "topk" in done.out
    point = sparse_of()
    assert statuses(point.predictions) == ["ok", "ok"]
    assert point.metrics is not None and point.provenance is not None
    assert jobs()[0]["status"] == "ok"


@pytest.mark.slow
def test_a_failing_scorer_is_no_score_of_zero(monkeypatch: pytest.MonkeyPatch, work: Work) -> None:
    import sah.runners.scoring as scoring

    original, calls = scoring.score_all, itertools.count()

    def failing(metrics: Any, prediction: str, answers: Any) -> dict[str, float]:
        if "Marta Lund" in answers and next(calls) == 1:
            raise ValueError("cannot score this")
        return original(metrics, prediction, answers)

    with monkeypatch.context() as patched:
        patched.setattr(scoring, "score_all", failing)
        done = run(*QA)
    assert done.code == 1
    assert "Traceback" not in done.text
    point = sparse_of()
    assert statuses(point.predictions) == ["ok"] * 4
    assert sorted(score.status for score in point.scores.values()) == ["ok", "ok", "ok", "score_failed"]
    (failed,) = (score for score in point.scores.values() if score.status != "ok")
    assert failed.scores == {} and "cannot score this" in (failed.error or "")
    metrics = point.metrics
    assert metrics is not None
    assert metrics["sparse"]["scores"]["token_f1"]["count"] == 3
    assert metrics["sparse"]["status"] == {"score_failed": 1, "ok": 3}
    work.clear()
    assert run(*QA).code == 0
    assert work.counts == (0, 0, 0)
    assert all(score.status == "ok" for score in sparse_of().scores.values())


def test_a_scorer_that_failed_is_named_in_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import sah.runners.scoring as scoring

    def failing(metrics: Any, prediction: str, answers: Any) -> dict[str, float]:
        raise ValueError("cannot score this")

    monkeypatch.setattr(scoring, "score_all", failing)
    done = run(*QA)
    assert done.code == 1
    assert "cannot score this" in done.text or "scores.jsonl" in done.text


def test_a_full_disk_keeps_the_rows_before_it(monkeypatch: pytest.MonkeyPatch, work: Work) -> None:
    import sah.results.files as files

    original, appended = files.write_all, itertools.count(1)

    def full(handle: int, data: bytes) -> None:
        if data.startswith(b'{"schema_version": 1, "example_key"') and b'"prediction"' in data and next(appended) == 3:
            original(handle, data[:20])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(handle, data)

    with monkeypatch.context() as patched:
        patched.setattr(files, "write_all", full)
        done = run("masker=topk")
    assert done.code == 1
    assert "No space left" in done.text and "same command" in done.text
    assert "Traceback" not in done.text
    written = [json.loads(line) for path in Path("outputs").rglob("predictions.jsonl") for line in path.open()]
    assert len(written) == 2
    work.clear()
    assert run("masker=topk").code == 0
    assert sum(work.counts[1:]) == 2


def test_a_sparse_run_that_ran_dense_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from sah.adapters import attention_switch

    monkeypatch.setattr(attention_switch, "switched", lambda *given: contextlib.nullcontext())
    done = run("masker=topk")
    assert done.code == 1
    assert "without calling the sparse attention" in done.text
    assert statuses(sparse_of().predictions) == ["model_failed"] * 2
    assert statuses(dense_of().predictions) == ["ok"] * 2
