"""The weights themselves: learned sinks, soft caps, gradients, dropout, and recipes that keep nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from sah.errors import ConfigError
from sah.sparse_attention import (
    CausalMaskerConfig,
    LocalMaskerConfig,
    RandomSamplingMaskerConfig,
    SinkMaskerConfig,
    TopKMaskerConfig,
)
from sah.sparse_attention.kernels.masked import importance_softmax
from tests.support.attention import (
    BF16,
    EXECUTIONS,
    F32,
    RECIPES,
    Shape,
    assert_near,
    attend,
    causal,
    inclusion_of,
    make_inputs,
    naive_attention,
    research,
    sdpa,
)

executions = pytest.mark.parametrize("execution", EXECUTIONS)
shapes = pytest.mark.parametrize(
    "shape", [Shape(3, 1, False, F32, 63), Shape(3, 5, True, F32, 40), Shape(4, 1, True, BF16, 63)], ids=str
)


@executions
@shapes
@pytest.mark.parametrize("recipe", ["causal", "sink+local", "topk-hard", "topk+random", "sink+local+random"])
@pytest.mark.parametrize("loudness", [0.0, 60.0, -60.0])
def test_learned_sinks_join_the_denominator(recipe: str, shape: Shape, execution: str, loudness: float) -> None:
    """GPT-OSS: a logit of each head that holds no value; also when it is far above or below every key."""
    inputs = make_inputs(shape, batch=1)
    sinks = torch.randn(inputs.queries.shape[1], generator=torch.Generator().manual_seed(3)) + loudness
    expected = naive_attention(inputs, inclusion_of(research(RECIPES[recipe]()), inputs), sinks=sinks)
    assert_near(attend(EXECUTIONS[execution](RECIPES[recipe]()), inputs, s_aux=sinks), expected, shape.dtype)


@executions
@shapes
@pytest.mark.parametrize("recipe", ["causal", "sink+local", "topk-hard", "topp-easy", "sink+local+random"])
def test_a_softcap_is_applied_to_the_logits(recipe: str, shape: Shape, execution: str) -> None:
    inputs = make_inputs(shape, batch=1)
    inputs.queries *= 8
    expected = naive_attention(inputs, inclusion_of(research(RECIPES[recipe]()), inputs, softcap=5.0), softcap=5.0)
    output = attend(EXECUTIONS[execution](RECIPES[recipe]()), inputs, softcap=5.0)
    assert_near(output, expected, shape.dtype)


@pytest.mark.parametrize("recipe", RECIPES)
def test_research_is_differentiable(recipe: str) -> None:
    """Gradients against autograd through a naive double-precision form over the same mask."""
    inputs = make_inputs(Shape(2, 3, False, F32, 17), batch=1)
    inclusion = inclusion_of(research(RECIPES[recipe]()), inputs).double()
    leaves = [t.clone().requires_grad_() for t in (inputs.queries, inputs.keys, inputs.values)]
    weight = torch.randn(1, 4, 3, 16, generator=torch.Generator().manual_seed(1))
    ours = attend(research(RECIPES[recipe]()), replace(inputs, queries=leaves[0], keys=leaves[1], values=leaves[2]))
    (ours * weight).sum().backward()
    twins = [t.detach().double().requires_grad_() for t in leaves]
    keys, values = (t.repeat_interleave(2, 1) for t in twins[1:])
    logits = twins[0] @ keys.mT * inputs.scaling + inclusion.clamp(min=1e-300).log().neg()
    plain = torch.softmax(logits.masked_fill(inclusion == 0, float("-inf")), -1) @ values
    (plain * weight).sum().backward()
    for leaf, twin in zip(leaves, twins, strict=True):
        assert leaf.grad is not None
        assert twin.grad is not None
        assert_near(leaf.grad, twin.grad)


def test_gradients_are_finite_where_a_query_reads_nothing() -> None:
    inputs = make_inputs(Shape(1, 4, False, F32, 4), batch=1)
    inputs.allowed[..., :2] = False
    leaves = [t.clone().requires_grad_() for t in (inputs.queries, inputs.keys, inputs.values)]
    attend(
        research([CausalMaskerConfig()]), replace(inputs, queries=leaves[0], keys=leaves[1], values=leaves[2])
    ).sum().backward()
    assert all(torch.isfinite(leaf.grad).all() for leaf in leaves if leaf.grad is not None)


def test_a_kept_key_weighs_exactly_one_by_its_probability() -> None:
    inclusion = torch.tensor([1.0, 0.5, 0.25, 0.0, 0.2]).view(1, 1, 1, 5)
    weights = importance_softmax(torch.zeros(1, 1, 1, 5), inclusion)[0, 0, 0]
    assert torch.equal(weights, torch.tensor([1.0, 2.0, 4.0, 0.0, 5.0]) / 12)


@executions
@pytest.mark.parametrize("q_len", [1, 3])
def test_weights_are_float32_and_sum_to_one(execution: str, q_len: int) -> None:
    inputs = make_inputs(Shape(2, q_len, True, BF16, 30))
    _, weights = EXECUTIONS[execution]([SinkMaskerConfig(), TopKMaskerConfig(density=0.4)]).custom_attention(
        None, *inputs.tensors(), inputs.scaling, 0.0, {}, layer_idx=0
    )
    if weights is None:
        assert execution == "efficient"
        return
    assert weights.dtype == F32
    assert weights.shape == (2, 4, q_len, 30)
    assert torch.allclose(weights.sum(-1), torch.ones(2, 4, q_len))


@executions
@pytest.mark.parametrize("q_len", [1, 4])
@pytest.mark.parametrize("config", [SinkMaskerConfig(sink_size=0), LocalMaskerConfig(window_size=0)])
def test_a_recipe_that_keeps_nothing_is_an_error_not_a_nan(execution: str, q_len: int, config: Any) -> None:
    inputs = make_inputs(Shape(2, q_len, False, F32, 20))
    with pytest.raises(ConfigError, match="keeps no key") as caught:
        attend(EXECUTIONS[execution]([config]), inputs)
    assert "masker." in str(caught.value)


@executions
def test_poisoned_memory_behind_the_keys_is_never_read(execution: str) -> None:
    """Keys and values are views of larger buffers whose rest holds NaN, as in a growing cache."""
    for q_len in (1, 4):
        inputs = make_inputs(Shape(3, q_len, False, F32, 63))
        poisoned = []
        for states in (inputs.keys, inputs.values):
            buffer = torch.full((2, 2, 200, 16), float("nan"))
            buffer[:, :, :63] = states
            poisoned.append(buffer[:, :, :63])
        views = replace(inputs, keys=poisoned[0], values=poisoned[1])
        for recipe in RECIPES.values():
            output = attend(EXECUTIONS[execution](recipe()), views)
            assert_near(output, attend(EXECUTIONS[execution](recipe()), inputs))


def test_efficient_decode_reads_no_unselected_value() -> None:
    """NaN in every value that is not kept: only a gather can miss them."""
    inputs = make_inputs(Shape(3, 1, False, F32, 63), batch=1)
    for name in ("sink-hard", "sink+local", "topk-hard", "topk+random"):
        kept = (inclusion_of(research(RECIPES[name]()), inputs) > 0)[0, :, 0].view(2, 3, 63).any(1)
        values = inputs.values.masked_fill(~kept[None, ..., None], float("nan"))
        output = attend(EXECUTIONS["efficient"](RECIPES[name]()), replace(inputs, values=values))
        # A key kept by one head of the group only is read by that head only.
        assert torch.isfinite(output).all(), name


@executions
def test_queries_in_the_layout_of_a_model(execution: str) -> None:
    """Models hand over transposed views, not contiguous tensors; values may be of another width."""
    for q_len in (1, 3):
        inputs = make_inputs(Shape(3, q_len, False, F32, 33))
        strided = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (inputs.queries, inputs.keys, inputs.values)]
        view = replace(inputs, queries=strided[0], keys=strided[1], values=strided[2][..., :8])
        recipe = [SinkMaskerConfig(), RandomSamplingMaskerConfig(density=0.5)]
        expected = attend(EXECUTIONS[execution](recipe), inputs)[..., :8]
        assert_near(attend(EXECUTIONS[execution](recipe), view), expected)


@executions
@pytest.mark.parametrize("q_len", [1, 3])
def test_a_mask_that_broadcasts_over_the_keys(execution: str, q_len: int) -> None:
    """The interface takes masks that broadcast to (batch, heads, q_len, kv_len) in any dimension."""
    inputs = make_inputs(Shape(2, q_len, False, F32, 20))
    inputs.allowed[:] = True
    everything = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    recipe = [TopKMaskerConfig(density=0.3)]
    output = attend(EXECUTIONS[execution](recipe), inputs, attention_mask=everything)
    assert_near(output, attend(EXECUTIONS[execution](recipe), inputs))


@executions
def test_masks_of_single_heads(execution: str) -> None:
    for q_len in (1, 3):
        inputs = make_inputs(Shape(2, q_len, False, F32, 20))
        per_head = causal(q_len, 20).repeat(2, 4, 1, 1)
        per_head[:, 1, :, :5] = False
        inputs = replace(inputs, allowed=per_head)
        assert_near(attend(EXECUTIONS[execution]([CausalMaskerConfig()]), inputs), sdpa(inputs))
        for recipe in ("sink+local", "topk-easy", "topk+random", "topp-easy"):
            inclusion = inclusion_of(research(RECIPES[recipe]()), inputs)
            expected = naive_attention(inputs, inclusion)
            assert_near(attend(EXECUTIONS[execution](RECIPES[recipe]()), inputs), expected)
