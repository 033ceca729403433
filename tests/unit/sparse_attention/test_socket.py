"""SOCKET: buckets, probabilities and scores against their definition, what they depend on, and how well they choose."""

from __future__ import annotations

import itertools
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest
import torch

from sah.errors import ConfigError
from sah.sparse_attention import SocketMaskerConfig
from sah.sparse_attention.key_state import CONTEXT_STATE_KEY
from sah.sparse_attention.maskers import socket as module
from sah.sparse_attention.maskers.socket import SocketMasker
from sah.sparse_attention.randomness import generator_for
from tests.support.attention import BF16, EXECUTIONS, F32, Inputs, Shape, attend, efficient, inclusion_of, make_inputs


def masker(seed: int = 0, key: str = "0.socket", **values: Any) -> SocketMasker:
    return SocketMasker(SocketMaskerConfig(**{"density": 0.3, "planes": 3, "tables": 4, **values}), key, seed)


def planes_of(method: SocketMasker, head_dim: int, layer: int = 0) -> torch.Tensor:
    """(planes, tables, head_dim), drawn as the masker says that it draws them."""
    shape = (method.config.planes, method.config.tables, head_dim)
    return torch.randn(shape, generator=generator_for(method.seed, "socket", layer), dtype=torch.float64)


def naive_scores(method: SocketMasker, inputs: Inputs, layer: int = 0) -> torch.Tensor:
    """Key by key: a softmax over the corners of each table's cube, and the corner that a key lies at."""
    config, head_dim = method.config, inputs.queries.shape[-1]
    planes = planes_of(method, head_dim, layer)
    corners = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=config.planes)), dtype=torch.float64)
    group = inputs.queries.shape[1] // inputs.keys.shape[1]
    scores = torch.zeros(*inputs.queries.shape[:3], inputs.keys.shape[2], dtype=torch.float64)
    for b, h, q, k in itertools.product(*(range(n) for n in scores.shape)):
        query, key = inputs.queries[b, h, q].double(), inputs.keys[b, h // group, k].double()
        for table in range(config.tables):
            logits = corners @ torch.tanh(planes[:, table] @ query) / head_dim**0.5
            mine = (corners == torch.where(planes[:, table] @ key >= 0, 1.0, -1.0)).all(-1)
            scores[b, h, q, k] += torch.softmax(logits / config.tau, -1)[mine].item()
        scores[b, h, q, k] *= inputs.values[b, h // group, k].double().norm()
    return scores


SHAPES = [Shape(2, 3, False, F32, 20, head_dim=8), Shape(1, 1, False, BF16, 30, head_dim=6), Shape(3, 1, False, F32, 1)]


@pytest.mark.parametrize("values", [{}, {"planes": 1, "tables": 2}, {"planes": 9, "tables": 2, "tau": 0.05}], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_scores_follow_the_definition(shape: Shape, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """In both forms, by head and by the mean of a KV head's query heads, and in blocks of queries."""
    inputs, method = make_inputs(shape), masker(**values)
    expected = naive_scores(method, inputs)
    means = expected.unflatten(1, (shape.kv_heads, shape.group)).mean(2)
    given = {"layer_idx": 0, "value_states": inputs.values}
    plain = method.scores(inputs.queries, inputs.keys, inputs.scaling, {}, **given)
    assert torch.allclose(plain.double(), expected, rtol=1e-4, atol=1e-7)
    for numbers in (module.BLOCK_NUMBERS, 1):
        monkeypatch.setattr(module, "BLOCK_NUMBERS", numbers)
        fast = method.fast_scores(inputs.queries, inputs.keys, inputs.scaling, {}, **given)
        assert torch.allclose(fast.double(), expected, rtol=1e-4, atol=1e-7)
        by_group = method.group_scores(inputs.queries, inputs.keys, inputs.allowed, inputs.scaling, {}, **given)
        assert torch.allclose(by_group.double(), means, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("planes", "kind"), [(1, torch.uint8), (8, torch.uint8), (9, torch.int16), (14, torch.int16)])
def test_a_bucket_names_the_sides_of_all_planes(planes: int, kind: torch.dtype) -> None:
    method = masker(planes=planes, tables=3)
    keys = torch.randn(2, 2, 40, 8, generator=torch.Generator().manual_seed(1))
    buckets = method.derive(keys, None, 5)
    assert (buckets.dtype, buckets.shape) == (kind, (2, 2, 40, 3))
    sides = torch.einsum("ptd,bhnd->bhntp", planes_of(method, 8, 5), keys.double()) >= 0
    assert torch.equal(buckets.long(), (sides.long() << torch.arange(planes)).sum(-1))


def test_a_query_is_spread_over_all_buckets_the_more_the_warmer_it_is() -> None:
    queries = torch.randn(7, 8, generator=torch.Generator().manual_seed(0))
    own = masker().derive(queries[None, None], None, 0)[0, 0].long().unsqueeze(-1)
    largest = []
    for tau in (0.01, 0.3, 100.0):
        spread = masker(tau=tau).probabilities(queries, 0)
        assert spread.shape == (7, 4, 8)
        assert torch.allclose(spread.sum(-1), torch.ones(7, 4))
        assert torch.equal(spread.argmax(-1, keepdim=True), own), "most of it to its own bucket"
        largest.append(float(spread.amax(-1).mean()))
    assert largest == sorted(largest, reverse=True)
    assert largest[0] > 0.9 and largest[2] < 0.13


def test_planes_depend_on_seed_and_layer_and_on_nothing_else() -> None:
    keys = torch.randn(1, 2, 200, 16, generator=torch.Generator().manual_seed(3))
    buckets = masker().derive(keys, None, 0)
    assert torch.equal(buckets, masker(key="3.socket", tau=0.1).derive(keys, None, 0))
    assert torch.equal(buckets, masker().derive(torch.cat([keys, -keys]), None, 0)[:1])
    for other in (masker(seed=1).derive(keys, None, 0), masker().derive(keys, None, 1)):
        assert not torch.equal(buckets, other)
    identities = [masker(**values).state_identity() for values in ({}, {"planes": 4}, {"tables": 5})]
    assert len({*identities, masker(seed=1).state_identity()}) == 4
    assert masker(tau=0.1).state_identity() == identities[0], "temperatures share a context's buckets"


@pytest.mark.parametrize("shape", [Shape(2, 1, False, F32, 120), Shape(3, 1, False, BF16, 75)], ids=str)
@pytest.mark.parametrize("with_values", [True, False], ids=["prepared", "without values"])
def test_the_state_that_grows_gives_what_all_at_once_gives(shape: Shape, with_values: bool) -> None:
    inputs = make_inputs(shape, batch=1)
    recipe = [SocketMaskerConfig(density=0.3, planes=4, tables=9)]
    attention, state = efficient(recipe), {}
    values = inputs.values[:, :, :30] if with_values else None
    attention.prepare_context(state, 2, inputs.keys[:, :, :30], values)
    assert len(state) == (2 if with_values else 0), "buckets and lengths, or nothing without the values"
    meta: dict[Any, Any] = {CONTEXT_STATE_KEY: MappingProxyType(state)}
    for end in (35, *range(36, shape.kv_len + 1)):
        call = Inputs(
            inputs.queries,
            inputs.keys[:, :, :end],
            inputs.values[:, :, :end],
            inputs.allowed[..., :end],
            inputs.scaling,
        )
        grown = inclusion_of(attention, call, meta, layer_idx=2)
        if end % 7 == 0:
            assert torch.equal(grown, inclusion_of(efficient(recipe), call, layer_idx=2)), end


def test_longer_values_draw_their_keys_in() -> None:
    inputs = make_inputs(Shape(2, 1, False, F32, 200))
    attention = EXECUTIONS["efficient"]([SocketMaskerConfig(heavy_size=20)])
    before = inclusion_of(attention, inputs)
    left_out = (before == 0).all(2).all(1)[0].nonzero().flatten()[:10]
    inputs.values[:, :, left_out] *= 100
    assert not before[0, ..., left_out].any()
    assert (inclusion_of(attention, inputs)[0, ..., left_out] == 1).all()


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_a_layer_reads_its_own_state(execution: str) -> None:
    layers = [make_inputs(Shape(2, 1, False, F32, 120), seed=seed, batch=1) for seed in range(3)]
    recipe = [SocketMaskerConfig(density=0.2, planes=4, tables=6)]
    together, meta = EXECUTIONS[execution](recipe), {}
    for layer in (0, 1, 2, 1):
        alone = attend(EXECUTIONS[execution](recipe), layers[layer], layer_idx=layer)
        assert torch.equal(attend(together, layers[layer], meta, layer_idx=layer), alone)


@pytest.mark.parametrize("selection", ["head", "group"])
def test_many_of_the_best_keys_are_found_and_more_with_more_tables(selection: str) -> None:
    """Keys in clusters, of which queries ask for some; at random a twentieth of the best would be found."""
    generator = torch.Generator().manual_seed(0)
    topics = 3 * torch.randn(2, 40, 32, generator=generator)
    chosen = torch.randint(40, (2, 1500), generator=generator)
    keys = topics.gather(1, chosen.unsqueeze(-1).expand(-1, -1, 32)) + torch.randn(2, 1500, 32, generator=generator)
    queries = topics[:, :1].expand(-1, 3, -1).flatten(0, 1) + torch.randn(6, 32, generator=generator)
    values = torch.nn.functional.normalize(torch.randn(2, 1500, 32, generator=generator), dim=-1)
    allowed = torch.ones(1, 1, 1, 1500, dtype=torch.bool)
    inputs = Inputs(queries[None, :, None], keys[None], values[None], allowed, 32**-0.5)
    logits = (queries.unflatten(0, (2, 3)) @ keys.mT).flatten(0, 1)
    best = logits.topk(75, dim=-1).indices[None]
    found = []
    for tables in (1, 60):
        config = SocketMaskerConfig(heavy_size=75, tables=tables, selection=selection)
        found.append(float(inclusion_of(efficient([config]), inputs).squeeze(2).gather(-1, best).mean()))
    assert found[1] > max(0.5, found[0])


@pytest.mark.parametrize(
    ("field", "value"),
    [("planes", 0), ("planes", 15), ("planes", 2.5), ("tables", 0), ("tau", 0), ("tau", float("nan")), ("tau", "hot")],
)
def test_a_value_that_cannot_be_used_is_named(field: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        replace(SocketMaskerConfig(density=0.1), **{field: value})
    for part in (f"masker.socket.{field}", repr(value), "Allowed:", f"masker.socket.{field}="):
        assert part in str(caught.value)
