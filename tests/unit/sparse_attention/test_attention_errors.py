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
from sah.sparse_attention import attention_errors as module
from sah.sparse_attention.attention_errors import ATTENTION_ERRORS_KEY, AttentionErrors
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
        recorder, expected = AttentionErrors(1.0), []
        for layer in (4, 1, 4):
            output = attend(
                EXECUTIONS[execution](recipe()), inputs, {ATTENTION_ERRORS_KEY: recorder}, layer_idx=layer, **passed_on
            )
            expected.append(errors_of(output, inputs, **passed_on))
        found = recorder.by_layer()
        assert list(found) == [1, 4]
        tolerance = 1e-4 if shape.dtype is F32 else 0.02
        for errors in found.values():
            assert torch.allclose(errors.output_error.double(), expected[0].mean(0), rtol=tolerance)
        assert recorder.mean() == pytest.approx(float(torch.cat(expected).mean()), rel=tolerance)
        assert recorder.mean() > 0.1


@executions
def test_dense_attention_has_no_error(execution: str) -> None:
    for q_len in (1, 3):
        inputs = make_inputs(Shape(3, q_len, True, F32, 40))
        recorder = AttentionErrors(1.0)
        meta = {ATTENTION_ERRORS_KEY: recorder}
        attend(EXECUTIONS[execution]([CausalMaskerConfig()]), inputs, meta, s_aux=SINKS)
        assert recorder.mean() < 1e-6


@executions
def test_queries_that_read_nothing_are_left_out(execution: str) -> None:
    inputs = make_inputs(Shape(2, 12, False, F32, 12), batch=1)
    inputs.allowed[..., :4] = False
    recorder = AttentionErrors(1.0)
    output = attend(EXECUTIONS[execution]([LocalMaskerConfig(window_size=2)]), inputs, {ATTENTION_ERRORS_KEY: recorder})
    expected = errors_of(output, inputs)
    assert expected.shape == (8, 4)
    assert recorder.mean() == pytest.approx(float(expected.mean()), rel=1e-4)
    inputs.allowed[:] = False
    attend(EXECUTIONS[execution]([CausalMaskerConfig()]), inputs, {ATTENTION_ERRORS_KEY: recorder}, layer_idx=3)
    assert list(recorder.by_layer()) == [0]


@executions
def test_being_looked_at_changes_nothing(execution: str) -> None:
    inputs = make_inputs(Shape(3, 1, False, BF16, 40))
    plain = attend(EXECUTIONS[execution](recipe()), inputs)
    assert torch.equal(
        attend(EXECUTIONS[execution](recipe()), inputs, {ATTENTION_ERRORS_KEY: AttentionErrors(1.0)}), plain
    )


def chosen(recorder: AttentionErrors, calls: int = 400) -> list[bool]:
    return recorder.choose(0, calls).tolist()


def test_calls_are_chosen_by_seed_and_lane_alone() -> None:
    assert chosen(AttentionErrors(0.3, 1, "a")) == chosen(AttentionErrors(0.3, 1, "a"))
    others = [chosen(AttentionErrors(0.3, seed, lane)) for seed, lane in [(1, "a"), (2, "a"), (1, "b"), (1, "")]]
    assert len({tuple(choice) for choice in others}) == 4
    assert 90 < sum(others[0]) < 150
    few, many = chosen(AttentionErrors(0.1, 5)), chosen(AttentionErrors(0.6, 5))
    assert all(m >= f for f, m in zip(few, many, strict=True)), "a larger share looks at the same calls and more"
    assert chosen(AttentionErrors(1.0)) == [True] * 400
    assert chosen(AttentionErrors(0.0)) == [False] * 400


