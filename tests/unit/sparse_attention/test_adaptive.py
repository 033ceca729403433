"""Adaptive sampling: how many keys it draws, which, and what it reads for that."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import NormalDist
from typing import Any

import pytest
import torch

from sah.errors import ConfigError
from sah.sparse_attention import (
    AdaptiveSamplingMaskerConfig,
    LocalMaskerConfig,
    Mask,
    SinkMaskerConfig,
    TopKMaskerConfig,
)
from sah.sparse_attention.key_lists import KeyLists
from sah.sparse_attention.maskers import adaptive
from sah.sparse_attention.sample_size import KeysRead, keys_needed
from tests.support.attention import (
    EXECUTIONS,
    F32,
    SHAPES,
    Inputs,
    Shape,
    attend,
    efficient,
    inclusion_of,
    make_inputs,
    naive_attention,
    research,
)

executions = pytest.mark.parametrize("execution", EXECUTIONS)
guarantees = pytest.mark.parametrize("guarantee", ["denominator", "numerator", "output"])
Config = AdaptiveSamplingMaskerConfig
DECODE = Shape(3, 1, False, F32, 200)


def mask_of(recipe: list[Any], inputs: Inputs, execution: str = "efficient", **kwargs: Any) -> Mask:
    kwargs.setdefault("layer_idx", 0)
    return EXECUTIONS[execution](recipe).build_mask(*inputs.tensors(), inputs.scaling, 0.0, {}, **kwargs)


def counts(recipe: list[Any], inputs: Inputs, execution: str = "efficient", **kwargs: Any) -> torch.Tensor:
    mask = mask_of(recipe, inputs, execution, **kwargs)
    return mask.count(inputs.allowed).expand(inputs.queries.shape[:3])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("epsilon", value) for value in (0, 0.0, 1, 1.0, -0.1, float("nan"), "0.1", True, None)],
        *[("delta", value) for value in (0, 1, 2.0, float("nan"), "a")],
        *[("base_rate", value) for value in (0, 0.0, 1.5, -3, True, None, "all")],
        *[("base_min", value) for value in (0, 1, 2.5, None, True)],
        *[("guarantee", value) for value in ("denominators", "", None, 1)],
        ("selection", "both"),
    ],
)
def test_values_that_cannot_be_used_are_named(field: str, value: Any) -> None:
    for build in (lambda: Config(**{field: value}), lambda: setattr(Config(), field, value)):
        with pytest.raises(ConfigError, match=rf"masker\.adaptive\.{field}=.* is not allowed. Allowed: .*Write"):
            build()


def test_it_reads_no_density_and_is_a_sampler() -> None:
    assert Config.is_sampler
    assert not Config().reads_density()
    assert not Config().has_density()
    with pytest.raises(TypeError):
        Config(density=0.1)  # type: ignore[call-arg]


@guarantees
@pytest.mark.parametrize("shape", [s for s in SHAPES if s.kv_len < 500], ids=str)
def test_the_probability_is_drawn_by_residual_exactly(shape: Shape, guarantee: str) -> None:
    inputs = make_inputs(shape)
    first: list[Any] = [SinkMaskerConfig(sink_size=2), TopKMaskerConfig(heavy_size=3)]
    before = inclusion_of(research(first), inputs) > 0
    sampler = Config(base_rate=5, epsilon=0.3, guarantee=guarantee)
    inclusion = inclusion_of(research([*first, sampler]), inputs)
    assert (inclusion[before] == 1).all(), "keys kept before are neither drawn nor weighed"
    residual = inputs.allowed.expand_as(before).sum(-1) - before.sum(-1)
    drawn = (inclusion > 0) & ~before
    number = drawn.sum(-1)
    assert (number >= residual.clamp(max=5)).all()
    probability = (number.double() / residual.clamp(min=1)).float().unsqueeze(-1).expand_as(inclusion)
    assert torch.equal(inclusion[drawn], probability[drawn])


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ({"base_rate": 1}, 2),
        ({"base_rate": 2}, 2),
        ({"base_rate": 7}, 7),
        ({"base_rate": 0.1, "base_min": 2}, 20),
        ({"base_rate": 0.001, "base_min": 2}, 2),
        ({"base_rate": 0.001, "base_min": 50}, 50),
        ({"base_rate": 0.1}, 128),
        ({"base_rate": 0.8}, 160),
        ({"base_rate": 300}, 200),
    ],
)
@executions
def test_equal_keys_ask_for_the_base_sample_alone(base: dict[str, Any], expected: int, execution: str) -> None:
    """At least two keys, for a variance; a share stands for `base_min` at least, a number for itself."""
    inputs = make_inputs(DECODE)
    inputs.keys[:] = 0.3
    assert (counts([Config(**base)], inputs, execution) == expected).all()


@executions
def test_nothing_left_is_nothing_drawn(execution: str) -> None:
    inputs = make_inputs(DECODE)
    recipe = [TopKMaskerConfig(heavy_size=0.9), LocalMaskerConfig(window_size=5), SinkMaskerConfig(sink_size=1.0)]
    assert (counts([*recipe, Config()], inputs, execution) == DECODE.kv_len).all()


@executions
@guarantees
def test_a_smaller_error_asks_for_more_and_keeps_what_was_drawn(guarantee: str, execution: str) -> None:
    """The base sample is part of every sample, and samples of one seed contain each other."""
    inputs = make_inputs(DECODE)
    inputs.values[:] += 2
    kept = [
        mask_of([SinkMaskerConfig(), Config(base_rate=10, epsilon=epsilon, guarantee=guarantee)], inputs, execution)
        for epsilon in (0.999, 0.6, 0.4, 0.2)
    ]
    sizes = [mask.count(inputs.allowed).double().mean() for mask in kept]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == 4
    base = mask_of([SinkMaskerConfig(), Config(base_rate=10, epsilon=0.999, delta=0.999)], inputs).to_dense() > 0
    assert (base.sum(-1) == 14).all()
    for mask in kept:
        assert (mask.to_dense()[base] > 0).all(), "the base sample is kept"
    assert (kept[-1].to_dense()[..., :4] == 1).all()


@executions
def test_a_surer_promise_asks_for_more(execution: str) -> None:
    inputs = make_inputs(DECODE)
    sizes = [
        counts([Config(base_rate=10, epsilon=0.3, delta=delta)], inputs, execution).double().mean()
        for delta in (0.5, 0.2, 0.05, 0.001)
    ]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]


@guarantees
def test_a_tiny_error_keeps_everything_with_certainty(guarantee: str) -> None:
    inputs = make_inputs(DECODE)
    inputs.values[:] += 2
    recipe = [SinkMaskerConfig(), Config(base_rate=10, epsilon=1e-7, guarantee=guarantee)]
    assert mask_of(recipe, inputs).is_full
    assert (inclusion_of(research(recipe), inputs) == 1).all()


def needed_by_definition(
    kept: torch.Tensor, drawn: torch.Tensor, values: dict[str, torch.Tensor], sink: float, size: int, config: Config
) -> int:
    """The sample size of one head straight from its definition, in double precision and with explicit vectors."""
    kept, drawn = kept.double().exp(), drawn.double().exp()
    rows = {name: tensor.double() for name, tensor in values.items()}
    number = len(drawn)
    denominator = kept.sum() + math.exp(sink) + size * drawn.mean()
    if config.guarantee == "denominator":
        added, total = drawn.unsqueeze(-1), denominator.view(1)
    else:
        total = kept @ rows["kept"] + size * (drawn.unsqueeze(-1) * rows["drawn"]).mean(0)
        centre = total / denominator if config.guarantee == "output" else torch.zeros_like(total)
        added = drawn.unsqueeze(-1) * (rows["drawn"] - centre)
    distances = (added - added.mean(0)).square().sum(-1)
    trace = torch.cov(added.T).trace() if added.shape[1] > 1 else added.var()
    careful = trace + distances.std(correction=0) / number**0.5
    squared = max(0.0, float(total.square().sum() - size**2 * trace * (1 / number - 1 / size)))
    quantile = NormalDist().inv_cdf(1 - config.delta / 2)
    for n in range(size + 1):
        if n and quantile**2 * size**2 * careful * (1 / n - 1 / size) <= config.epsilon**2 * squared:
            return n
    return size


@guarantees
@pytest.mark.parametrize("sink", [None, 2.5], ids=["no sink", "sink"])
def test_the_number_of_keys_follows_its_definition(guarantee: str, sink: float | None) -> None:
    generator = torch.Generator().manual_seed(3)
    heads, lists, held, number, size = 6, 2, 9, 30, 400
    kept = torch.randn(1, heads, 1, held, generator=generator) + 3
    drawn = torch.randn(1, heads, 1, number, generator=generator)
    values = torch.randn(1, lists, held + number, 5, generator=generator) + torch.tensor([4.0, 2, 0, 0, -1])
    config = Config(epsilon=0.1, delta=0.1, guarantee=guarantee)
    sizes, numbers = torch.full((1, heads, 1), size), torch.full((1, heads, 1), number)
    answer = keys_needed(
        [KeysRead(kept, torch.ones_like(kept), values[:, :, :held])],
        KeysRead(drawn, torch.ones_like(drawn), values[:, :, held:]),
        sizes,
        numbers,
        None if sink is None else torch.full((heads,), sink),
        config,
    )
    for head in range(heads):
        mine = values[0, head // (heads // lists)]
        rows = {"kept": mine[:held], "drawn": mine[held:]}
        level = -math.inf if sink is None else sink
        expected = needed_by_definition(kept[0, head, 0], drawn[0, head, 0], rows, level, size, config)
        assert abs(int(answer[0, head, 0]) - expected) <= 1
        assert 1 < expected < size, "the case must be worth testing"


@executions
def test_sinks_and_caps_of_the_model_count(execution: str) -> None:
    """A learned sink logit fills the denominator, a soft cap flattens the scores: both leave less to be drawn."""
    inputs = make_inputs(DECODE)
    inputs.queries[:] *= 2
    recipe = [Config(base_rate=5, epsilon=0.2)]
    plain = counts(recipe, inputs, execution)
    sinks = torch.full((6,), 60.0)
    assert (plain > 5).all()
    assert (counts(recipe, inputs, execution, s_aux=sinks) == 5).all()
    capped = counts(recipe, inputs, execution, softcap=0.1)
    assert (capped < plain).all()
    assert torch.equal(counts(recipe, inputs, "research", softcap=2.0), counts(recipe, inputs, softcap=2.0))


@executions
def test_an_unread_key_far_above_the_rest_changes_nothing(execution: str) -> None:
    inputs = make_inputs(DECODE, batch=1)
    recipe = [SinkMaskerConfig(), Config(base_rate=12, epsilon=0.5, delta=0.3)]
    mask = mask_of(recipe, inputs, execution).to_dense()
    unread = (mask == 0).all(dim=1)[0, 0].nonzero().flatten()
    expected = naive_attention(inputs, mask.expand(1, 6, 1, -1))
    assert len(unread) > 10
    for size in (1e4, -1e4):
        inputs.keys[:, :, unread] = size
        assert torch.equal(mask_of(recipe, inputs, execution).to_dense(), mask)
        assert torch.allclose(attend(EXECUTIONS[execution](recipe), inputs).double(), expected, atol=1e-5)


@guarantees
@pytest.mark.parametrize("selection", ["head", "group"])
def test_decoding_reads_no_key_that_it_does_not_keep(guarantee: str, selection: str) -> None:
    inputs = make_inputs(DECODE, batch=1)
    inputs.values[:] += 2
    sampler = Config(base_rate=12, epsilon=0.5, delta=0.3, guarantee=guarantee, selection=selection)
    recipe = [SinkMaskerConfig(), LocalMaskerConfig(window_size=3), sampler]
    mask = mask_of(recipe, inputs).to_dense()
    output = attend(efficient(recipe), inputs)
    unread = (mask == 0).all(dim=1)[0, 0]
    assert unread.sum() > 10
    inputs.keys[:, :, unread] = float("nan")
    inputs.values[:, :, unread] = float("nan")
    assert torch.equal(mask_of(recipe, inputs).to_dense(), mask)
    assert torch.equal(attend(efficient(recipe), inputs), output)


def test_logits_that_are_known_are_not_computed_again() -> None:
    """Those of earlier steps are taken as they are, and those of drawn keys are passed on, before any cap."""
    inputs = make_inputs(DECODE, batch=1)
    logits = (inputs.queries.view(1, 2, 3, -1) @ inputs.keys.mT * inputs.scaling).view(1, 6, 1, -1)
    top = logits.topk(20, dim=-1)
    (masker,) = efficient([Config(base_rate=12, epsilon=0.3)]).maskers
    full = (1, 6, 1, DECODE.kv_len)
    read = Mask.empty(full).extend(KeyLists(top.indices))
    known = Mask.empty(full).extend(KeyLists(top.indices, None, top.values))
    for cap in (None, 3.0):
        arguments = (*inputs.tensors(), inputs.scaling, 0.0, {})
        masks = [masker.add_indices(*arguments, mask, layer_idx=0, softcap=cap) for mask in (read, known)]
        assert torch.equal(masks[0].to_dense(), masks[1].to_dense())
        drawn = masks[1].lists[-1]
        assert drawn.probabilities is not None
        assert drawn.logits is not None
        used = drawn.probabilities > 0
        assert torch.allclose(drawn.logits[used], logits.gather(-1, drawn.indices)[used], atol=1e-5)
    lower = Mask.empty(full).extend(KeyLists(top.indices, None, top.values - 50))
    changed = masker.add_indices(*inputs.tensors(), inputs.scaling, 0.0, {}, lower, layer_idx=0)
    assert changed.count(inputs.allowed).sum() > masks[1].count(inputs.allowed).sum(), "it went by what it was told"


@guarantees
def test_a_long_sample_is_read_with_all_keys(guarantee: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the lists together are longer than the keys, reading all of them gives the same sample."""
    inputs = make_inputs(DECODE)
    inputs.values[:] += 2
    recipe = [SinkMaskerConfig(), Config(base_rate=0.4, base_min=2, epsilon=0.2, guarantee=guarantee)]
    listed = mask_of(recipe, inputs)
    output = attend(efficient(recipe), inputs)
    monkeypatch.setattr(adaptive, "FEW_ROWS", 10)
    mask = mask_of(recipe, inputs)
    assert listed.has_indices
    assert not mask.has_indices
    assert torch.equal(mask.to_dense(), listed.to_dense())
    assert torch.allclose(attend(efficient(recipe), inputs), output, atol=1e-6)
    assert (mask.to_dense() == 0).any()


