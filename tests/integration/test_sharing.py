"""A context is prefilled once: for all its questions, for dense and sparse, and for the points of a sweep."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import pytest

import sah.runners.job as job
from sah.results.rows import PredictionRow
from tests.integration.conftest import Work
from tests.integration.running import ROOT, dense_of, outcome, outcomes, run, sparse_of, stored, write_rows

QA = ("dataset=jsonl", f"dataset.path={ROOT / 'tests/data/qa.jsonl'}")


def all_rows() -> list[PredictionRow]:
    """Read the rows of all points."""
    return [row for point in stored().values() for row in point.predictions.values()]


def test_one_prefill_serves_all_questions_and_both_modes(work: Work) -> None:
    done = run(*QA, "masker=topk", "context_cache_gib=0")
    assert done.code == 0, done.text
    assert work.counts == (3, 4, 4)
    assert len(set(work.prefills)) == 3
    assert sorted(work.dense) == sorted(work.sparse)


def test_dense_and_sparse_answer_the_same_questions() -> None:
    assert run(*QA, "masker=topk").code == 0
    dense, sparse = dense_of(), sparse_of()
    assert list(dense.predictions) == list(sparse.predictions)
    for key, row in sparse.predictions.items():
        assert (row.answers, row.answer_prefix) == (
            dense.predictions[key].answers,
            dense.predictions[key].answer_prefix,
        )
    metrics = sparse.metrics
    assert metrics is not None
    assert metrics["comparison"]["unpaired"] == {"dense": 0, "sparse": 0}
    assert metrics["dense_point"] == dense.id


def test_one_row_a_context_says_that_it_did_the_prefill(work: Work) -> None:
    assert run(*QA, "masker=topk").code == 0
    did = collections.Counter(row.example_key for row in all_rows() if row.prefill_reused is False)
    assert len(did) == 3
    assert sum(did.values()) == len(work.prefills)


def test_points_of_a_sweep_share_model_and_contexts(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    from sah.adapters import factory

    loads: list[Any] = []
    create = factory.create_adapter
    monkeypatch.setattr(factory, "_loaded", {})
    monkeypatch.setattr(factory, "create_adapter", lambda *given, **more: loads.append(given) or create(*given, **more))
    done = run("-m", "masker=topk,random", "density=0.05,0.1")
    assert done.code == 0, done.text
    assert len(loads) == 1
    assert work.counts == (2, 2, 8)
    assert len(stored()) == 5
    later = sparse_points()[1:]
    assert all(row.prefill_reused for rows in later for row in rows)


def sparse_points() -> list[list[PredictionRow]]:
    """Give the rows of the sparse points, the first computed first."""
    points = [point for point in stored().values() if point.label != "dense"]
    points.sort(key=lambda point: (point.folder / "predictions.jsonl").stat().st_mtime_ns)
    return [list(point.predictions.values()) for point in points]


def test_without_a_cache_each_point_prefills_for_itself(work: Work) -> None:
    assert run("-m", "masker=topk,random", "context_cache_gib=0").code == 0
    assert work.counts == (4, 2, 4)
    assert sum(row.prefill_reused is False for row in all_rows()) == 4


def test_the_cache_keeps_what_fits(work: Work) -> None:
    assert run("masker=topk", "output_dir=first").code == 0
    contexts = job._session.contexts
    room_for_one = 0.75 * contexts.nbytes()
    contexts.clear()
    work.clear()
    assert run("-m", "masker=topk,random", f"context_cache_gib={room_for_one / 2**30}").code == 0
    assert work.counts == (3, 2, 4)
    assert 0 < contexts.nbytes() <= room_for_one


def test_a_model_change_in_a_sweep_never_reuses_a_context(work: Work) -> None:
    done = run("-m", "model.name=tiny:llama,tiny:qwen2,tiny:llama", "masker=topk")
    assert done.code == 0, done.text
    assert len(stored()) == 4
    assert len(work.prefills) == 4


@pytest.mark.parametrize("masker", ["topk", "random"])
def test_an_answer_does_not_depend_on_the_other_questions(masker: str) -> None:
    context = " ".join(f"Item {number} costs {number * 7} coins." for number in range(40))
    questions = ["What costs 21 coins?", "How much is item 9?", "And the last one?"]
    asked = {"together": questions, "reversed": questions[::-1]} | {"only": questions[1:2]}
    answers: dict[str, dict[str, tuple[Any, ...]]] = {}
    for name, texts in asked.items():
        path = write_rows(
            Path(f"{name}.jsonl"), {"context": context, "questions": texts, "answers": ["x"] * len(texts)}
        )
        assert run("dataset=jsonl", f"dataset.path='{path}'", f"masker={masker}", f"output_dir='{name}'").code == 0
        for point in (dense_of(Path(name)), sparse_of(Path(name))):
            for row in point.predictions.values():
                label = f"{point.label}: {texts[row.question_index]}"
                answers.setdefault(label, {})[name] = outcome(row)
    assert len(answers) == 6
    for label, found in answers.items():
        assert len(found) == 2 + (questions[1] in label)
        assert len(set(found.values())) == 1, (label, found)


def test_random_depends_on_nothing_but_its_own_settings() -> None:
    settings = ["masker=random", "density=0.1", "seed=5"]
    companies: dict[str, tuple[list[str], list[str]]] = {
        "alone": ([], settings),
        "other order": ([], ["dataset.num_examples=3", "context_cache_gib=0", *settings[::-1]]),
        "after others": (["-m"], ["masker=topk,random", "density=0.3,0.1", "seed=5"]),
    }
    found = {}
    for name, (flags, given) in companies.items():
        done = run(*flags, *given, f"output_dir='{name}'")
        assert done.code == 0, done.text
        (point,) = (
            point
            for point in stored(Path(name)).values()
            if point.label == "random" and point.identity["recipe"][0]["density"] == 0.1
        )
        found[name] = (point.id, dict(list(outcomes(point).items())[:2]))
    assert len(found["alone"][1]) == 2
    assert all(value == found["alone"] for value in found.values()), found
    assert run("masker=random", "density=0.1", "seed=6", "output_dir=reseeded").code == 0
    reseeded = sparse_of(Path("reseeded"))
    assert reseeded.id != found["alone"][0]
    assert outcomes(reseeded) != found["alone"][1]
