"""A context is prefilled once: for all its questions, for dense and sparse, and for the points of a sweep."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import pytest

import sah.runners.job as job
from sah.adapters.context_cache import ContextCache
from sah.fetching import CACHE_VARIABLE
from sah.results.rows import PredictionRow
from sah.sparse_attention import (
    AdaptiveSamplingMaskerConfig,
    AutoAttentionConfig,
    DoubleSparsityTopKMaskerConfig,
    MagicPigConfig,
    QuestTopKMaskerConfig,
    RandomSamplingMaskerConfig,
    SinkMaskerConfig,
    TopKMaskerConfig,
)
from tests.integration.conftest import Work
from tests.integration.running import ROOT, dense_of, outcome, outcomes, run, sparse_of, stored, write_rows
from tests.support.models import CONTEXT, QUESTIONS, dense_adapter

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
    assert run("-m", "masker=topk,random", "context_cache_gib=0", "hydra/launcher=basic").code == 0
    assert work.counts == (4, 2, 4)
    assert sum(row.prefill_reused is False for row in all_rows()) == 4


def test_the_cache_keeps_what_fits(work: Work) -> None:
    assert run("masker=topk", "output_dir=first").code == 0
    contexts = job._session.contexts
    room_for_one = 0.75 * contexts.nbytes()
    contexts.clear()
    work.clear()
    room = f"context_cache_gib={room_for_one / 2**30}"
    assert run("-m", "masker=topk,random", room, "hydra/launcher=basic").code == 0
    assert work.counts == (3, 2, 4)
    assert 0 < contexts.nbytes() <= room_for_one


def test_a_model_change_in_a_sweep_never_reuses_a_context(work: Work) -> None:
    done = run("-m", "model.name=tiny:llama,tiny:qwen2,tiny:llama", "masker=topk")
    assert done.code == 0, done.text
    assert len(stored()) == 4
    assert len(work.prefills) == 4


ISOLATED: dict[str, list[str]] = {
    "topk": ["masker=topk"],
    "random": ["masker=random"],
    "with state": [
        "masker=[sink,quest,double_sparsity,magicpig]",
        "masker.quest.heavy_size=12",
        "masker.double_sparsity.heavy_size=12",
    ],
    "decode only": ["masker=[sink,local,adaptive]", "masker.local.window_size=8", "phases=[decode]"],
}


@pytest.mark.parametrize("name", ISOLATED)
def test_an_answer_does_not_depend_on_the_other_questions(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    context = " ".join(f"Item {number} costs {number * 7} coins." for number in range(40))
    questions = ["What costs 21 coins?", "How much is item 9?", "And the last one?"]
    asked = {"together": questions, "reversed": questions[::-1]} | {"only": questions[1:2]}
    answers: dict[str, dict[str, tuple[Any, ...]]] = {}
    for order, texts in asked.items():
        path = write_rows(
            Path(f"{order}.jsonl"), {"context": context, "questions": texts, "answers": ["x"] * len(texts)}
        )
        done = run(*ISOLATED[name], "dataset=jsonl", f"dataset.path='{path}'", f"output_dir='{order}'")
        assert done.code == 0, done.text
        for point in stored(Path(order)).values():
            for row in point.predictions.values():
                label = f"{point.label}: {texts[row.question_index]}"
                answers.setdefault(label, {})[order] = outcome(row)
    assert len(answers) == 6
    for label, found in answers.items():
        assert len(found) == 2 + (questions[1] in label)
        assert len(set(found.values())) == 1, (label, found)


TOGETHER: dict[str, list[Any]] = {
    "topk": [TopKMaskerConfig(density=0.1)],
    "random": [RandomSamplingMaskerConfig(density=0.1)],
    "quest": [QuestTopKMaskerConfig(density=0.1, page_size=4)],
    "quest, other pages": [QuestTopKMaskerConfig(density=0.1, page_size=8, selection="group")],
    "double_sparsity": [DoubleSparsityTopKMaskerConfig(density=0.1, group_factor=4)],
    "adaptive": [SinkMaskerConfig(), AdaptiveSamplingMaskerConfig(base_rate=20, epsilon=0.3, delta=0.3)],
    "magicpig": [SinkMaskerConfig(), MagicPigConfig(lsh_l=20, lsh_k=4)],
    "magicpig, other tables": [SinkMaskerConfig(), MagicPigConfig(lsh_l=30, lsh_k=5)],
}


@pytest.mark.slow
@pytest.mark.parametrize("phases", [["question", "decode"], ["decode"]], ids="+".join)
def test_methods_over_one_context_do_not_depend_on_one_another(
    phases: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them share one cache and the state derived from it; each alone has a cache of its own."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    dense = dense_adapter()
    adapters = {
        name: dense.with_sparse_attention(AutoAttentionConfig(recipe, phases=phases))
        for name, recipe in TOGETHER.items()
    }

    def tell(name: str, question: str, cache: ContextCache) -> tuple[Any, ...]:
        answer = adapters[name].answer(cache, question, max_new_tokens=6)
        return answer.token_ids, answer.density, answer.attention_calls

    alone = {(name, q): tell(name, q, dense.prefill(CONTEXT)) for name in adapters for q in QUESTIONS[:2]}
    shared = dense.prefill(CONTEXT)
    for order in (list(alone), list(alone)[::-1]):
        assert {(name, q): tell(name, q, shared) for name, q in order} == alone
    assert len({tuple(token_ids) for token_ids, *_ in alone.values()}) > len(alone) // 2
    for adapter in adapters.values():
        adapter.close()


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
