"""PQCache: codes and scores against their definition, what codebooks depend on, and how well they choose."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest
import torch

from sah.errors import ConfigError
from sah.sparse_attention import PQCacheConfig
from sah.sparse_attention.kernels.kmeans import kmeans
from sah.sparse_attention.key_state import CONTEXT_LENGTH_KEY, CONTEXT_STATE_KEY
from sah.sparse_attention.maskers.pqcache import Codebooks, PQCache
from sah.sparse_attention.randomness import generator_for
from tests.support.attention import BF16, EXECUTIONS, F32, Inputs, Shape, attend, inclusion_of, make_inputs

METRICS = ("euclidean", "inner_product")


def masker(seed: int = 0, key: str = "0.pqcache", **values: Any) -> PQCache:
    return PQCache(PQCacheConfig(**{"density": 0.3, "bits": 4, **values}), key, seed)


def keys_of(length: int, seed: int = 0, kv_heads: int = 2, head_dim: int = 16, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, kv_heads, length, head_dim, generator=torch.Generator().manual_seed(seed))


def naive_code(key: torch.Tensor, books: torch.Tensor, largest: torch.Tensor, stretched: bool) -> list[int]:
    """The number of the nearest centroid of each part of one key; `books` is (subvectors, centroids, width)."""
    codes = []
    for part, book, longest in zip(key.double().chunk(len(books)), books.double(), largest, strict=True):
        if stretched:
            part = torch.cat([part, (longest - part @ part).clamp(min=0).sqrt().view(1)])
        codes.append(int((book - part).square().sum(-1).argmin()))
    return codes


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_codes_name_the_nearest_centroids(metric: str, dtype: torch.dtype) -> None:
    """Those of the context's keys and of longer ones behind it."""
    method = masker(subvectors=4, metric=metric)
    keys = keys_of(120).to(dtype)
    keys[:, :, 100:] *= 3
    fitted = method.fit(keys[:, :, :100], 0)
    codes = method.derive(keys, fitted, 0)
    assert (codes.dtype, codes.shape) == (torch.uint8, (1, 2, 120, 4))
    assert fitted.centroids.dtype == F32
    for head in range(2):
        for place in range(120):
            books, largest = fitted.centroids[0, head], fitted.largest[0, head]
            assert codes[0, head, place].tolist() == naive_code(
                keys[0, head, place], books, largest, metric == "inner_product"
            )


def test_codebooks_are_k_means_of_each_part() -> None:
    keys = keys_of(90)
    fitted = masker(subvectors=2, seed=5, iterations=7).fit(keys, 3)
    points = torch.stack([keys[0, head, :, 8 * part : 8 * part + 8] for head in range(2) for part in range(2)])
    expected = kmeans(points, 16, 7, generator_for(5, "pqcache", 3))
    assert torch.equal(fitted.centroids[0].flatten(0, 1), expected)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shape", [Shape(3, 1, False, F32, 90), Shape(2, 4, False, BF16, 75)], ids=str)
def test_scores_are_products_with_the_rebuilt_keys(shape: Shape, metric: str) -> None:
    """In both forms; a key is rebuilt from the centroids that its codes name."""
    inputs = make_inputs(shape)
    method = masker(subvectors=4, metric=metric)
    context = shape.kv_len - shape.q_len
    readable = torch.ones(2, context, dtype=torch.bool)
    given = (inputs.queries, inputs.keys, inputs.scaling)
    plain = method.scores(*given, {}, layer_idx=0, readable=readable)
    fast = method.fast_scores(*given, {}, layer_idx=0)
    for row in range(2):
        keys = inputs.keys[row : row + 1]
        fitted = method.fit(keys[:, :, :context], 0)
        codes = method.derive(keys, fitted, 0)[0].long()
        for head in range(shape.kv_heads):
            rebuilt = [fitted.centroids[0, head, part, codes[head, :, part], :4] for part in range(4)]
            queries = inputs.queries[row, head * shape.group : (head + 1) * shape.group].double()
            expected = queries @ torch.cat(rebuilt, -1).double().T * inputs.scaling
            for found in (plain, fast):
                scores = found[row, head * shape.group : (head + 1) * shape.group]
                assert torch.allclose(scores.double(), expected, atol=1e-5)


@pytest.mark.parametrize("metric", METRICS)
def test_scores_are_exact_where_every_key_is_its_own_centroid(metric: str) -> None:
    inputs = make_inputs(Shape(2, 1, False, F32, 17))
    method = masker(metric=metric)
    fast = method.fast_scores(inputs.queries, inputs.keys, inputs.scaling, {}, layer_idx=0)
    exact = inputs.queries.unflatten(1, (2, 2)) @ inputs.keys.unsqueeze(2).mT * inputs.scaling
    assert torch.allclose(fast[..., :16], exact.flatten(1, 2)[..., :16], atol=1e-5)


def test_the_scores_come_nearer_to_the_products_with_bits_parts_and_steps() -> None:
    keys, queries = keys_of(600, head_dim=32), keys_of(600, seed=1, head_dim=32)

    def mean_error(**values: Any) -> float:
        meta = {CONTEXT_LENGTH_KEY: 600}
        scores = masker(**values).fast_scores(queries, keys, 1.0, meta, layer_idx=0)
        return float((scores - queries @ keys.mT).abs().mean())

    by_bits = [mean_error(bits=bits) for bits in (1, 3, 5, 8)]
    by_parts = [mean_error(subvectors=parts) for parts in (1, 2, 4, 16)]
    for errors in (by_bits, by_parts):
        assert errors == sorted(errors, reverse=True)
    assert mean_error(iterations=10) < mean_error(iterations=1)


