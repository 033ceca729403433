"""MagicPIG: exact probabilities, unbiased estimates, and what happens without a collision."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from sah.errors import ConfigError
from sah.sparse_attention import (
    LocalMaskerConfig,
    MagicPigConfig,
    Mask,
    RandomSamplingMaskerConfig,
    SinkMaskerConfig,
    TopKMaskerConfig,
)
from sah.sparse_attention.maskers.magicpig import MagicPig, chance_of_matches
from tests.support.attention import (
    BF16,
    EXECUTIONS,
    F32,
    SHAPES,
    Inputs,
    Shape,
    assert_near,
    attend,
    inclusion_of,
    make_inputs,
    naive_attention,
    research,
)
from tests.support.magicpig import add, dense, exact_chance, naive_inclusion


@pytest.mark.parametrize("shape", [s for s in SHAPES if s.kv_len < 100] + [Shape(4, 1, True, BF16, 40)], ids=str)
@pytest.mark.parametrize(
    "config",
    [
        MagicPigConfig(lsh_l=12, lsh_k=3),
        MagicPigConfig(lsh_l=6, lsh_k=4, min_matches=1, center=False),
        MagicPigConfig(lsh_l=40, lsh_k=5, min_matches=3),
    ],
    ids=["two", "one", "three"],
)
def test_the_mask_follows_the_definition(shape: Shape, config: MagicPigConfig) -> None:
    inputs = make_inputs(shape)
    expected = naive_inclusion(config, inputs)
    for make in EXECUTIONS.values():
        inclusion = inclusion_of(make([config]), inputs)
        assert torch.equal(inclusion > 0, expected > 0)
        torch.testing.assert_close(inclusion, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("tables", "least"), [(1, 1), (2, 2), (20, 1), (20, 5), (150, 2), (150, 40), (400, 2)])
def test_the_chance_of_matches_is_stable(tables: int, least: int) -> None:
    values = [0.0, 1e-100, 1e-30, 1e-9, 1e-4, 0.001, least / tables, 0.02, 0.3, 0.7, 1 - 1e-3, 1 - 1e-12, 1.0]
    chances = chance_of_matches(torch.tensor(values, dtype=torch.float64), tables, least)
    for value, chance in zip(values, chances.tolist(), strict=True):
        assert chance == pytest.approx(exact_chance(value, tables, least), rel=1e-11, abs=1e-300)


def single(kv_len: int, head_dim: int = 8) -> Inputs:
    return make_inputs(Shape(1, 1, False, F32, kv_len, kv_heads=1, head_dim=head_dim), batch=1)


def sampled(config: MagicPigConfig, inputs: Inputs, seeds: int) -> torch.Tensor:
    """Inclusion over independent hyperplanes, (seeds, kv_len), the first key kept before so that no row is empty."""
    shape = (*inputs.queries.shape[:3], inputs.keys.shape[2])
    first = Mask.from_spans(shape, ((0, 1),))
    return torch.stack([dense(add(MagicPig(config, seed=s), inputs, first))[0, 0, 0] for s in range(seeds)])


@pytest.mark.parametrize("least", [1, 2, 4])
@pytest.mark.parametrize("center", [True, False])
def test_the_probability_is_the_frequency_and_the_denominator_unbiased(least: int, center: bool) -> None:
    """Over 800 independent sets of hyperplanes; the seeds are fixed, so this cannot flicker."""
    inputs = single(24)
    inputs.keys[..., :3, :] = inputs.queries * torch.tensor([0.5, 2.0, -1.0])[:, None]
    inputs.keys[..., 5, :] = 0
    config = MagicPigConfig(lsh_l=12, lsh_k=3, min_matches=least, center=center)
    inclusion = sampled(config, inputs, 800).double()
    mean = inputs.keys[0, 0, :-1].double().mean(0) if center else torch.zeros(8).double()
    angles = torch.acos(torch.cosine_similarity(inputs.queries[0, 0].double(), inputs.keys[0, 0] - mean, dim=-1))
    if not center:
        angles[5] = math.pi / 2
        angles[2] = math.pi
    chances = [exact_chance(max(0.0, 1 - a / math.pi) ** 3, 12, least) for a in angles.tolist()]
    chance = torch.tensor(chances, dtype=torch.float64)
    chance[0] = 1
    frequency = (inclusion > 0).double().mean(0)
    assert ((frequency - chance).abs() <= 4.5 * (chance * (1 - chance) / 800).sqrt() + 1e-6).all()
    recorded = inclusion.amax(0)
    seen = recorded > 0
    assert int(seen.sum()) >= 14
    assert torch.allclose(recorded[seen], chance[seen], rtol=1e-6, atol=1e-9)
    assert ((inclusion == 0) | (inclusion == recorded)).all(), "the probability is that of the key, not of the draw"
    if not center:
        assert recorded[1] == 1, "a parallel key is certain, exactly"
        assert recorded[2] == 0, "an opposite key never collides"

    exponentials = torch.exp((inputs.queries @ inputs.keys.mT * inputs.scaling).double())[0, 0, 0]
    estimates = torch.where(inclusion > 0, exponentials / inclusion.clamp(min=1e-300), 0.0).sum(-1)
    reachable = exponentials[chance > 1e-9].sum()
    standard_error = float(estimates.std() / 800**0.5)
    assert abs(float(estimates.mean() - reachable)) < 4 * standard_error


def test_centring_changes_nothing_where_the_mean_is_zero() -> None:
    inputs = make_inputs(Shape(3, 2, False, F32, 62))
    half = inputs.keys[:, :, :30].clone()
    inputs.keys[:, :, :60] = torch.cat([half, -half], dim=2)
    masks = [inclusion_of(research([MagicPigConfig(lsh_l=30, lsh_k=4, center=c)]), inputs) for c in (True, False)]
    assert torch.equal(*masks)
    assert 0.02 < float((masks[0] > 0).float().mean()) < 0.98


def test_centring_tells_keys_with_a_big_common_offset_apart() -> None:
    """Without it, all keys lie in one direction and collide equally often, whatever their logits."""
    inputs = make_inputs(Shape(4, 1, False, F32, 400))
    inputs.keys += 20 * torch.nn.functional.normalize(torch.ones(16), dim=0)
    logits = (inputs.queries.view(2, 2, 4, 16) @ inputs.keys.mT).view(2, 8, 1, 400)
    best = logits.topk(20, dim=-1).indices
    advantage = {}
    for center in (True, False):
        shares = torch.zeros_like(logits)
        for seed in range(40):
            masker = MagicPig(MagicPigConfig(lsh_l=30, lsh_k=6, center=center), seed=seed)
            shares += dense(add(masker, inputs, Mask.from_spans((2, 8, 1, 400), ((0, 1),)))) > 0
        advantage[center] = float(shares.gather(-1, best).mean() / shares.mean())
    assert advantage[True] > 4
    assert advantage[False] < 2


@pytest.mark.parametrize("group", [1, 3, 4])
@pytest.mark.parametrize("kv_len", [1, 3, 67, 68, 69, 200])
def test_without_a_collision_the_first_and_last_keys_are_kept(group: int, kv_len: int) -> None:
    """The trap is 0/0: no key collides, so that nothing stands in the denominator."""
    inputs = make_inputs(Shape(group, 1, False, F32, kv_len))
    inputs.keys[:] = inputs.keys.abs()
    inputs.queries[:] = -1.0
    config = MagicPigConfig(lsh_l=2, lsh_k=60, center=False)
    expected = torch.zeros(2, 2 * group, 1, kv_len)
    expected[..., :4] = 1
    expected[..., -64:] = 1
    for make in EXECUTIONS.values():
        assert torch.equal(inclusion_of(make([config]), inputs), expected)
        assert_near(attend(make([config]), inputs), naive_attention(inputs, expected))
        kept = inclusion_of(make([SinkMaskerConfig(sink_size=1), config]), inputs)
        assert torch.equal(kept, (torch.arange(kv_len) < 1).float().expand_as(kept)), "no row was empty"


def test_only_the_heads_that_would_be_empty_fall_back() -> None:
    inputs = make_inputs(Shape(3, 1, False, F32, 120), batch=1)
    inputs.keys[:] = inputs.keys.abs()
    inputs.queries[:] = -inputs.queries.abs()
    inputs.queries[:, 4] *= -1
    config = MagicPigConfig(lsh_l=30, lsh_k=6, center=False, min_matches=3)
    inclusion = inclusion_of(research([config]), inputs)
    assert torch.equal(inclusion, inclusion_of(EXECUTIONS["efficient"]([config]), inputs))
    fallen_back = ((inclusion[0, :, 0] == 1).sum(-1) == 68) & ((inclusion[0, :, 0] > 0).sum(-1) == 68)
    assert fallen_back.tolist() == [True, True, True, True, False, True]
    assert ((inclusion[0, 4] > 0) & (inclusion[0, 4] < 1)).any()


def test_the_fallback_counts_allowed_keys() -> None:
    inputs = make_inputs(Shape(1, 3, True, F32, 111), batch=2)
    inputs.keys[:] = inputs.keys.abs()
    inputs.queries[:] = -1.0
    inclusion = inclusion_of(research([MagicPigConfig(lsh_l=2, lsh_k=60, center=False)]), inputs)
    for b in range(2):
        for q in range(3):
            positions = inputs.allowed[b, 0, q].nonzero().squeeze(-1).tolist()
            wanted = sorted({*positions[:4], *positions[-64:]})
            assert inclusion[b, 0, q].nonzero().squeeze(-1).tolist() == wanted


@pytest.mark.parametrize("dtype", [F32, BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("group", [1, 3, 4])
def test_an_unread_key_far_above_the_rest_gives_no_nan(group: int, dtype: torch.dtype) -> None:
    """Making a key longer changes no signature: a key that was not read stays unread, whatever its logit."""
    inputs = make_inputs(Shape(group, 1, False, dtype, 63), batch=1)
    recipe = [MagicPigConfig(lsh_l=8, lsh_k=6, center=False, min_matches=1)]
    inclusion = inclusion_of(research(recipe), inputs)
    logits = (inputs.queries.float().view(1, 2, group, 16) @ inputs.keys.float().mT).view(2 * group, 63)
    unread = (inclusion[0, :, 0] == 0) & (logits > 1)
    for head in range(2 * group):
        victim = int(unread[head].nonzero()[0])
        loud = replace(inputs, keys=inputs.keys.clone())
        loud.keys[:, :, victim] *= 2.0**12
        for make in EXECUTIONS.values():
            output = attend(make(recipe), loud)
            assert_near(output, naive_attention(loud, inclusion_of(research(recipe), loud)), dtype)
            expected = naive_attention(inputs, inclusion)[:, head]
            assert_near(output[:, head], expected, dtype)


def test_equal_keys_and_zero_queries_have_a_probability() -> None:
    """Centred, equal keys are zero vectors: they agree with a query as orthogonal ones do, with a zero query always.

    A mean that is off by a rounding error would give them a direction.
    """
    inputs = single(41)
    inputs.keys[:] = torch.linspace(-0.37, 1.1, 8)
    config = MagicPigConfig(lsh_l=6, lsh_k=2)
    inclusion = sampled(config, inputs, 600)[:, 1:]
    chance = exact_chance(0.25, 6, 2)
    assert torch.allclose(inclusion[inclusion > 0], torch.tensor(chance).float())
    frequency = float((inclusion > 0).double().mean())
    assert abs(frequency - chance) < 4 * (chance * (1 - chance) / 600) ** 0.5
    inputs.queries[:] = 0
    assert (sampled(config, inputs, 3) == 1).all()


def test_many_bits_keep_only_what_points_the_same_way() -> None:
    inputs = make_inputs(Shape(1, 1, False, F32, 90, kv_heads=1), batch=1)
    inputs.keys[:, :, 17] = inputs.queries[:, :, 0] * 3
    inputs.keys[:, :, 18] = -inputs.queries[:, :, 0]
    for make in EXECUTIONS.values():
        inclusion = inclusion_of(make([MagicPigConfig(lsh_l=257, lsh_k=63, center=False)]), inputs)[0, 0, 0]
        assert inclusion.nonzero().squeeze(-1).tolist() == [17]
        assert inclusion[17] == 1


def test_improbable_keys_have_a_probability_above_zero() -> None:
    masker = MagicPig(MagicPigConfig(lsh_l=2, lsh_k=63))
    chance = masker._chance(torch.tensor([-1.0, -0.999999, 0.0, 1.0], dtype=torch.float64))
    assert (chance > 0).all()
    assert torch.isfinite(1 / chance).all()
    assert chance[-1] == 1


@pytest.mark.parametrize("softcap", [None, 1.5])
def test_lists_carry_logits_before_the_models_cap(softcap: float | None) -> None:
    inputs = make_inputs(Shape(4, 1, False, F32, 80))
    config = MagicPigConfig(lsh_l=25, lsh_k=4)
    mask = add(MagicPig(config, "0.magicpig"), inputs, fast=True)
    (part,) = mask.lists
    logits = (inputs.queries.view(2, 2, 4, 16) @ inputs.keys.mT * inputs.scaling).view(2, 8, 1, 80)
    assert part.logits is not None
    assert part.probabilities is not None
    used = part.probabilities > 0
    assert not used.all()
    torch.testing.assert_close(part.logits[used], logits.gather(-1, part.indices)[used], atol=1e-5, rtol=1e-5)
    outputs = [attend(make([config]), inputs, softcap=softcap) for make in EXECUTIONS.values()]
    assert_near(outputs[1], outputs[0])
    assert_near(outputs[0], naive_attention(inputs, inclusion_of(research([config]), inputs), softcap=softcap))


def test_gradients_pass_through_attention_and_not_through_probabilities() -> None:
    inputs = make_inputs(Shape(2, 3, False, F32, 40))
    for tensor in (inputs.queries, inputs.keys, inputs.values):
        tensor.requires_grad_()
    attention = research([MagicPigConfig(lsh_l=20, lsh_k=3)])
    assert not inclusion_of(attention, inputs).requires_grad
    attend(attention, inputs).square().sum().backward()
    for tensor in (inputs.queries, inputs.keys, inputs.values):
        assert tensor.grad is not None
        assert torch.isfinite(tensor.grad).all()
        assert tensor.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("field", "value"),
    [("lsh_l", v) for v in (0, -1, 1.5, "8", True, None)]
    + [("lsh_k", v) for v in (0, 64, 2.0, True)]
    + [("min_matches", v) for v in (0, 151, 1.0, False)]
    + [("center", v) for v in (1, 0, "yes", None)],
)
def test_bad_values_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        MagicPigConfig(**{field: value})
    for part in (f"masker.magicpig.{field}", repr(value), "Allowed:", f"masker.magicpig.{field}="):
        assert part in str(caught.value)
    built = MagicPigConfig()
    with pytest.raises(ConfigError):
        setattr(built, field, value)
    assert built == MagicPigConfig()


def test_more_matches_than_tables_are_refused() -> None:
    with pytest.raises(ConfigError, match="min_matches=3 is not allowed.*lsh_l=2"):
        MagicPigConfig(lsh_l=2, min_matches=3)
    built = MagicPigConfig(lsh_l=4, min_matches=4)
    with pytest.raises(ConfigError):
        built.lsh_l = 3
    assert built.lsh_l == 4


def test_it_is_a_sampler_that_keeps_keys_per_head() -> None:
    config = MagicPigConfig()
    assert (config.lsh_k, config.lsh_l, config.min_matches, config.center) == (10, 150, 2, True)
    assert config.keeps_per_head
    assert not config.reads_density()
    with pytest.raises(ConfigError, match="2 sampling maskers"):
        research([config, RandomSamplingMaskerConfig(sampling_rate=3)])
    with pytest.raises(ConfigError, match="selection=group comes after magicpig"):
        research([config, TopKMaskerConfig(heavy_size=3, selection="group")])
    research([SinkMaskerConfig(), LocalMaskerConfig(), config])
