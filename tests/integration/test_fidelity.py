"""What a run measures beside its answers: dense answers read by sparse settings, and prose read by all."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from sah.adapters.context_cache import ContextCache
from sah.adapters.factory import create_adapter
from sah.adapters.forced import ForcedLane, force_alone
from sah.adapters.huggingface import ModelAdapterHF
from sah.metrics.fidelity import mean_output_error
from sah.results.store import StoredPoint
from sah.runners.point import Point
from sah.runners.session import Session
from tests.integration.conftest import Work
from tests.integration.groups import run_settings
from tests.integration.running import Outcome, dense_of, outcomes, run, sparse_of, stored


def ran(*overrides: str) -> Outcome:
    done = run(*overrides, *(() if "fidelity=false" in overrides else ("fidelity=true",)))
    assert done.code == 0, done.text
    return done


def raw(point: StoredPoint) -> list[Any]:
    return [json.loads(line) for line in (point.folder / "fidelity.jsonl").read_text().splitlines()]


def by_definition(dense: ModelAdapterHF, cache: ContextCache, lane: ForcedLane) -> dict[str, float]:
    p, q = (force_alone(adapter, cache, lane)[0].double().log_softmax(-1) for adapter in (dense, lane.adapter))
    ids = torch.tensor(lane.token_ids).unsqueeze(-1)
    return {
        "kl": float((p.exp() * (p - q)).sum(-1).mean()),
        "top1_agreement": float((p.argmax(-1) == q.argmax(-1)).double().mean()),
        "log_likelihood": float(q.gather(-1, ids).sum()),
        "dense_log_likelihood": float(p.gather(-1, ids).sum()),
    }


def lane_of(point: Point, cache: ContextCache, key: str) -> ForcedLane:
    """The text of a row: the dense answer behind its question, or the continuation of a prose's context."""
    example = next(example for example in point.examples if key.startswith(example.key))
    question = example.questions[int(key.rpartition(":")[2])]
    assert point.sparse is not None
    adapter = point.sparse.adapter
    ids = adapter.prompts.question_ids(cache.prompt, question.text, question.answer_prefix)
    if question.likelihood:
        return ForcedLane(adapter, tuple(ids[:1]), tuple(ids[1:]))
    return ForcedLane(adapter, tuple(ids), point.dense.store.load()[key].token_ids)


@pytest.mark.parametrize("data", [[], ["dataset=prose", "dataset.length=64", "dataset.continuation=24"]], ids=str)
@pytest.mark.parametrize("phases", ["[question,decode]", "[decode]"])
def test_rows_hold_what_the_definitions_say(work: Work, data: list[str], phases: str) -> None:
    given = (f"phases={phases}", "fidelity=true", *data)
    points = run_settings(*((f"masker={masker}", *given) for masker in ("topk", "quest", "random")))
    checked = 0
    for point in points:
        assert point.sparse is not None
        for key, row in point.sparse.store.load_fidelity().items():
            example = next(example for example in point.examples if key.startswith(example.key))
            cache = point.dense.adapter.prefill(example.context)
            lane = lane_of(point, cache, key)
            assert (row.status, row.tokens, row.attention_error) == ("ok", len(lane.token_ids), 0.05)
            expected = by_definition(point.dense.adapter, cache, lane)
            for name, value in expected.items():
                assert getattr(row, name) == pytest.approx(value, abs=2e-3), (key, name)
            if data:
                prediction = point.sparse.store.load()[key]
                assert prediction.log_likelihood == pytest.approx(expected["log_likelihood"], abs=2e-3)
                dense = point.dense.store.load()[key]
                assert dense.log_likelihood == pytest.approx(expected["dense_log_likelihood"], abs=2e-3)
                assert (prediction.num_answer_tokens, prediction.answers) == (len(lane.token_ids), ())
            checked += 1
    assert checked == 6


def test_aggregates_are_those_of_the_rows(work: Work) -> None:
    ran("masker=topk", "attention_error=0.5")
    point = sparse_of()
    assert point.metrics is not None
    rows, found = list(point.fidelity.values()), point.metrics["sparse"]["fidelity"]
    assert (found["questions"], found["failed"]) == (2, 0)
    assert (
        found["tokens"]
        == sum(row.tokens or 0 for row in rows)
        == sum(row.num_answer_tokens or 0 for row in dense_of().predictions.values())
    )
    assert found["kl"]["mean"] == pytest.approx(sum(row.kl or 0 for row in rows) / 2)
    differences = [(row.log_likelihood - row.dense_log_likelihood) / row.tokens for row in rows]  # type: ignore[operator]
    assert found["log_likelihood_difference"]["mean"] == pytest.approx(sum(differences) / 2)
    assert found["kl"]["low"] <= found["kl"]["mean"] <= found["kl"]["high"]
    heads = point.metrics["sparse"]["attention_by_head"]
    assert (heads["rate"], heads["layers"]) == (0.5, [0, 1, 2])
    weights = [[row.layers[layer].queries for row in rows] for layer in (0, 1, 2)]
    assert heads["rows"] == [sum(counts) for counts in weights]
    for layer, counts in enumerate(weights):
        for name in ("output_error", "mass_recalled", "density"):
            parts = [getattr(row.layers[layer], name)[1] * n for row, n in zip(rows, counts, strict=True)]
            assert heads[name][layer][1] == pytest.approx(sum(parts) / sum(counts))
    assert mean_output_error(heads) > 0
    calls = [row.calls_by_layer for row in point.predictions.values()]
    assert point.metrics["sparse"]["calls_by_layer"] == {str(n): sum(c[n] for c in calls) for n in range(3)}
    assert all(
        c == (1 + (row.decode_steps or 0),) * 3 for c, row in zip(calls, point.predictions.values(), strict=True)
    )


