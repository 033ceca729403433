"""The output error: against dense attention of the same inputs, head by head, at calls chosen beforehand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from sah.errors import ConfigError
from sah.sparse_attention import (
    CausalMaskerConfig,
    EfficientAttention,
    EfficientAttentionConfig,
    LocalMaskerConfig,
    SinkMaskerConfig,
    TopPMaskerConfig,
)
from sah.sparse_attention import output_error as module
from sah.sparse_attention.output_error import OUTPUT_ERROR_KEY, OutputError
from tests.support.attention import (
    BF16,
    EXECUTIONS,
    F32,
    Inputs,
    Shape,
    assert_near,
    attend,
    efficient,
    inclusion_of,
    make_inputs,
    naive_attention,
    research,
)

executions = pytest.mark.parametrize("execution", EXECUTIONS)
SINKS = torch.tensor([0.5, -2.0, 3.0, 0.0, 1.0, -1.0])


def recipe() -> list[Any]:
    return [SinkMaskerConfig(sink_size=2), LocalMaskerConfig(window_size=5)]


def errors_of(output: torch.Tensor, inputs: Inputs, **passed_on: Any) -> torch.Tensor:
    """Relative error of each head of every query that reads something, (queries, heads), in double precision."""
    everything = inputs.allowed.float().expand(*inputs.queries.shape[:3], -1)
    dense = naive_attention(inputs, everything, passed_on.get("s_aux"), passed_on.get("softcap"))
    relative = (output.double() - dense).norm(dim=-1) / dense.norm(dim=-1)
    return relative.transpose(1, 2)[inputs.allowed.any(-1).any(1)]


@executions
@pytest.mark.parametrize(
    "shape", [Shape(3, 1, False, F32, 40), Shape(3, 5, True, F32, 33), Shape(3, 1, True, BF16, 40)], ids=str
)
def test_the_error_is_the_relative_distance_of_each_head_from_dense_attention(shape: Shape, execution: str) -> None:
    """With the model's learned sinks and soft cap in both, where it has them."""
    inputs = make_inputs(shape)
    for passed_on in ({}, {"s_aux": SINKS}, {"softcap": 1.5}):
        recorder, expected = OutputError(1.0), []
        for layer in (4, 1, 4):
            output = attend(
                EXECUTIONS[execution](recipe()), inputs, {OUTPUT_ERROR_KEY: recorder}, layer_idx=layer, **passed_on
            )
            expected.append(errors_of(output, inputs, **passed_on))
        found = recorder.by_layer()
        assert list(found) == [1, 4]
        tolerance = 1e-4 if shape.dtype is F32 else 0.02
        for errors in found.values():
            assert torch.allclose(errors.double(), expected[0].mean(0), rtol=tolerance)
        assert recorder.mean() == pytest.approx(float(torch.cat(expected).mean()), rel=tolerance)
        assert recorder.mean() > 0.1


@executions
def test_dense_attention_has_no_error(execution: str) -> None:
    for q_len in (1, 3):
        inputs = make_inputs(Shape(3, q_len, True, F32, 40))
        recorder = OutputError(1.0)
        meta = {OUTPUT_ERROR_KEY: recorder}
        attend(EXECUTIONS[execution]([CausalMaskerConfig()]), inputs, meta, s_aux=SINKS)
        assert recorder.mean() < 1e-6


@executions
def test_queries_that_read_nothing_are_left_out(execution: str) -> None:
    inputs = make_inputs(Shape(2, 12, False, F32, 12), batch=1)
    inputs.allowed[..., :4] = False
    recorder = OutputError(1.0)
    output = attend(EXECUTIONS[execution]([LocalMaskerConfig(window_size=2)]), inputs, {OUTPUT_ERROR_KEY: recorder})
    expected = errors_of(output, inputs)
    assert expected.shape == (8, 4)
    assert recorder.mean() == pytest.approx(float(expected.mean()), rel=1e-4)
    inputs.allowed[:] = False
    attend(EXECUTIONS[execution]([CausalMaskerConfig()]), inputs, {OUTPUT_ERROR_KEY: recorder}, layer_idx=3)
    assert list(recorder.by_layer()) == [0]


@executions
def test_being_looked_at_changes_nothing(execution: str) -> None:
    inputs = make_inputs(Shape(3, 1, False, BF16, 40))
    plain = attend(EXECUTIONS[execution](recipe()), inputs)
    assert torch.equal(attend(EXECUTIONS[execution](recipe()), inputs, {OUTPUT_ERROR_KEY: OutputError(1.0)}), plain)


