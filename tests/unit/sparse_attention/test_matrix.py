"""Every masker over one shared matrix of shapes: what must hold for all of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from sah.sparse_attention import Mask
from sah.sparse_attention.statistics import STATISTICS_KEY, AttentionStatistics
from tests.support.attention import (
    BF16,
    DENSE_RECIPES,
    EXECUTIONS,
    F32,
    RECIPES,
    SHAPES,
    Inputs,
    Shape,
    assert_near,
    attend,
    cases,
    causal,
    efficient,
    inclusion_of,
    make_inputs,
    naive_attention,
    research,
    sdpa,
    with_observations,
)

recipes = pytest.mark.parametrize("recipe", RECIPES)
cases_of_all = pytest.mark.parametrize(("recipe", "shape"), cases(RECIPES))
# Keys that all of a question's tokens choose together depend on its later tokens, and are others than one by one.
IN_ORDER = [recipe for recipe in RECIPES if "query_aware" not in recipe]
executions = pytest.mark.parametrize("execution", EXECUTIONS)


@cases_of_all
def test_research_equals_efficient(recipe: str, shape: Shape) -> None:
    inputs = make_inputs(shape)
    statistics = AttentionStatistics(), AttentionStatistics()
    plain = attend(research(RECIPES[recipe]()), inputs, {STATISTICS_KEY: statistics[0]})
    fast = attend(efficient(RECIPES[recipe]()), inputs, {STATISTICS_KEY: statistics[1]})
    assert plain.dtype == fast.dtype == shape.dtype
    assert plain.shape == fast.shape == (2, shape.group * shape.kv_heads, shape.q_len, shape.head_dim)
    assert_near(fast, plain, shape.dtype)
    assert statistics[0].density() == pytest.approx(statistics[1].density(), abs=1e-9)


@pytest.mark.parametrize(("recipe", "shape"), cases(RECIPES, lambda shape: shape.kv_len < 500))
def test_output_is_the_importance_estimate_over_the_mask(recipe: str, shape: Shape) -> None:
    inputs = make_inputs(shape, batch=1)
    inclusion = inclusion_of(research(RECIPES[recipe]()), inputs)
    expected = naive_attention(inputs, inclusion)
    for make in EXECUTIONS.values():
        assert_near(attend(make(RECIPES[recipe]()), inputs), expected, shape.dtype)


@pytest.mark.parametrize(("recipe", "shape"), cases(DENSE_RECIPES))
@executions
def test_a_full_budget_is_exactly_dense(recipe: str, shape: Shape, execution: str) -> None:
    inputs = make_inputs(shape)
    attention = EXECUTIONS[execution](DENSE_RECIPES[recipe]())
    statistics = AttentionStatistics()
    output = attend(attention, inputs, {STATISTICS_KEY: statistics})
    assert statistics.density() == 1.0
    assert_near(output, sdpa(inputs), shape.dtype)


@pytest.mark.parametrize(("recipe", "shape"), cases(RECIPES, lambda shape: shape.padded))
@executions
def test_forbidden_keys_change_nothing(recipe: str, shape: Shape, execution: str) -> None:
    """Neither chosen nor counted, and they move no maximum: whatever stands there, the output is the same."""
    inputs = make_inputs(shape)
    never = ~inputs.allowed.any(dim=2).squeeze(1)
    assert never.any()
    outputs = []
    for size in (1.0, 3000.0, -3000.0):
        loud = replace(inputs, keys=inputs.keys.clone(), values=inputs.values.clone())
        loud.keys.transpose(1, 2)[never] *= size
        loud.values.transpose(1, 2)[never] *= size
        outputs.append(attend(EXECUTIONS[execution](RECIPES[recipe]()), loud))
    for other in outputs[1:]:
        assert torch.equal(other, outputs[0])


@pytest.mark.parametrize(("recipe", "shape"), cases(IN_ORDER))
def test_future_keys_change_nothing(recipe: str, shape: Shape) -> None:
    """The first query of a chunk sees the same, whatever comes after it."""
    inputs = make_inputs(shape)
    first = shape.kv_len - shape.q_len
    loud = replace(inputs, keys=inputs.keys.clone(), values=inputs.values.clone())
    loud.keys[:, :, first + 1 :] *= -500
    loud.values[:, :, first + 1 :] *= 500
    for make in EXECUTIONS.values():
        before, after = attend(make(RECIPES[recipe]()), inputs), attend(make(RECIPES[recipe]()), loud)
        assert_near(after[:, :, 0], before[:, :, 0], shape.dtype)


@cases_of_all
def test_the_mask_keeps_allowed_keys_only_and_at_least_one(recipe: str, shape: Shape) -> None:
    inputs = make_inputs(shape)
    attention = research(RECIPES[recipe]())
    meta = with_observations(attention, inputs.keys, shape.kv_len - shape.q_len, {}, 0)
    mask = attention.build_mask(*inputs.tensors(), inputs.scaling, 0.0, meta, layer_idx=0)
    counted = mask.count(inputs.allowed)
    assert (counted >= 1).all()
    assert (counted <= inputs.allowed.sum(-1)).all()
    inclusion = mask.to_dense()
    assert ((inclusion >= 0) & (inclusion <= 1)).all()
    if not mask.is_full:
        assert not ((inclusion > 0) & ~inputs.allowed).any()


def previous_masks(inputs: Inputs) -> dict[str, Mask]:
    shape = (*inputs.queries.shape[:3], inputs.keys.shape[2])
    chance = torch.rand(*shape, generator=torch.Generator().manual_seed(5))
    dense = Mask.from_dense(shape, ((chance < 0.3) & inputs.allowed).float())
    shared = ((chance[:, :1] < 0.2) & inputs.allowed).float()
    return {
        "dense": dense,
        "lists": Mask.from_indices(shape, *dense.to_indices()),
        "shared lists": Mask.from_indices(shape, *Mask.from_dense(shape, shared).to_indices()),
        "empty": Mask.empty(shape),
        "full": Mask.full(shape),
    }


@pytest.mark.parametrize(
    ("recipe", "shape"), cases([name for name in RECIPES if "+" not in name], lambda shape: shape.kv_len < 500)
)
def test_a_masker_only_adds_and_never_changes_its_arguments(recipe: str, shape: Shape) -> None:
    inputs = make_inputs(shape)
    attention = research(RECIPES[recipe]())
    (masker,) = attention.maskers
    before = [t.clone() for t in inputs.tensors()]
    for name, previous in previous_masks(inputs).items():
        was = previous.to_dense().clone()
        lists = [t.clone() for t in previous.to_indices()]
        results = []
        for add in (masker.add_mask, masker.add_indices):
            meta = with_observations(attention, inputs.keys, shape.kv_len - shape.q_len, {}, 0)
            mask = add(*inputs.tensors(), inputs.scaling, 0.0, meta, previous, layer_idx=0)
            assert torch.equal(previous.to_dense(), was), name
            assert all(torch.equal(x, y) for x, y in zip(previous.to_indices(), lists, strict=True)), name
            assert all(torch.equal(x, y) for x, y in zip(inputs.tensors(), before, strict=True)), name
            assert (mask.to_dense() >= was).all(), f"{name}: something kept was dropped"
            results.append((mask.to_dense() * inputs.allowed).expand(*inputs.queries.shape[:3], -1))
        assert torch.equal(*results), name


@pytest.mark.parametrize("density", [0.001, 0.1, 0.9])
@pytest.mark.parametrize("masker", ["topk", "random", "streaming_llm"])
@pytest.mark.parametrize("shape", SHAPES[1:4] + SHAPES[6:7], ids=str)
def test_density_is_a_target_for_the_whole_mask(masker: str, density: float, shape: Shape) -> None:
    """A masker with a density adds max(0, target - kept so far), whatever stands before it."""
    from sah.sparse_attention.discovery import masker_configs

    inputs = make_inputs(shape)
    (built,) = research([masker_configs()[masker](density=density)]).maskers  # type: ignore[call-arg]
    allowed = inputs.allowed.sum(-1)
    target = torch.tensor([max(1, round(density * n)) for n in allowed.flatten().tolist()]).view_as(allowed)
    for name, previous in previous_masks(inputs).items():
        kept = previous.count(inputs.allowed)
        expected = torch.maximum(target, kept).expand(inputs.queries.shape[:3])
        for add in (built.add_mask, built.add_indices):
            mask = add(*inputs.tensors(), inputs.scaling, 0.0, {}, previous, layer_idx=0)
            counted = mask.count(inputs.allowed).expand_as(expected)
            assert torch.equal(counted, expected), f"previous mask: {name}"


@pytest.mark.parametrize("recipe", ["sink-hard", "local-hard", "sink+local", "streaming_llm-hard", "random-hard"])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=["fp32", "bf16"])
@executions
def test_an_unselected_key_far_above_the_rest_gives_no_nan(recipe: str, dtype: torch.dtype, execution: str) -> None:
    inputs = make_inputs(Shape(3, 1, False, dtype, 63), batch=1)
    inclusion = inclusion_of(research(RECIPES[recipe]()), inputs)
    unselected = (inclusion == 0).all(dim=1)[0, 0].nonzero().squeeze(-1)
    victim = int(unselected[len(unselected) // 2])
    inputs.queries[:] = inputs.queries.abs()
    inputs.keys[:, :, victim] = 1.0
    scale = 400 / (inputs.queries.float() @ inputs.keys[:, :1, victim].float().mT * inputs.scaling).min()
    inputs.keys[:, :, victim] = scale.to(dtype)
    expected = naive_attention(inputs, inclusion)
    assert_near(attend(EXECUTIONS[execution](RECIPES[recipe]()), inputs), expected, dtype)


@pytest.mark.parametrize("recipe", IN_ORDER)
@pytest.mark.parametrize("padded", [False, True], ids=["nopad", "pad"])
def test_a_chunk_equals_token_by_token(recipe: str, padded: bool) -> None:
    shape = Shape(3, 9, padded, F32, 63)
    inputs = make_inputs(shape)
    chunk = attend(research(RECIPES[recipe]()), inputs)
    for execution in EXECUTIONS.values():
        attention: Any = execution(RECIPES[recipe]())
        meta: dict[Any, Any] = {}
        for step in range(shape.q_len):
            end = shape.kv_len - shape.q_len + step + 1
            alone = Inputs(
                inputs.queries[:, :, step : step + 1],
                inputs.keys[:, :, :end],
                inputs.values[:, :, :end],
                inputs.allowed[:, :, step : step + 1, :end],
                inputs.scaling,
            )
            assert_near(attend(attention, alone, meta)[:, :, 0], chunk[:, :, step])


@recipes
def test_a_row_does_not_depend_on_its_batch_company(recipe: str) -> None:
    for q_len in (1, 4):
        inputs = make_inputs(Shape(3, q_len, True, F32, 63), batch=3)
        meta = {"lanes": ["a", "b", "c"]}
        for make in EXECUTIONS.values():
            together = attend(make(RECIPES[recipe]()), inputs, dict(meta))
            for row, lane in enumerate(meta["lanes"]):
                alone = Inputs(*(t[row : row + 1] for t in inputs.tensors()), inputs.scaling)  # type: ignore[arg-type]
                assert_near(attend(make(RECIPES[recipe]()), alone, {"lanes": [lane]}), together[row : row + 1])


@recipes
@executions
def test_left_padding_equals_no_padding(recipe: str, execution: str) -> None:
    for q_len in (1, 4):
        plain = make_inputs(Shape(3, q_len, False, F32, 50), batch=1)
        pad = 13
        padded = Inputs(
            plain.queries,
            torch.cat([torch.full_like(plain.keys[:, :, :pad], 50.0), plain.keys], 2),
            torch.cat([torch.full_like(plain.values[:, :, :pad], 50.0), plain.values], 2),
            torch.cat([torch.zeros(1, 1, q_len, pad, dtype=torch.bool), plain.allowed], 3),
            plain.scaling,
        )
        outputs = [attend(EXECUTIONS[execution](RECIPES[recipe]()), inputs) for inputs in (plain, padded)]
        assert_near(outputs[1], outputs[0])


@recipes
@executions
def test_masks_come_in_several_forms(recipe: str, execution: str) -> None:
    """None, boolean and additive masks of one meaning give one output."""
    for q_len in (1, 5):
        inputs = make_inputs(Shape(2, q_len, False, F32, 40))
        additive = torch.zeros(1, 1, q_len, 40).masked_fill(~causal(q_len, 40), torch.finfo(F32).min)
        minus_infinity = torch.zeros(1, 1, q_len, 40).masked_fill(~causal(q_len, 40), float("-inf"))
        expected = attend(EXECUTIONS[execution](RECIPES[recipe]()), inputs)
        for mask in (None, causal(q_len, 40), additive, minus_infinity, causal(q_len, 45)[..., 5:]):
            output = attend(EXECUTIONS[execution](RECIPES[recipe]()), inputs, attention_mask=mask)
            assert torch.equal(output, expected)


@recipes
@executions
def test_queries_that_may_read_nothing_disturb_no_other(recipe: str, execution: str) -> None:
    inputs = make_inputs(Shape(2, 12, False, F32, 12), batch=1)
    inputs.allowed[..., :4] = False
    live = Inputs(inputs.queries[:, :, 4:], inputs.keys, inputs.values, inputs.allowed[:, :, 4:], inputs.scaling)
    output = attend(EXECUTIONS[execution](RECIPES[recipe]()), inputs)
    assert_near(output[:, :, 4:], attend(EXECUTIONS[execution](RECIPES[recipe]()), live))
    assert torch.isfinite(output).all()
