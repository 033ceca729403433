"""How far sparse attention is from dense, as an answer reports it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sah.adapters.generation import Answer
from sah.adapters.huggingface import ModelAdapterHF
from sah.errors import ConfigError
from sah.sparse_attention import CausalMaskerConfig, RandomSamplingMaskerConfig, TopKMaskerConfig
from tests.support.models import CONTEXT, EXECUTION_CONFIGS, QUESTIONS, dense_adapter

executions = pytest.mark.parametrize("execution", EXECUTION_CONFIGS)


def sparse(execution: str = "efficient", *recipe: Any, **place: Any) -> ModelAdapterHF:
    maskers = list(recipe or [TopKMaskerConfig(heavy_size=4)])
    return dense_adapter().with_sparse_attention(EXECUTION_CONFIGS[execution](masker_configs=maskers, **place))


def answered(adapter: ModelAdapterHF, rate: float, question: str = QUESTIONS[0]) -> Answer:
    return adapter.answer(adapter.prefill(CONTEXT), question, max_new_tokens=6, attention_error=rate)


@executions
@pytest.mark.parametrize("recipe", [TopKMaskerConfig(heavy_size=4), RandomSamplingMaskerConfig(sampling_rate=6)])
def test_the_error_is_there_and_the_answer_is_the_same(execution: str, recipe: Any) -> None:
    adapter = sparse(execution, recipe)
    looked, plain = answered(adapter, 1.0), answered(adapter, 0.0)
    assert (looked.token_ids, looked.density, looked.attention_calls) == (
        plain.token_ids,
        plain.density,
        plain.attention_calls,
    )
    assert looked.output_error is not None and looked.output_error > 0.01
    heads = adapter.model.config.num_attention_heads
    shapes = {layer: errors.output_error.shape for layer, errors in looked.attention_errors.items()}
    assert shapes == dict.fromkeys(range(adapter.num_layers), (heads,))
    for errors in looked.attention_errors.values():
        assert errors.queries == looked.num_question_tokens + len(looked.token_ids) - 1
        assert bool(((errors.mass_recalled > 0) & (errors.mass_recalled < 1)).all())
        assert bool(((errors.density > 0) & (errors.density < 1)).all())
    assert plain.output_error is None and plain.attention_errors == {}


def test_nothing_is_lost_where_everything_is_kept() -> None:
    assert answered(sparse("efficient", CausalMaskerConfig()), 1.0).output_error == pytest.approx(0, abs=1e-5)


def test_a_dense_layer_counts_without_an_error() -> None:
    errors = answered(sparse(dense_layers=[0]), 1.0).attention_errors
    assert errors[0].output_error.max() < 1e-5 < 0.01 < errors[1].output_error.mean()
    assert errors[0].density.tolist() == [1.0] * len(errors[0].density)
    assert torch.allclose(errors[0].mass_recalled, torch.ones(()))


def test_dense_phases_are_not_looked_at() -> None:
    adapter = sparse(phases=["decode"])
    answer = answered(adapter, 1.0)
    assert {errors.queries for errors in answer.attention_errors.values()} == {len(answer.token_ids) - 1}


def test_a_part_of_the_calls_is_chosen_by_seed_and_question() -> None:
    def looked(seed: int, question: str = QUESTIONS[0]) -> float | None:
        return answered(sparse(seed=seed), 0.5, question).output_error

    assert looked(0) == looked(0)
    assert len({looked(0), looked(1), looked(2)}) == 3


def test_a_dense_answer_has_no_error() -> None:
    assert answered(dense_adapter(), 1.0).output_error is None


@pytest.mark.parametrize("rate", [2, -1, float("nan")])
def test_a_rate_is_a_share(rate: float) -> None:
    with pytest.raises(ConfigError, match="attention_error"):
        answered(sparse(), rate)