def chosen(recorder: OutputError, calls: int = 400) -> list[bool]:
    return [recorder.wants_next() for _ in range(calls)]


def test_calls_are_chosen_by_seed_and_lane_alone() -> None:
    assert chosen(OutputError(0.3, 1, "a")) == chosen(OutputError(0.3, 1, "a"))
    others = [chosen(OutputError(0.3, seed, lane)) for seed, lane in [(1, "a"), (2, "a"), (1, "b"), (1, "")]]
    assert len({tuple(choice) for choice in others}) == 4
    assert 90 < sum(others[0]) < 150
    few, many = chosen(OutputError(0.1, 5)), chosen(OutputError(0.6, 5))
    assert all(m >= f for f, m in zip(few, many, strict=True)), "a larger share looks at the same calls and more"
    assert chosen(OutputError(1.0)) == [True] * 400
    assert chosen(OutputError(0.0)) == [False] * 400


@executions
@pytest.mark.parametrize("seed", [0, 1])
def test_the_choice_is_made_before_the_reference_is_computed(
    execution: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not looked at costs nothing, and what is computed has no say in what is looked at."""
    wanted = chosen(OutputError(0.4, 7, "lane"), 30)
    assert 5 < sum(wanted) < 25
    dense, references = module.masked_attention, []
    monkeypatch.setattr(module, "masked_attention", lambda *x, **more: references.append(call) or dense(*x, **more))
    recorder, attention = OutputError(0.4, 7, "lane"), EXECUTIONS[execution](recipe())
    for call in range(30):
        attend(attention, make_inputs(Shape(2, 1, False, F32, 20), seed=seed + call), {OUTPUT_ERROR_KEY: recorder})
    assert references == [number for number, want in enumerate(wanted) if want]
    assert torch.cat(recorder._errors[0]).shape == (2 * sum(wanted), 4)


def test_without_a_recorder_nothing_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "masked_attention", lambda *_, **__: pytest.fail("a reference was computed"))
    inputs = make_inputs(Shape(2, 1, False, F32, 20))
    for make in EXECUTIONS.values():
        attend(make(recipe()), inputs)
        attend(make(recipe()), inputs, {OUTPUT_ERROR_KEY: OutputError(0.0)})


def test_nothing_looked_at_is_none_not_zero() -> None:
    assert OutputError(0.5).mean() is None
    assert OutputError(0.5).by_layer() == {}


def test_the_mean_is_over_heads_queries_and_layers() -> None:
    recorder = OutputError(1.0)
    dense = torch.ones(1, 2, 2, 4)
    recorder.add(0, dense * torch.tensor([1.0, 1.5]).view(1, 1, 2, 1), dense)
    recorder.add(3, dense[:, :1] * 2, dense[:, :1])
    assert {layer: error.tolist() for layer, error in recorder.by_layer().items()} == {0: [0.0, 0.5], 3: [1.0, 1.0]}
    assert recorder.mean() == pytest.approx((0 + 0.5 + 0 + 0.5 + 1 + 1) / 6)


def test_a_dense_output_of_nothing_gives_a_number() -> None:
    recorder = OutputError(1.0)
    recorder.add(0, torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4))
    assert recorder.mean() == 0


def test_a_dense_layer_has_no_error() -> None:
    inputs, recorder = make_inputs(Shape(3, 1, False, F32, 40)), OutputError(1.0)
    attention = EfficientAttention(EfficientAttentionConfig(recipe(), dense_layers=[0]))
    for layer in range(2):
        attend(attention, inputs, {OUTPUT_ERROR_KEY: recorder}, layer_idx=layer)
    errors = recorder.by_layer()
    assert errors[0].max() < 1e-6 < 0.05 < errors[1].min()


def test_better_masks_have_smaller_errors() -> None:
    """A check of the figure itself: oracle top-p with more mass is nearer to dense."""
    inputs, errors = make_inputs(Shape(3, 1, False, F32, 300)), []
    for top_p in (0.2, 0.6, 0.95):
        recorder = OutputError(1.0)
        attention = efficient([TopPMaskerConfig(top_p=top_p)])
        assert_near(
            attend(attention, inputs, {OUTPUT_ERROR_KEY: recorder}),
            naive_attention(inputs, inclusion_of(research([TopPMaskerConfig(top_p=top_p)]), inputs)),
        )
        errors.append(recorder.mean())
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("rate", [-0.1, 1.1, math.nan, "0.5", None, [0.1]])
def test_a_rate_that_is_no_share_is_refused(rate: Any) -> None:
    with pytest.raises(ConfigError, match="attention_error"):
        OutputError(rate)
