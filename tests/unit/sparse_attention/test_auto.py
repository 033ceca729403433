"""`AutoAttention` takes the plain execution where only that one will do, else the efficient one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sah.sparse_attention import (
    AutoAttention,
    AutoAttentionConfig,
    LocalMaskerConfig,
    QuestTopKMaskerConfig,
    SinkMaskerConfig,
    SparseAttention,
)
from sah.sparse_attention.config import MaskedAttentionConfig
from tests.support.attention import EXECUTIONS, F32, Inputs, Shape, assert_near, attend, make_inputs


def recipe() -> list[Any]:
    return [SinkMaskerConfig(), LocalMaskerConfig(window_size=3), QuestTopKMaskerConfig(density=0.3, page_size=4)]


@pytest.fixture
def auto(monkeypatch: pytest.MonkeyPatch) -> AutoAttention:
    """An attention that notes in `taken` which execution ran."""
    built = AutoAttention.create_from_config(AutoAttentionConfig(recipe()))
    assert isinstance(built, AutoAttention)
    built.taken = []  # type: ignore[attr-defined]
    for name in EXECUTIONS:
        execution = getattr(built, name)

        def noted(*given: Any, name: str = name, run: Any = execution.custom_attention, **options: Any) -> Any:
            built.taken.append(name)  # type: ignore[attr-defined]
            return run(*given, **options)

        monkeypatch.setattr(execution, "custom_attention", noted)
    return built


def decode_inputs() -> Inputs:
    return make_inputs(Shape(3, 1, False, F32, 63), batch=1)


def taken(auto: AutoAttention) -> list[str]:
    return list(getattr(auto, "taken"))  # noqa: B009 - set by the fixture


def test_evaluation_takes_the_efficient_form(auto: AutoAttention) -> None:
    inputs = decode_inputs()
    output = attend(auto, inputs)
    inputs.queries.requires_grad_(True)
    with torch.no_grad():
        assert torch.equal(attend(auto, inputs), output)
    attend(auto, decode_inputs(), output_attentions=False)
    assert taken(auto) == ["efficient"] * 3
    assert_near(output, attend(EXECUTIONS["research"](recipe()), inputs))


@pytest.mark.parametrize("wanted", ["queries", "keys", "values"])
def test_gradients_take_the_plain_form(auto: AutoAttention, wanted: str) -> None:
    gradients = []
    for attention in (auto, EXECUTIONS["research"](recipe())):
        inputs = decode_inputs()
        tensor = getattr(inputs, wanted).requires_grad_(True)
        attend(attention, inputs).square().sum().backward()
        gradients.append(tensor.grad)
    assert taken(auto) == ["research"]
    assert gradients[0].abs().max() > 0
    assert torch.equal(*gradients)


def test_weights_take_the_plain_form(auto: AutoAttention) -> None:
    inputs = decode_inputs()
    arguments = (None, inputs.queries, inputs.keys, inputs.values, inputs.allowed, inputs.scaling, 0.0)
    _, nothing = auto.custom_attention(*arguments, {}, layer_idx=0)
    output, weights = auto.custom_attention(*arguments, {}, layer_idx=0, output_attentions=True)
    assert taken(auto) == ["efficient", "research"]
    assert nothing is None and weights is not None
    assert weights.shape == (1, 6, 1, 63)
    expanded = inputs.values.repeat_interleave(3, 1)
    assert_near(output.transpose(1, 2), weights @ expanded)


def test_both_forms_share_the_state_of_one_question(auto: AutoAttention) -> None:
    """A sequence may ask for weights at some steps only; what it gets at the others stays the same."""
    meta: dict[Any, Any] = {}
    alone: dict[Any, Any] = {}
    efficient = EXECUTIONS["efficient"](recipe())
    for step in range(6):
        inputs = make_inputs(Shape(3, 1, False, F32, 60 + step), seed=3, batch=1)
        grown = make_inputs(Shape(3, 1, False, F32, 70), seed=4, batch=1)
        inputs.keys, inputs.values = grown.keys[:, :, : 60 + step], grown.values[:, :, : 60 + step]
        assert_near(attend(auto, inputs, meta, output_attentions=step % 2 == 0), attend(efficient, inputs, alone))
    assert taken(auto) == ["research", "efficient"] * 3


def test_a_context_is_prepared_for_the_efficient_form(auto: AutoAttention) -> None:
    keys = make_inputs(Shape(3, 1, False, F32, 63), batch=1).keys
    state: dict[Any, Any] = {}
    expected: dict[Any, Any] = {}
    auto.prepare_context(state, 0, keys)
    EXECUTIONS["efficient"](recipe()).prepare_context(expected, 0, keys)
    assert list(state) == list(expected) != []


def test_the_recipe_can_be_seen(auto: AutoAttention) -> None:
    assert isinstance(auto.config, MaskedAttentionConfig)
    assert [masker.config for masker in auto.maskers] == recipe()
    assert isinstance(auto, SparseAttention)