@executions
@pytest.mark.parametrize("seed", [0, 1])
def test_the_choice_is_made_before_the_reference_is_computed(
    execution: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not looked at costs nothing, and what is computed has no say in what is looked at."""
    wanted = chosen(AttentionErrors(0.4, 7, "lane"), 30)
    assert 5 < sum(wanted) < 25
    dense, references = module.masked_attention, []
    monkeypatch.setattr(module, "masked_attention", lambda *x, **more: references.append(call) or dense(*x, **more))
    recorder, attention = AttentionErrors(0.4, 7, "lane"), EXECUTIONS[execution](recipe())
    for call in range(30):
        attend(attention, make_inputs(Shape(2, 1, False, F32, 20), seed=seed + call), {ATTENTION_ERRORS_KEY: recorder})
    assert references == [number for number, want in enumerate(wanted) if want]
    assert recorder.by_layer()[0].queries == 2 * sum(wanted)


def test_without_a_recorder_nothing_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "masked_attention", lambda *_, **__: pytest.fail("a reference was computed"))
    inputs = make_inputs(Shape(2, 1, False, F32, 20))
    for make in EXECUTIONS.values():
        attend(make(recipe()), inputs)
        attend(make(recipe()), inputs, {ATTENTION_ERRORS_KEY: AttentionErrors(0.0)})


def test_nothing_looked_at_is_none_not_zero() -> None:
    assert AttentionErrors(0.5).mean() is None
    assert AttentionErrors(0.5).by_layer() == {}


def test_the_mean_is_over_heads_queries_and_layers() -> None:
    recorder = AttentionErrors(1.0)
    errors = {0: torch.tensor([[0.0, 0.5], [0.0, 0.5]]), 3: torch.tensor([[1.0, 1.0]])}
    for layer, error in errors.items():
        recorder.add(layer, torch.stack([error, 1 - error, error / 2]))
    found = recorder.by_layer()
    assert {layer: one.output_error.tolist() for layer, one in found.items()} == {0: [0.0, 0.5], 3: [1.0, 1.0]}
    assert (found[0].mass_recalled.tolist(), found[0].density.tolist(), found[0].queries) == (
        [1.0, 0.5],
        [0.0, 0.25],
        2,
    )
    assert recorder.mean() == pytest.approx((0 + 0.5 + 0 + 0.5 + 1 + 1) / 6)


def test_a_dense_output_of_nothing_gives_a_number() -> None:
    inputs, recorder = make_inputs(Shape(2, 1, False, F32, 20)), AttentionErrors(1.0)
    inputs.values[:] = 0
    attend(efficient(recipe()), inputs, {ATTENTION_ERRORS_KEY: recorder})
    assert recorder.mean() == 0


def test_a_dense_layer_has_no_error() -> None:
    inputs, recorder = make_inputs(Shape(3, 1, False, F32, 40)), AttentionErrors(1.0)
    attention = EfficientAttention(EfficientAttentionConfig(recipe(), dense_layers=[0]))
    for layer in range(2):
        attend(attention, inputs, {ATTENTION_ERRORS_KEY: recorder}, layer_idx=layer)
    errors = recorder.by_layer()
    assert errors[0].output_error.max() < 1e-6 < 0.05 < errors[1].output_error.min()


def test_better_masks_have_smaller_errors() -> None:
    """A check of the figure itself: oracle top-p with more mass is nearer to dense."""
    inputs, errors = make_inputs(Shape(3, 1, False, F32, 300)), []
    for top_p in (0.2, 0.6, 0.95):
        recorder = AttentionErrors(1.0)
        attention = efficient([TopPMaskerConfig(top_p=top_p)])
        assert_near(
            attend(attention, inputs, {ATTENTION_ERRORS_KEY: recorder}),
            naive_attention(inputs, inclusion_of(research([TopPMaskerConfig(top_p=top_p)]), inputs)),
        )
        errors.append(recorder.mean())
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("rate", [-0.1, 1.1, math.nan, "0.5", None, [0.1]])
def test_a_rate_that_is_no_share_is_refused(rate: Any) -> None:
    with pytest.raises(ConfigError, match="attention_error"):
        AttentionErrors(rate)


@executions
def test_mass_and_density_are_those_of_the_keys_read(execution: str) -> None:
    inputs = make_inputs(Shape(3, 5, True, F32, 33))
    for passed_on in ({}, {"s_aux": SINKS}, {"softcap": 1.5}):
        recorder = AttentionErrors(1.0)
        attend(EXECUTIONS[execution](recipe()), inputs, {ATTENTION_ERRORS_KEY: recorder}, **passed_on)
        everything = inputs.allowed.float().expand(*inputs.queries.shape[:3], -1)
        read = (inclusion_of(EXECUTIONS[execution](recipe()), inputs) > 0) * everything
        shares = read.sum(-1) / everything.sum(-1).clamp(min=1)
        reads = inputs.allowed.any(-1).any(1)
        found = recorder.by_layer()[0]
        assert torch.allclose(found.density, shares.transpose(1, 2)[reads].mean(0), atol=1e-5)
        kept = naive_mass(inputs, everything, read, **passed_on)
        assert torch.allclose(found.mass_recalled.double(), kept.transpose(1, 2)[reads].mean(0), atol=1e-4)


def naive_mass(inputs: Inputs, everything: torch.Tensor, read: torch.Tensor, **passed_on: Any) -> torch.Tensor:
    """Softmax mass of the keys read and of the learned sink, (batch, heads, q_len), in double precision."""
    group = inputs.queries.shape[1] // inputs.keys.shape[1]
    keys = inputs.keys.double().repeat_interleave(group, dim=1)
    logits = inputs.queries.double() @ keys.transpose(-1, -2) * inputs.scaling
    if "softcap" in passed_on:
        logits = passed_on["softcap"] * torch.tanh(logits / passed_on["softcap"])
    logits = logits.masked_fill(everything == 0, float("-inf"))
    if "s_aux" in passed_on:
        sinks = passed_on["s_aux"].double().view(1, -1, 1, 1).expand(*logits.shape[:-1], 1)
        logits = torch.cat([logits, sinks], dim=-1)
        read = torch.cat([read, torch.ones_like(read[..., :1])], dim=-1)
    return (torch.softmax(logits, dim=-1).nan_to_num() * read).sum(-1)


def test_the_choice_does_not_depend_on_how_queries_are_cut() -> None:
    whole = AttentionErrors(0.3, 1, "a").choose(2, 50).tolist()
    parted = AttentionErrors(0.3, 1, "a")
    parts = []
    for count in (1, 20, 0, 29):
        parted.choose(5, 7)
        parts += parted.choose(2, count).tolist()
    assert parts == whole
