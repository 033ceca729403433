"""Given texts: lanes in one batch against token by token, and against what the definitions say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from sah.adapters import forced as forced_module
from sah.adapters.context_cache import ContextCache
from sah.adapters.finite import FINITE_KEY
from sah.adapters.forced import Forced, ForcedLane, force_alone, force_lanes
from sah.adapters.huggingface import ModelAdapterHF
from sah.errors import DataError, ModelError
from sah.sparse_attention import CausalMaskerConfig, EfficientAttentionConfig, TopKMaskerConfig
from sah.sparse_attention.efficient import EfficientAttention
from sah.sparse_attention.prefill.a_shape_config import AShapeConfig
from sah.sparse_attention.statistics import AttentionStatistics
from tests.support.attention import RECIPES
from tests.support.models import CONTEXT, QUESTIONS, dense_adapter

PLENTY = 1 << 31
TEXT = tuple(range(40, 51))


@pytest.fixture(scope="module")
def dense() -> ModelAdapterHF:
    return dense_adapter()


@pytest.fixture(scope="module")
def cache(dense: ModelAdapterHF) -> ContextCache:
    return dense.prefill(CONTEXT)


def sparse(dense: ModelAdapterHF, recipe: list[Any], **more: Any) -> ModelAdapterHF:
    return dense.with_sparse_attention(EfficientAttentionConfig(masker_configs=recipe, **more))


def lane(adapter: ModelAdapterHF, cache: ContextCache, question: int = 0, text: tuple[int, ...] = TEXT) -> ForcedLane:
    ids = adapter.prompts.question_ids(cache.prompt, QUESTIONS[question])
    return ForcedLane(adapter, tuple(ids), text)


def found(dense: ModelAdapterHF, cache: ContextCache, *lanes: ForcedLane, budget: int = PLENTY) -> list[Any]:
    outcomes: dict[int, Any] = dict(force_lanes(dense, cache, lanes, budget))
    return [outcomes[number] for number in range(len(lanes))]


def naive(dense: ModelAdapterHF, cache: ContextCache, lane: ForcedLane) -> dict[str, float]:
    """By the definitions, in double precision, from runs token by token."""
    p = force_alone(dense, cache, replace(lane, adapter=dense))[0].double().softmax(-1)
    q = p
    if lane.adapter.sparse_attention is not None:
        q = force_alone(lane.adapter, cache, lane)[0].double().softmax(-1)
    places = range(len(lane.token_ids))
    return {
        "kl": sum(float((p[i] * (p[i] / q[i]).log()).sum()) for i in places) / len(places),
        "top1_agreement": sum(int(p[i].argmax()) == int(q[i].argmax()) for i in places) / len(places),
        "log_likelihood": sum(float(q[i, lane.token_ids[i]].log()) for i in places),
        "dense_log_likelihood": sum(float(p[i, lane.token_ids[i]].log()) for i in places),
    }


def assert_is(outcome: Forced, expected: dict[str, float], tolerance: float = 2e-4) -> None:
    for name, value in expected.items():
        assert getattr(outcome, name) == pytest.approx(value, abs=tolerance), name


@pytest.mark.usefixtures("random_networks")
@pytest.mark.parametrize("phases", [["question", "decode"], ["decode"]], ids="+".join)
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_batch_finds_what_token_by_token_finds(
    dense: ModelAdapterHF, cache: ContextCache, recipe: str, phases: list[str]
) -> None:
    adapter = sparse(dense, RECIPES[recipe](), phases=phases)
    lanes = [lane(adapter, cache, 0), lane(dense, cache, 0), lane(adapter, cache, 1, TEXT[:4]), lane(adapter, cache, 0)]
    outcomes = found(dense, cache, *lanes)
    for own, outcome in zip(lanes, outcomes, strict=True):
        assert outcome.tokens == len(own.token_ids)
        density = None if own.adapter is dense else force_alone(own.adapter, cache, own)[1].density()
        assert outcome.density == pytest.approx(density, abs=1e-4 if "adaptive" in recipe else 1e-9)
        # The size of an adaptive sample is rounded up: with a key more in one row another text is as good.
        moved = outcome.density != density
        assert_is(outcome, naive(dense, cache, own), 0.02 * outcome.tokens if moved else 2e-4)
    assert outcomes[0] == outcomes[3]
    assert (outcomes[1].kl, outcomes[1].top1_agreement, outcomes[1].density) == (0.0, 1.0, None)
    assert outcomes[0].calls_by_layer["decode"] == dict.fromkeys(range(dense.num_layers), len(TEXT) - 1)
    assert bool(outcomes[0].calls_by_layer["question"]) == ("question" in phases)


def test_what_keeps_everything_is_dense(dense: ModelAdapterHF, cache: ContextCache) -> None:
    (outcome,) = found(dense, cache, lane(sparse(dense, [CausalMaskerConfig()]), cache))
    assert outcome.kl < 1e-6
    assert outcome.top1_agreement == 1.0
    assert outcome.log_likelihood == pytest.approx(outcome.dense_log_likelihood, abs=1e-4)


def test_an_answer_of_one_token_needs_the_question_alone(dense: ModelAdapterHF, cache: ContextCache) -> None:
    own = lane(sparse(dense, [TopKMaskerConfig(heavy_size=3)]), cache, text=(7,))
    (outcome,) = found(dense, cache, own)
    assert_is(outcome, naive(dense, cache, own))
    only_decode = lane(sparse(dense, [TopKMaskerConfig(heavy_size=3)], phases=["decode"]), cache, text=(7,))
    (dense_there,) = found(dense, cache, only_decode)
    assert (dense_there.kl, dense_there.density) == (0.0, None)


def test_a_token_without_any_chance_is_told(dense: ModelAdapterHF, cache: ContextCache) -> None:
    own = lane(sparse(dense, [TopKMaskerConfig(heavy_size=3)]), cache)
    logits = torch.zeros(len(TEXT), 256)
    excluding = logits.clone()
    excluding[3, TEXT[3]] = float("-inf")
    calls = {"question": {0: 1, 1: 1, 2: 1}, "decode": dict.fromkeys(range(3), len(TEXT) - 1)}
    statistics = AttentionStatistics()
    for phase, layers in calls.items():
        for layer, count in layers.items():
            statistics.add(phase, layer, torch.tensor([1.0, 1.0], dtype=torch.double), count)
    found = forced_module._judge(own, logits, excluding, statistics, {})
    assert not found.is_finite and found.kl == float("inf")
    assert forced_module._judge(own, excluding, excluding, statistics, {}).kl == 0.0, "both exclude it"
    assert forced_module._judge(own, logits, logits, statistics, {}).is_finite


def test_narrow_batches_and_single_lanes_find_the_same(dense: ModelAdapterHF, cache: ContextCache) -> None:
    adapters = [sparse(dense, RECIPES[name]()) for name in ("topk-hard", "random-hard", "quest-hard")]
    lanes = [lane(adapter, cache, number) for number in (0, 1) for adapter in adapters]
    wide = found(dense, cache, *lanes)
    for budget in (1, 400_000):
        for one, other in zip(found(dense, cache, *lanes, budget=budget), wide, strict=True):
            assert_is(one, {name: getattr(other, name) for name in ("kl", "log_likelihood", "top1_agreement")})
            assert one.density == pytest.approx(other.density)


def test_compared_queries_are_those_of_a_run_token_by_token(dense: ModelAdapterHF, cache: ContextCache) -> None:
    for name in ("topk-hard", "quest-easy", "magicpig-easy", "adaptive-output"):
        own = replace(lane(sparse(dense, RECIPES[name]()), cache), attention_error=0.4)
        (outcome,) = found(dense, cache, own)
        _, _, expected = force_alone(own.adapter, cache, own)
        assert outcome.attention_errors.keys() == expected.keys() != set()
        for layer, errors in expected.items():
            assert outcome.attention_errors[layer].queries == errors.queries > 0
            for figure in ("output_error", "mass_recalled", "density"):
                mine = getattr(outcome.attention_errors[layer], figure)
                assert torch.allclose(mine, getattr(errors, figure), atol=2e-3), (name, layer, figure)


def test_the_context_is_left_as_it_was(dense: ModelAdapterHF, cache: ContextCache) -> None:
    before = [layer.keys.clone() for layer in cache.past_key_values.layers]
    own = lane(sparse(dense, [TopKMaskerConfig(heavy_size=3)]), cache)
    found(dense, cache, own)
    force_alone(own.adapter, cache, own)
    for layer, keys in zip(cache.past_key_values.layers, before, strict=True):
        assert torch.equal(layer.keys[:, :, : cache.length], keys)
        assert layer.get_seq_length() == cache.length


def test_a_text_beyond_the_window_is_refused_alone(dense: ModelAdapterHF, cache: ContextCache) -> None:
    own = lane(sparse(dense, [TopKMaskerConfig(heavy_size=3)]), cache)
    outcomes = found(dense, cache, replace(own, token_ids=(5,) * (dense.window or 0)), own)
    assert isinstance(outcomes[0], DataError)
    assert isinstance(outcomes[1], Forced)


def break_head(monkeypatch: pytest.MonkeyPatch, layer: int, head: int, from_key: int) -> None:
    """Make one head's output NaN as soon as a query reads more keys."""
    attend = EfficientAttention._attend_rows
    plain = EfficientAttention.attend

    def rows(self: Any, queries: Any, keys: Any, *rest: Any, **more: Any) -> torch.Tensor:
        output = attend(self, queries, keys, *rest, **more)
        if more["layer_idx"] == layer:
            output[keys.lengths > from_key, head] = float("nan")
        return output

    def alone(self: Any, queries: Any, keys: Any, *rest: Any, **more: Any) -> Any:
        output, weights = plain(self, queries, keys, *rest, **more)
        if more["layer_idx"] == layer and keys.shape[2] > from_key:
            output[:, -1, head] = float("nan")
        return output, weights

    monkeypatch.setattr(EfficientAttention, "_attend_rows", rows)
    monkeypatch.setattr(EfficientAttention, "attend", alone)