def test_a_group_shares_one_sample_as_large_as_its_neediest_head_asks_for() -> None:
    inputs = make_inputs(DECODE, batch=1)
    inputs.queries[:, 0::3] = 0.0
    inputs.queries[:, 1::3] *= 0.3
    config = Config(base_rate=20, epsilon=0.3, selection="group")
    mask = mask_of([SinkMaskerConfig(), config], inputs)
    (drawn,) = mask.lists
    assert drawn.indices.shape[1] == 2
    assert drawn.logits is None
    kept = mask.to_dense().view(1, 2, 3, 1, -1)
    assert torch.equal(kept[:, :, :1].expand_as(kept), kept)
    number = (kept[:, :, 0] > 0).sum(-1)
    modest = replace(inputs, queries=inputs.queries.clone())
    modest.queries[:, 2::3] = 0.0
    modest_number = (mask_of([SinkMaskerConfig(), config], modest).to_dense()[:, ::3] > 0).sum(-1)
    assert (number > modest_number).all(), "two heads ask for little, the third for much"
    assert (modest_number >= 24).all()


@executions
@pytest.mark.parametrize("sampler", ["base", "more"])
def test_padding_and_company_do_not_change_the_sample(execution: str, sampler: str) -> None:
    config = Config(base_rate=9, epsilon=0.999 if sampler == "base" else 0.4)
    plain = make_inputs(Shape(3, 1, False, F32, 70), batch=2)
    pad = 13
    padded = Inputs(
        plain.queries,
        torch.cat([torch.full_like(plain.keys[:, :, :pad], 50.0), plain.keys], 2),
        torch.cat([torch.full_like(plain.values[:, :, :pad], 50.0), plain.values], 2),
        torch.cat([torch.zeros(2, 1, 1, pad, dtype=torch.bool), plain.allowed], 3),
        plain.scaling,
    )
    recipe = [SinkMaskerConfig(), config]
    attention = EXECUTIONS[execution](recipe)
    lanes = {"lanes": ["a", "b"]}
    whole = attention.build_mask(*plain.tensors(), plain.scaling, 0.0, dict(lanes), layer_idx=0).to_dense()
    behind = attention.build_mask(*padded.tensors(), plain.scaling, 0.0, dict(lanes), layer_idx=0).to_dense()
    assert torch.equal(behind[..., pad:], whole)
    assert not behind[..., :pad].any()
    alone = [t[1:] if len(t) == 2 else t for t in plain.tensors()]
    row = attention.build_mask(*alone, plain.scaling, 0.0, {"lanes": ["b"]}, layer_idx=0).to_dense()
    assert torch.equal(row, whole[1:])


@executions
def test_it_keeps_no_state(execution: str) -> None:
    inputs = make_inputs(DECODE)
    meta: dict[Any, Any] = {}
    for _ in range(2):
        EXECUTIONS[execution]([Config(base_rate=5)]).build_mask(*inputs.tensors(), 0.2, 0.0, meta, layer_idx=0)
    assert meta == {}