def test_codebooks_depend_on_seed_layer_and_keys_and_on_nothing_else() -> None:
    keys = keys_of(80)

    def books(seed: int = 0, key: str = "0.pqcache", layer: int = 0, states: torch.Tensor = keys, **values: Any) -> Any:
        return masker(seed, key, **values).fit(states, layer).centroids

    assert torch.equal(books(), books())
    assert torch.equal(books(), books(key="3.pqcache")), "two recipes share a context's codebooks"
    assert torch.equal(books(), books(states=torch.cat([keys, keys_of(80, seed=2)]))[:1]), "not on other rows"
    for other in (books(seed=1), books(layer=1), books(states=keys_of(80, seed=1)), books(iterations=1)):
        assert not torch.allclose(books(), other, atol=1e-3)
    identities = [masker(**values).state_identity() for values in ({}, {"bits": 5}, {"metric": "inner_product"})]
    identities += [masker(seed=1).state_identity(), masker(iterations=3).state_identity()]
    assert len({*identities, masker(subvectors=4).state_identity()}) == 6


@pytest.mark.parametrize("context", [0, 1, 5, 40])
@pytest.mark.parametrize("prepared", [True, False])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_keys_encoded_one_by_one_are_encoded_as_at_once(context: int, prepared: bool, dtype: torch.dtype) -> None:
    keys, method = keys_of(70).to(dtype), masker(metric="inner_product")
    state: dict[Any, Any] = {}
    if prepared:
        method.prepare_context(state, keys[:, :, :context], 2)
    meta = {CONTEXT_STATE_KEY: MappingProxyType(state), CONTEXT_LENGTH_KEY: context}
    expected = method.derive(keys, method.fit(keys[:, :, :context], 2), 2)
    for end in (context + 4, *range(context + 5, 71)):
        _, parts = method.key_state(keys[:, :, :end], meta, 2, end - context)
        assert torch.equal(torch.cat(parts, dim=2), expected[:, :, :end])


def test_rows_of_one_context_are_encoded_by_its_codebooks() -> None:
    method, keys = masker(), keys_of(33, batch=3)
    fitted = method.fit(keys_of(50, seed=9), 0)
    codes = method.derive(keys, fitted, 0)
    assert torch.equal(codes, torch.cat([method.derive(row[None], fitted, 0) for row in keys]))


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_without_a_context_all_keys_are_equal_and_the_first_ones_stay(execution: str) -> None:
    fitted = masker().fit(keys_of(0), 0)
    assert isinstance(fitted, Codebooks) and not fitted.centroids.any()
    inputs = make_inputs(Shape(2, 1, False, F32, 30))
    attention = EXECUTIONS[execution]([PQCacheConfig(heavy_size=4)])
    kept = inclusion_of(attention, inputs, {CONTEXT_LENGTH_KEY: 0})
    assert (kept[..., :4] == 1).all() and kept.sum() == 4 * 2 * 4


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_a_layer_reads_its_own_codebooks(execution: str) -> None:
    """The same question over other keys in every layer, in turn and alone."""
    layers = [make_inputs(Shape(2, 1, False, F32, 120), seed=seed, batch=1) for seed in range(3)]
    recipe = [PQCacheConfig(density=0.2, bits=3)]
    together, meta = EXECUTIONS[execution](recipe), {}
    for layer in (0, 1, 2, 1):
        alone = attend(EXECUTIONS[execution](recipe), layers[layer], layer_idx=layer)
        assert torch.equal(attend(together, layers[layer], meta, layer_idx=layer), alone)


def like_a_model(length: int, seed: int = 0) -> Inputs:
    """Keys in clusters, and queries that ask for some of them."""
    generator = torch.Generator().manual_seed(seed)
    topics = 3 * torch.randn(2, 40, 32, generator=generator)
    chosen = torch.randint(40, (2, length), generator=generator)
    keys = topics.gather(1, chosen.unsqueeze(-1).expand(-1, -1, 32)) + torch.randn(2, length, 32, generator=generator)
    queries = topics[:, :3].flatten(0, 1) + torch.randn(6, 32, generator=generator)
    allowed = torch.ones(1, 1, 1, length, dtype=torch.bool)
    return Inputs(queries[None, :, None], keys[None], keys[None], allowed, 32**-0.5)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("selection", ["head", "group"])
def test_most_of_the_best_keys_are_found(metric: str, selection: str) -> None:
    """At random a twentieth of them would be."""
    inputs = like_a_model(1500)
    logits = (inputs.queries.unflatten(1, (2, 3)) @ inputs.keys.unsqueeze(2).mT).squeeze(3)
    logits = logits.mean(2, keepdim=True).expand_as(logits) if selection == "group" else logits
    best = logits.flatten(1, 2).topk(75, dim=-1).indices
    config = PQCacheConfig(heavy_size=75, metric=metric, selection=selection)
    found = inclusion_of(EXECUTIONS["efficient"]([config]), inputs).squeeze(2).gather(-1, best).mean()
    assert found > 0.6


@pytest.mark.parametrize(
    ("field", "value"),
    [("bits", 9), ("bits", 0), ("bits", 2.5), ("subvectors", 0), ("iterations", 0), ("metric", "cosine")],
)
def test_a_value_that_cannot_be_used_is_named(field: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        replace(PQCacheConfig(density=0.1), **{field: value})
    for part in (f"masker.pqcache.{field}", repr(value), "Allowed:", f"masker.pqcache.{field}="):
        assert part in str(caught.value)


def test_parts_must_divide_the_head() -> None:
    with pytest.raises(ConfigError, match=r"masker\.pqcache\.subvectors=3.*head_dim of 16"):
        masker(subvectors=3).fit(keys_of(20), 0)