def test_a_sparse_prefill_is_compared_with_dense_attention_over_the_dense_one(
    dense: ModelAdapterHF, cache: ContextCache
) -> None:
    own = dense.prefill(CONTEXT, AShapeConfig(sink_size=4, window_size=8))
    lanes = [
        lane(sparse(dense, [TopKMaskerConfig(heavy_size=9)]), own),
        lane(dense, own),
        lane(dense, own, 1, TEXT[:3]),
    ]
    outcomes: dict[int, Any] = dict(force_lanes(dense, own, lanes, PLENTY, cache))
    for number, given in enumerate(lanes):
        p = force_alone(dense, cache, replace(given, adapter=dense))[0].double().log_softmax(-1)
        q = force_alone(given.adapter, own, given)[0].double().log_softmax(-1)
        outcome = outcomes[number]
        assert outcome.kl == pytest.approx(float((p.exp() * (p - q)).sum()) / len(given.token_ids), abs=2e-4)
        assert outcome.kl > 1e-3
        ids = torch.tensor(given.token_ids)[:, None]
        assert outcome.dense_log_likelihood == pytest.approx(float(p.gather(-1, ids).sum()), abs=2e-4)
        assert outcome.log_likelihood == pytest.approx(float(q.gather(-1, ids).sum()), abs=2e-4)


