"""HashAttention against bits counted one by one, its packed state, and what does not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sah.errors import ConfigError
from sah.sparse_attention import (
    HashAttentionTopKMasker,
    HashAttentionTopKMaskerConfig,
    LocalMaskerConfig,
    SinkMaskerConfig,
)
from sah.sparse_attention.hash_identity import HASH_VERSION
from sah.sparse_attention.hash_weights import HashLayer, HeadwiseLinear
from sah.sparse_attention.kernels import signatures
from sah.sparse_attention.kernels.largest import earliest
from sah.sparse_attention.key_state import CONTEXT_STATE_KEY
from tests.support.attention import (
    BF16,
    EXECUTIONS,
    F32,
    SHAPES,
    Inputs,
    Shape,
    attend,
    hash_layer,
    inclusion_of,
    make_inputs,
)

KV_HEADS, HEAD_DIM = 2, 16


def made(execution: str, recipe: list[Any], layers: dict[int, HashLayer]) -> Any:
    attention = EXECUTIONS[execution](recipe)
    for masker in attention.maskers:
        if isinstance(masker, HashAttentionTopKMasker):
            masker.use_hash_weights(layers)
    return attention


def naive_bits(state: torch.Tensor, maps: tuple[HeadwiseLinear, ...], head: int) -> list[bool]:
    """The bits of one query or key."""
    numbers = state.double()
    for place, linear in enumerate(maps):
        if place:
            numbers = numbers / (1 + torch.exp(-numbers))
        numbers = torch.tensor(
            [float(numbers @ column) for column in linear.weight[head].double().T], dtype=torch.double
        )
        numbers = numbers + linear.bias[head, 0].double()
    return [bool(number > 0) for number in numbers]


def naive_scores(inputs: Inputs, layer: HashLayer, config: HashAttentionTopKMaskerConfig) -> torch.Tensor:
    """Agreements counted bit by bit, combined over groups as the config says, (batch, heads, q_len, kv_len)."""
    heads = inputs.queries.shape[1]
    group = heads // KV_HEADS
    of_queries, of_keys = len(layer.query[0].weight), len(layer.key[0].weight)
    scores = torch.zeros(*inputs.queries.shape[:3], inputs.keys.shape[2], dtype=torch.double)
    for b in range(len(scores)):
        for head in range(heads):
            own = head if of_keys == heads else head // group
            keys = [naive_bits(key, layer.key, own) for key in inputs.keys[b, head // group]]
            for q, query in enumerate(inputs.queries[b, head]):
                asked = naive_bits(query, layer.query, head if of_queries == heads else head // group)
                scores[b, head, q] = torch.tensor(
                    [float(sum(x == y for x, y in zip(asked, key, strict=True))) for key in keys]
                )
    if config.selection == "group":
        grouped = scores.masked_fill(~inputs.allowed, float("-inf")).unflatten(1, (KV_HEADS, group))
        if config.group_score == "softmax_mean":
            grouped = torch.softmax(grouped, -1)
        combined = grouped.amax(2) if config.group_score == "max" else grouped.mean(2)
        scores = combined.repeat_interleave(group, 1)
    return scores


def naive_choice(scores: torch.Tensor, kept: torch.Tensor, allowed: torch.Tensor, wanted: int) -> torch.Tensor:
    """The best residual keys, row by row, the earlier one where scores are equal."""
    chosen = kept.clone()
    for row in np.ndindex(*scores.shape[:3]):
        may = [key for key in range(scores.shape[3]) if (allowed.expand_as(kept) & ~kept)[row][key]]
        for key in sorted(may, key=lambda key: (-round(float(scores[row][key]), 9), key))[:wanted]:
            chosen[row][key] = True
    return chosen


CONFIGS: dict[str, dict[str, Any]] = {
    "one byte": {"heavy_size": 6, "bits": 8},
    "three bytes": {"heavy_size": 4, "bits": 24},
    "group": {"heavy_size": 6, "bits": 16, "selection": "group"},
    "group by max": {"heavy_size": 4, "bits": 16, "selection": "group", "group_score": "max"},
    "group by softmax": {"heavy_size": 5, "bits": 8, "selection": "group", "group_score": "softmax_mean"},
}
SMALL = [Shape(3, 1, True, BF16, 21), Shape(2, 2, False, F32, 30), Shape(1, 1, False, F32, 1)]


@pytest.mark.parametrize("shape", SMALL, ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_the_mask_follows_the_definition(shape: Shape, name: str) -> None:
    """Alone and behind others, in both executions, with networks of queries and keys a KV head or a query head."""
    inputs, config = make_inputs(shape), HashAttentionTopKMaskerConfig(**CONFIGS[name])
    heads = inputs.queries.shape[1]
    for of_queries, of_keys in {(heads, KV_HEADS), (KV_HEADS, KV_HEADS), (heads, heads)}:
        layer = hash_layer(of_queries, of_keys, HEAD_DIM, config.bits, seed=of_keys)
        scores = naive_scores(inputs, layer, config)
        before: list[list[Any]] = [[], [SinkMaskerConfig(sink_size=3), LocalMaskerConfig(window_size=4)]]
        for first in before:
            kept = torch.zeros(scores.shape, dtype=torch.bool)
            if first:
                kept = inclusion_of(made("research", first, {}), inputs) > 0
            expected = naive_choice(scores, kept, inputs.allowed, int(config.heavy_size or 0))
            for execution in EXECUTIONS:
                found = inclusion_of(made(execution, [*first, config], {0: layer}), inputs) > 0
                assert torch.equal(found, expected & inputs.allowed), (execution, of_queries, of_keys)


@pytest.mark.parametrize("bits", [8, 16, 24, 32, 48, 64, 128, 256])
def test_both_counts_of_packed_bits_are_the_bits_counted(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(bits)
    monkeypatch.setattr(signatures, "BLOCK_NUMBERS", 50)
    counts = (signatures.differing, signatures.differing_by_table)
    for group, own, q_len, length, batch in [
        (1, 1, 1, 40, 1),
        (4, 1, 3, 17, 2),
        (3, 3, 2, 33, 1),
        (2, 2, 1, 1, 2),
        (2, 1, 2, 0, 1),
    ]:
        asked = torch.rand(batch, 2 * group, q_len, bits, generator=generator) > 0.5
        held = torch.rand(batch, 2, length, own, bits, generator=generator) > 0.5
        held[:, :, -1:] = asked[:, ::group, :1].unsqueeze(3)  # all bits agree with one query of each group
        codes = [signatures.packed(asked), signatures.packed(held)]
        assert codes[0].dtype is torch.uint8 and codes[0].shape == (batch, 2 * group, q_len, bits // 8)
        unpacked = torch.from_numpy(np.unpackbits(codes[0].numpy(), axis=-1, bitorder="little"))
        assert torch.equal(unpacked.bool(), asked)
        wide = held.transpose(2, 3).expand(-1, -1, group, -1, -1).reshape(batch, 2 * group, 1, length, bits)
        expected = (asked.unsqueeze(3) == wide).sum(-1).float()
        by_group = expected.unflatten(1, (2, group)).mean(2)
        for count in counts:
            monkeypatch.setattr(signatures, "differing", count)
            parts = codes[1].flatten(3).split([length // 3, length - length // 3], dim=2)
            assert torch.equal(signatures.agreements(codes[0], parts), expected)
            found = signatures.agreements(codes[0], parts, mean_of_group=True)
            torch.testing.assert_close(found, by_group, rtol=1e-6, atol=0)


def test_rows_that_share_keys_count_as_each_alone() -> None:
    asked = torch.randint(256, (3, 4, 2, 4), dtype=torch.uint8)
    shared, own = (
        torch.randint(256, (1, 2, 9, 4), dtype=torch.uint8),
        torch.randint(256, (3, 2, 5, 4), dtype=torch.uint8),
    )
    for by_group in (False, True):
        alone = signatures.agreements(asked, [shared.repeat(3, 1, 1, 1), own], mean_of_group=by_group)
        assert torch.equal(signatures.agreements(asked, [shared, own], mean_of_group=by_group), alone)


def test_of_equal_scores_the_earlier_are_chosen() -> None:
    scores = torch.randint(0, 9, (2, 3, 4, 200), generator=torch.Generator().manual_seed(0)).float() - 4
    scores[0, 0] = float("-inf")
    scores[..., 100:] /= 3
    count = torch.tensor([0, 1, 57, 199, 200, 40]).repeat(4).view(2, 3, 4)
    order = scores.argsort(dim=-1, descending=True, stable=True)
    places, used = earliest(scores, count)
    assert places.shape == used.shape == (2, 3, 4, 200)
    for row in np.ndindex(2, 3, 4):
        assert sorted(places[row][used[row]].tolist()) == sorted(order[row][: count[row]].tolist())
    assert torch.equal(used.sum(-1), count)


@pytest.mark.parametrize("of_keys", [KV_HEADS, 3 * KV_HEADS], ids=["a KV head", "a query head"])
def test_the_state_is_packed_and_grows_to_what_it_is_at_once(of_keys: int) -> None:
    inputs = make_inputs(Shape(3, 1, False, BF16, 210), batch=1)
    config = HashAttentionTopKMaskerConfig(density=0.1, bits=40)
    attention = made("efficient", [config], {0: hash_layer(6, of_keys, HEAD_DIM, 40)})
    masker = attention.maskers[0]
    whole = masker.derive(inputs.keys, None, 0)
    assert (whole.dtype, whole.nbytes) == (torch.uint8, of_keys * 210 * 5)
    context: dict[Any, Any] = {}
    attention.prepare_context(context, 0, inputs.keys[:, :, :200])
    meta = {CONTEXT_STATE_KEY: context}
    for length in range(203, 211):
        part = Inputs(inputs.queries, inputs.keys[:, :, :length], inputs.values[:, :, :length], None, 0.25)  # type: ignore[arg-type]
        attend(attention, part, meta)
    (held,) = context.values()
    (own,) = meta[0].values()
    assert torch.equal(torch.cat([held.units, *own.units()], 2), whole)
    assert own.nbytes() == of_keys * 10 * 5


def test_a_changed_setting_finds_no_foreign_context_state() -> None:
    def identity(**changed: Any) -> Any:
        return HashAttentionTopKMasker(HashAttentionTopKMaskerConfig(heavy_size=3, **changed)).state_identity()

    assert len({identity(), identity(bits=64), identity(weights="some.safetensors")}) == 3
    assert identity(selection="group", layers=[0]) == identity(), "signatures do not depend on it"


def test_what_decides_the_weights_is_part_of_the_identity(tmp_path: Any) -> None:
    trained = HashAttentionTopKMaskerConfig().identity()
    assert (trained["weights"], trained["bits"]) == (f"trained:v{HASH_VERSION}", 32)
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    first.write_bytes(b"one")
    second.write_bytes(b"one")
    named = [HashAttentionTopKMaskerConfig(weights=str(path)).identity() for path in (first, second)]
    assert named[0] == named[1] and named[0]["weights"].startswith("file:")
    second.write_bytes(b"two")
    assert HashAttentionTopKMaskerConfig(weights=str(second)).identity() != named[0]
    with pytest.raises(ConfigError, match=r"masker\.hash_attention\.weights='.*gone' cannot be read"):
        HashAttentionTopKMaskerConfig(weights=str(tmp_path / "gone")).identity()
    assert HashAttentionTopKMaskerConfig(bits=64).choosing_bytes(128, 2) == 8


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_missing_and_unfit_networks_are_errors_that_say_what_to_do(execution: str) -> None:
    inputs, config = make_inputs(SHAPES[1]), HashAttentionTopKMaskerConfig(heavy_size=3)
    good = hash_layer(6, 2, HEAD_DIM, 32)
    assert attend(made(execution, [config], {0: good}), inputs).isfinite().all()
    for layers, part in [
        ({}, "there are no networks for layer 0"),
        ({1: good}, "there are no networks for layer 0"),
        ({0: hash_layer(6, 2, HEAD_DIM, 64)}, "give 64 bits"),
        ({0: hash_layer(6, 2, 24, 32)}, "of head_dim 24"),
        ({0: hash_layer(4, 2, HEAD_DIM, 32)}, "of queries are for 4 heads"),
        ({0: hash_layer(2, 4, HEAD_DIM, 32)}, "of keys are for 4 heads"),
        ({0: hash_layer(2, 3, HEAD_DIM, 32)}, "of keys are for 3 heads"),
        ({0: hash_layer(2, 1, HEAD_DIM, 32)}, "of keys are for 1 heads"),
    ]:
        with pytest.raises(ConfigError) as caught:
            attend(made(execution, [config], layers), inputs)
        for needed in (part, "masker.hash_attention.weights", "layer 0", "python -m sah.train_hash model=", "bits=32"):
            assert needed in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [("bits", v) for v in (0, 4, 12, 264, 32.0, "32", True, None)]
    + [("weights", v) for v in ("", "  ", 3, ["a.safetensors"])],
)
def test_bad_values_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        HashAttentionTopKMaskerConfig(**{field: value})
    for part in (f"masker.hash_attention.{field}={value!r}", "Allowed:", f"masker.hash_attention.{field}="):
        assert part in str(caught.value)
    built = HashAttentionTopKMaskerConfig()
    with pytest.raises(ConfigError):
        setattr(built, field, value)
    assert built == HashAttentionTopKMaskerConfig()
