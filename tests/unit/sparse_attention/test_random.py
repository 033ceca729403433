"""Uniform sampling without replacement: exact probabilities, unbiased estimates, reproducible draws."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sah.sparse_attention import (
    LocalMaskerConfig,
    RandomSamplingMaskerConfig,
    SinkMaskerConfig,
    TopKMaskerConfig,
)
from tests.support.attention import EXECUTIONS, F32, SHAPES, Inputs, Shape, attend, inclusion_of, make_inputs, research


@pytest.mark.parametrize("shape", [s for s in SHAPES if s.kv_len < 500], ids=str)
@pytest.mark.parametrize("rate", [1, 7, 0.5, 1.0])
def test_the_probability_is_draws_by_residual_exactly(shape: Shape, rate: float) -> None:
    inputs = make_inputs(shape)
    first: list[Any] = [SinkMaskerConfig(sink_size=2), TopKMaskerConfig(heavy_size=3)]
    before = inclusion_of(research(first), inputs) > 0
    inclusion = inclusion_of(research([*first, RandomSamplingMaskerConfig(sampling_rate=rate)]), inputs)
    assert (inclusion[before] == 1).all()
    allowed = inputs.allowed.expand_as(before).sum(-1)
    residual = allowed - before.sum(-1)
    wanted = rate if isinstance(rate, int) else (rate * allowed.double()).round().long().clamp(min=1)
    draws = torch.minimum(torch.as_tensor(wanted).expand_as(residual), residual)
    drawn = (inclusion > 0) & ~before
    assert torch.equal(drawn.sum(-1), draws), "draws are without replacement, so there are exactly as many keys"
    probability = (draws.double() / residual.clamp(min=1)).float()
    assert torch.equal(inclusion[drawn], probability.unsqueeze(-1).expand_as(inclusion)[drawn])


def draw_many(recipe: list[Any], inputs: Inputs, draws: int) -> torch.Tensor:
    """Inclusion of many independent draws, (draws, kv_len): one lane a draw, all rows of one batch."""
    lanes = [f"draw {i}" for i in range(draws)]
    wide = Inputs(
        inputs.queries.expand(draws, -1, -1, -1),
        inputs.keys.expand(draws, -1, -1, -1),
        inputs.values.expand(draws, -1, -1, -1),
        inputs.allowed.expand(draws, -1, -1, -1),
        inputs.scaling,
    )
    return inclusion_of(research(recipe), wide, {"lanes": lanes})[:, 0, 0]


def test_every_residual_key_is_drawn_equally_often() -> None:
    """Chi-square over 4,000 draws of 5 of 20 keys; the seed is fixed, so this cannot flicker."""
    inputs = make_inputs(Shape(1, 1, False, F32, 24, kv_heads=1), batch=1)
    inclusion = draw_many([SinkMaskerConfig(), RandomSamplingMaskerConfig(sampling_rate=5)], inputs, 4000)
    assert (inclusion[:, :4] == 1).all()
    hits = (inclusion[:, 4:] > 0).sum(0).double()
    expected = 4000 * 5 / 20
    # Variance of a hit is p (1-p), and the hits of a draw sum to 5: the statistic follows chi-square with 19 degrees.
    chi_square = float(((hits - expected) ** 2 / (expected * (1 - 0.25))).sum()) * 19 / 20
    assert chi_square < 43.8, "above the 99.9 % quantile"
    pairs = ((inclusion[:, 4] > 0) & (inclusion[:, 5] > 0)).double().mean()
    assert abs(float(pairs) - 5 * 4 / (20 * 19)) < 4 * (0.05 * 0.95 / 4000) ** 0.5


@pytest.mark.parametrize("rate", [2, 0.5, 0.9])
def test_the_estimate_of_the_denominator_is_unbiased(rate: float) -> None:
    """Trap of the reference: with replacement and p = n/K the mean was 0.79 of the truth at a rate of 0.5."""
    inputs = make_inputs(Shape(1, 1, False, F32, 60, kv_heads=1), batch=1)
    exponentials = torch.exp((inputs.queries @ inputs.keys.mT * inputs.scaling).double())[0, 0, 0]
    recipe = [SinkMaskerConfig(), LocalMaskerConfig(window_size=4), RandomSamplingMaskerConfig(sampling_rate=rate)]
    inclusion = draw_many(recipe, inputs, 3000).double()
    estimates = torch.where(inclusion > 0, exponentials / inclusion.clamp(min=1e-9), 0.0).sum(-1)
    error = float(estimates.mean() - exponentials.sum())
    standard_error = float(estimates.std() / 3000**0.5)
    assert abs(error) < 4 * standard_error + 1e-9


def test_equal_keys_give_the_denominator_exactly() -> None:
    """With equal logits any draw estimates the sum exactly, so weights must be exactly 1/p, not 1/(p + tiny)."""
    inputs = make_inputs(Shape(1, 1, False, F32, 61, kv_heads=1), batch=1)
    inputs.keys[:] = 0
    for make in EXECUTIONS.values():
        recipe = [SinkMaskerConfig(sink_size=1), RandomSamplingMaskerConfig(sampling_rate=7)]
        inclusion = inclusion_of(research(recipe), inputs)[0, 0, 0].double()
        estimate = (1 / inclusion[inclusion > 0]).sum()
        assert float(estimate) == pytest.approx(61, abs=1e-4)
        weights = torch.where(inclusion > 0, 1 / inclusion.clamp(min=1e-9), 0.0) / estimate
        expected = (weights @ inputs.values[0, 0].double()).float()
        assert torch.allclose(attend(make(recipe), inputs)[0, 0, 0], expected, atol=1e-6)


def test_draws_repeat_and_follow_the_seed() -> None:
    inputs = make_inputs(SHAPES[0])
    recipe = [RandomSamplingMaskerConfig(sampling_rate=9)]

    def drawn(seed: int, layer: int = 0, lanes: list[str] | None = None) -> torch.Tensor:
        meta = {"lanes": lanes} if lanes else {}
        return inclusion_of(research(recipe, seed=seed), inputs, meta, layer_idx=layer)

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    assert not torch.equal(drawn(1), drawn(1, layer=1))
    assert not torch.equal(drawn(1, lanes=["a", "b"]), drawn(1, lanes=["b", "a"]))
    assert torch.equal(drawn(1, lanes=["a", "b"])[0], drawn(1, lanes=["a", "c"])[0])


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    inputs = make_inputs(SHAPES[0])
    recipe = [RandomSamplingMaskerConfig(sampling_rate=9)]
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = inclusion_of(research(recipe), inputs)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(inclusion_of(research(recipe), inputs), first)


def test_heads_and_steps_draw_apart() -> None:
    inputs = make_inputs(Shape(4, 6, False, F32, 63), batch=1)
    inclusion = inclusion_of(research([RandomSamplingMaskerConfig(sampling_rate=8)]), inputs)[0] > 0
    patterns = {tuple(row.tolist()) for row in inclusion.flatten(0, 1)}
    assert len(patterns) == 8 * 6


def test_draws_do_not_depend_on_chunking() -> None:
    inputs = make_inputs(Shape(3, 8, False, F32, 63), batch=1)
    recipe = [SinkMaskerConfig(), RandomSamplingMaskerConfig(density=0.3)]
    whole = inclusion_of(research(recipe), inputs)
    for start, stop in [(0, 1), (1, 4), (4, 8)]:
        end = 63 - 8 + stop
        piece = Inputs(
            inputs.queries[:, :, start:stop],
            inputs.keys[:, :, :end],
            inputs.values[:, :, :end],
            inputs.allowed[:, :, start:stop, :end],
            inputs.scaling,
        )
        assert torch.equal(inclusion_of(research(recipe), piece), whole[:, :, start:stop, :end])