@pytest.mark.parametrize("step", [0, 3])
def test_a_nan_names_layer_head_and_step(
    dense: ModelAdapterHF, cache: ContextCache, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    good, bad = lane(dense, cache), lane(sparse(dense, [TopKMaskerConfig(heavy_size=3)]), cache)
    break_head(monkeypatch, 1, 2, cache.length + len(bad.question_ids) + step - 1)
    outcomes = found(dense, cache, bad, good)
    assert isinstance(outcomes[0], ModelError)
    assert f"step {step} " in str(outcomes[0])
    assert "layer 1, head 2" in str(outcomes[0])
    assert isinstance(outcomes[1], Forced)
    with pytest.raises(ModelError, match=rf"step {step} .*layer 1, head 2"):
        force_alone(bad.adapter, cache, bad)


def test_a_nan_of_the_weights_names_the_layer(dense: ModelAdapterHF, cache: ContextCache) -> None:
    weight = dense.model.model.layers[1].mlp.down_proj.weight
    before = weight.detach().clone()
    with torch.no_grad():
        weight[0, 0] = float("nan")
    try:
        with pytest.raises(ModelError, match="output of layer 1"):
            dense.answer(cache, QUESTIONS[0])
        own = lane(sparse(dense, [TopKMaskerConfig(heavy_size=3)]), cache)
        (outcome,) = found(dense, cache, own)
        assert "the queries of layer 2 are not finite" in str(outcome)
    finally:
        with torch.no_grad():
            weight.copy_(before)
    assert FINITE_KEY in own.adapter.new_meta_data(cache, [1])
