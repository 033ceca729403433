"""The growing cache holds what transformers' own cache holds, and can be cut back exactly."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, Gemma3TextConfig, LlamaConfig

from sah.adapters.kv_cache import HEADROOM, GrowingLayer, cut_back, new_cache
from tests.support.models import FAMILIES, dense_adapter, stored_lengths

WINDOW = 8
CONFIGS = {
    "full": LlamaConfig(num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, hidden_size=8),
    "sliding and full": Gemma3TextConfig(
        num_hidden_layers=2, sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"]
    ),
}
configs = pytest.mark.parametrize("config", CONFIGS)


def states(start: int, count: int, layer: int = 0) -> torch.Tensor:
    """Keys that tell their position and layer, (1, 2, count, 4)."""
    positions = torch.arange(start, start + count, dtype=torch.float32) + 1000 * layer
    return positions.view(1, 1, -1, 1).expand(1, 2, -1, 4).clone()


def append(cache: DynamicCache, start: int, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [
        cache.update(states(start, count, layer), -states(start, count, layer), layer)
        for layer in range(len(cache.layers))
    ]


@configs
@settings(deadline=None, max_examples=40)
@given(chunks=st.lists(st.sampled_from([1, 1, 2, 5, 7, 30, HEADROOM + 3]), min_size=1, max_size=8))
def test_it_returns_what_the_library_s_cache_returns(config: str, chunks: list[int]) -> None:
    ours, theirs = new_cache(CONFIGS[config]), DynamicCache(config=CONFIGS[config])
    position = 0
    for count in chunks:
        for mine, expected in zip(append(ours, position, count), append(theirs, position, count), strict=True):
            visible = min(mine[0].shape[2], expected[0].shape[2])
            for a, b in zip(mine, expected, strict=True):
                assert torch.equal(a[..., -visible:, :], b[..., -visible:, :])
        position += count
        assert ours.get_seq_length() == position
        for layer, other in zip(ours.layers, theirs.layers, strict=True):
            assert layer.get_seq_length() == other.get_seq_length()
            assert layer.get_mask_sizes(3) == other.get_mask_sizes(3)


@configs
@settings(deadline=None, max_examples=60)
@given(
    context=st.sampled_from([1, WINDOW - 2, WINDOW - 1, WINDOW, WINDOW + 1, 40, 700]),
    rounds=st.lists(st.lists(st.sampled_from([1, 1, 2, 9, 600]), max_size=4), min_size=1, max_size=3),
)
def test_cut_back_restores_exactly_the_context(config: str, context: int, rounds: list[list[int]]) -> None:
    cache, never_used = new_cache(CONFIGS[config]), new_cache(CONFIGS[config])
    for each in (cache, never_used):
        append(each, 0, context)
        cut_back(each, context)
    for chunks in rounds:
        position = context
        for count in chunks:
            append(cache, position, count)
            position += count
        cut_back(cache, context)
        assert stored_lengths(cache) == [context] * 2
        for layer, expected in zip(cache.layers, never_used.layers, strict=True):
            assert torch.equal(layer.keys, expected.keys)
            assert torch.equal(layer.values, expected.values)
            assert layer.get_mask_sizes(1) == expected.get_mask_sizes(1)


@configs
@pytest.mark.parametrize("context", [3, WINDOW, 40])
def test_cut_back_when_the_layers_stand_at_different_lengths(config: str, context: int) -> None:
    """A model call that fails in its second layer has appended to the first only."""
    cache, clean = new_cache(CONFIGS[config]), new_cache(CONFIGS[config])
    for each in (cache, clean):
        append(each, 0, context)
        cut_back(each, context)
    cache.update(states(context, 5), -states(context, 5), 0)
    cut_back(cache, context)
    assert stored_lengths(cache) == [context] * 2
    for layer, expected in zip(cache.layers, clean.layers, strict=True):
        assert torch.equal(layer.keys, expected.keys)


def test_a_token_is_written_in_place() -> None:
    cache = new_cache(CONFIGS["full"])
    append(cache, 0, 50)
    where = cache.layers[0].keys.data_ptr()
    for position in range(50, 50 + 100):
        append(cache, position, 1)
    assert cache.layers[0].keys.data_ptr() == where
    assert isinstance(cache.layers[0], GrowingLayer)


def test_views_handed_out_earlier_keep_their_content() -> None:
    cache = new_cache(CONFIGS["full"])
    ((keys, _), *_) = append(cache, 0, 10)
    before = keys.clone()
    append(cache, 10, 1)
    append(cache, 11, 2000)
    assert torch.equal(keys, before)


def test_room_behind_the_context_is_never_seen() -> None:
    """Fresh memory may hold anything; here it holds NaN."""
    cache = new_cache(CONFIGS["full"])
    append(cache, 0, 10)
    for layer in cache.layers:
        assert isinstance(layer, GrowingLayer)
        assert layer._buffers is not None
        for buffer in layer._buffers:
            buffer[..., 10:, :] = float("nan")
    for position in range(10, 15):
        for keys, values in append(cache, position, 1):
            assert torch.isfinite(keys).all()
            assert torch.isfinite(values).all()


def test_reordered_rows_grow_from_the_reordered_ones() -> None:
    """Beam search replaces the states by a reordered copy."""
    cache = new_cache(CONFIGS["full"])
    two = torch.cat([states(0, 4), states(100, 4)])
    for layer in range(2):
        cache.update(two, two, layer)
    cache.reorder_cache(torch.tensor([1, 1]))
    keys, _ = cache.update(torch.cat([states(7, 1), states(8, 1)]), torch.zeros(2, 2, 1, 4), 0)
    assert keys[:, 0, :, 0].tolist() == [[100, 101, 102, 103, 7], [100, 101, 102, 103, 8]]


def test_reset_and_refill() -> None:
    cache = new_cache(CONFIGS["full"])
    append(cache, 0, 30)
    cache.reset()
    ((keys, _), *_) = append(cache, 500, 3)
    assert keys[0, 0, :, 0].tolist() == [500, 501, 502]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_runs_over_it_as_over_its_own_cache(family: str) -> None:
    """Logits of a chunked run over our cache against one call without any cache."""
    model = dense_adapter(family).model
    ids = torch.arange(5, 5 + 90)[None]
    cache = new_cache(model.config)
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        pieces = [
            model(input_ids=ids[:, a:b], past_key_values=cache, position_ids=torch.arange(a, b)[None]).logits
            for a, b in [(0, 50), (50, 51), (51, 80), (80, 81), (81, 90)]
        ]
    assert torch.allclose(torch.cat(pieces, 1), expected, atol=1e-4)