def test_a_finished_point_is_not_read_again(work: Work) -> None:
    ran("masker=topk")
    first = raw(sparse_of())
    again = ran("masker=topk")
    assert raw(sparse_of()) == first
    assert "rows" not in again.err


def test_fidelity_is_added_to_answers_that_are_there(work: Work) -> None:
    ran("masker=topk", "fidelity=false")
    bare = sparse_of()
    assert (bare.fidelity, bare.metrics and bare.metrics["sparse"]["fidelity"]) == ({}, None)
    ran("masker=topk")
    full = sparse_of()
    assert (full.id, outcomes(full)) == (bare.id, outcomes(bare))
    assert len((full.folder / "predictions.jsonl").read_text().splitlines()) == 2
    assert len(full.fidelity) == 2


def test_another_rate_reads_again_and_answers_nothing_again(work: Work) -> None:
    ran("masker=topk")
    ran("masker=topk", "attention_error=0.3")
    point = sparse_of()
    assert [row["attention_error"] for row in raw(point)] == [0.05, 0.05, 0.3, 0.3]
    assert {row.attention_error for row in point.fidelity.values()} == {0.3}
    assert len((point.folder / "predictions.jsonl").read_text().splitlines()) == 2
    assert point.metrics is not None and point.metrics["sparse"]["attention_by_head"]["rate"] == 0.3


def test_a_line_that_was_cut_short_is_read_again(work: Work) -> None:
    ran("masker=topk")
    path = sparse_of().folder / "fidelity.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    ran("masker=topk")
    assert sorted(path.read_bytes().splitlines()) == sorted(whole.splitlines())


def test_keeping_everything_is_dense_on_prose(work: Work) -> None:
    ran("masker=causal", "dataset=prose", "dataset.length=64", "dataset.continuation=24")
    row = next(iter(sparse_of().fidelity.values()))
    assert row.kl is not None and row.kl < 1e-6
    assert row.log_likelihood == pytest.approx(row.dense_log_likelihood, abs=1e-3)
    metrics = sparse_of().metrics
    assert metrics is not None
    score = metrics["comparison"]["scores"]["log_likelihood"]
    assert score["difference"] == pytest.approx(0, abs=1e-4)
    assert 1 < math.exp(-score["dense"]) < 1e4


def test_prose_is_read_from_any_file_without_a_chat_template(work: Work) -> None:
    words = " ".join(f"word{number}" for number in range(600))
    Path("own.txt").write_text(f"First line.\n{words}\n", encoding="utf-8")
    given = ("dataset=prose", "dataset.path=own.txt", "dataset.length=100", "dataset.continuation=30")
    (point,) = run_settings(("masker=topk", *given, "dataset.num_examples=3"))
    texts = [example.context + example.questions[0].text for example in point.examples]
    assert texts[0].startswith("First line.\nword0 ")
    assert f"First line.\n{words}".startswith(" ".join(texts)), "windows follow each other, nothing is lost"
    template = create_adapter("tiny:llama", None).prompts
    assert template.has_template and not point.dense.adapter.prompts.has_template
    for example in point.examples:
        prompt = point.dense.adapter.prompts.context_prompt(example.context)
        tokens = len(prompt.ids) + len(point.dense.adapter.prompts.question_ids(prompt, example.questions[0].text))
        assert 120 <= tokens <= 132


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("dataset.path=absent.txt", "dataset.path=absent.txt cannot be read"),
        ("dataset.num_examples=100000", "the prose that comes with Python gives"),
        ("dataset.length=100000", "more than the model's window"),
        ("dataset.length=3", "dataset.length=3 is not allowed"),
        ("dataset.metrics=[token_f1]", "dataset.metrics=['token_f1'] is not allowed"),
    ],
)
def test_prose_that_cannot_be_had_is_refused(work: Work, change: str, told: str) -> None:
    done = run("masker=topk", "dataset=prose", "dataset.continuation=24", change)
    assert done.code == 1
    assert told in done.text
    assert not stored()


def broken_model(folder: Path, layer: int) -> None:
    """Write the tiny model with a KV head whose values are NaN."""
    adapter = create_adapter("tiny:llama", None)
    model = adapter.model
    weight = model.model.layers[layer].self_attn.v_proj.weight
    before = weight.detach().clone()
    with torch.no_grad():
        weight[: model.config.head_dim] = float("nan")
        model.save_pretrained(folder)
        weight.copy_(before)
    adapter.tokenizer.save_pretrained(folder)


def test_a_nan_is_a_failure_that_names_layer_head_and_step(work: Work) -> None:
    broken_model(Path("broken"), layer=1)
    done = run("masker=topk", "model.name=broken", "fidelity=true")
    assert done.code == 1
    for point in stored().values():
        for row in point.predictions.values():
            assert row.status == "model_failed"
            assert row.error is not None and "step 0" in row.error and "layer 1, heads 0, 1" in row.error
        assert not any(score.status == "ok" for score in point.scores.values()), "never a score of zero"
    assert all(row.status == "failed" for row in sparse_of().fidelity.values())
    assert "layer 1" in done.text


def test_one_session_keeps_chat_and_prose_apart(work: Work) -> None:
    session = Session()
    prose = ("masker=topk", "dataset=prose", "dataset.length=64", "dataset.continuation=24")
    (chat,) = run_settings(("masker=topk",), session=session)
    (plain,) = run_settings(prose, session=session)
    assert chat.dense.adapter.prompts.has_template
    assert not plain.dense.adapter.prompts.has_template
    assert chat.dense.adapter.model is plain.dense.adapter.model
