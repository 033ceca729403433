"""Quest: bounds that bound, pages in the order of their bounds, a budget that is met to the key."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from sah.errors import ConfigError
from sah.sparse_attention import LocalMaskerConfig, Mask, QuestTopKMaskerConfig, SinkMaskerConfig, TopKMaskerConfig
from sah.sparse_attention.key_lists import KeyLists
from sah.sparse_attention.maskers.quest import QuestTopKMasker
from sah.sparse_attention.page_bounds import bounds_of_chunk, fast_bounds_of_chunk
from sah.sparse_attention.pages import choose_pages
from tests.support.attention import (
    BF16,
    EXECUTIONS,
    F32,
    Inputs,
    Shape,
    attend,
    efficient,
    inclusion_of,
    make_inputs,
    research,
)

SHAPES = [
    Shape(3, 1, False, F32, 50),
    Shape(4, 1, True, F32, 37),
    Shape(1, 1, False, BF16, 64),
    Shape(3, 1, False, F32, 1),
    Shape(3, 6, True, F32, 45),
    Shape(2, 9, False, BF16, 41),
    Shape(2, 12, False, F32, 12),
]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def pages_of(inputs: Inputs, b: int, page_size: int) -> torch.Tensor:
    """Page of each key of a batch row, counted from the first key that any query may read."""
    first = int(inputs.allowed[b].any(dim=0).any(dim=0).nonzero()[0])
    return ((torch.arange(inputs.keys.shape[2]) - first).clamp(min=0)) // page_size


def rows_of(inputs: Inputs) -> Iterator[tuple[int, int, int]]:
    """Every (batch row, query head, query) that may read some key."""
    batch, heads, q_len, _ = inputs.queries.shape
    for b, h, q in torch.cartesian_prod(torch.arange(batch), torch.arange(heads), torch.arange(q_len)).tolist():
        if inputs.allowed[b, 0, q].any():
            yield b, h, q


def naive_bounds(inputs: Inputs, page_size: int) -> torch.Tensor:
    """Straight from the formula, page by page in double precision; minus infinity where nothing may be read."""
    batch, heads, q_len, _ = inputs.queries.shape
    group = heads // inputs.keys.shape[1]
    pages = max(int(pages_of(inputs, b, page_size).max()) for b in range(batch)) + 1
    bounds = torch.full((batch, heads, q_len, pages), float("-inf"), dtype=torch.double)
    for b, q in torch.cartesian_prod(torch.arange(batch), torch.arange(q_len)).tolist():
        page, query = pages_of(inputs, b, page_size), inputs.queries[b, :, q].double() * inputs.scaling
        for number in range(pages):
            keys = inputs.keys[b, :, (page == number) & inputs.allowed[b, 0, q]].double()
            if keys.shape[1]:
                high, low = (end.repeat_interleave(group, 0) for end in (keys.amax(1), keys.amin(1)))
                bounds[b, :, q, number] = torch.maximum(query * high, query * low).sum(-1)
    return bounds


def combined(bounds: torch.Tensor, group: int, how: str) -> torch.Tensor:
    if how == "softmax_mean":
        bounds = torch.softmax(bounds, -1).nan_to_num(0.0)
    grouped = bounds.unflatten(1, (-1, group))
    grouped = grouped.amax(2) if how == "max" else grouped.mean(2)
    return grouped.repeat_interleave(group, 1)


def naive_choice(inputs: Inputs, config: QuestTopKMaskerConfig, kept: torch.Tensor) -> torch.Tensor:
    """Keys kept in the end, (batch, heads, q_len, kv_len): pages by falling bound, of each the residual keys in order.

    Under a group the keys that any of its heads keeps are kept by all of them.
    """
    group = inputs.queries.shape[1] // inputs.keys.shape[1]
    bounds = naive_bounds(inputs, config.page_size)
    if config.selection == "group":
        bounds = combined(bounds, group, config.group_score)
    result = kept.clone()
    for b, h, q in rows_of(inputs):
        allowed, page = inputs.allowed[b, 0, q], pages_of(inputs, b, config.page_size)
        count = int(allowed.sum())
        if config.density is not None:
            wanted = max(1, round(config.density * count)) - int(kept[b, h, q].sum())
        else:
            size = config.heavy_size
            wanted = size if isinstance(size, int) else max(1, round(size * count))
        place = bounds[b, h, q].argsort(descending=True).argsort()[page]
        for key in place.argsort(stable=True).tolist():
            if wanted > 0 and allowed[key] and not kept[b, h, q, key]:
                result[b, h, q, key] = True
                wanted -= 1
    return result


CONFIGS: dict[str, dict[str, Any]] = {
    "small": {"heavy_size": 3, "page_size": 16},
    "one key": {"heavy_size": 1, "page_size": 1},
    "share": {"density": 0.5, "page_size": 4},
    "own share": {"heavy_size": 0.3, "page_size": 5},
    "whole pages": {"heavy_size": 8, "page_size": 4},
    "one page": {"heavy_size": 9, "page_size": 500},
    "group": {"heavy_size": 10, "page_size": 4, "selection": "group"},
    "group by max": {"density": 0.4, "page_size": 3, "selection": "group", "group_score": "max"},
    "group by softmax": {"heavy_size": 7, "page_size": 4, "selection": "group", "group_score": "softmax_mean"},
}


@shapes
@pytest.mark.parametrize("name", CONFIGS)
def test_the_mask_follows_the_definition(shape: Shape, name: str) -> None:
    """Alone and behind other maskers, in both executions."""
    inputs, config = make_inputs(shape), QuestTopKMaskerConfig(**CONFIGS[name])
    first: list[list[Any]] = [[], [SinkMaskerConfig(sink_size=5), LocalMaskerConfig(window_size=6)]]
    if config.selection == "head":
        first.append([SinkMaskerConfig(sink_size=1), TopKMaskerConfig(heavy_size=4)])
    for before in first:
        empty = torch.zeros(*inputs.queries.shape[:3], shape.kv_len)
        kept = (inclusion_of(research(before), inputs) if before else empty) > 0
        expected = naive_choice(inputs, config, kept)
        for execution, make in EXECUTIONS.items():
            found = inclusion_of(make([*before, config]), inputs) > 0
            assert torch.equal(found, expected), (execution, len(before))


@pytest.mark.parametrize("selection", ["head", "group"])
def test_a_dense_mask_before_it_changes_nothing_but_its_form(selection: str) -> None:
    """Also where the keys are whole pages, and where they are but one."""
    config = QuestTopKMaskerConfig(heavy_size=9, page_size=4, selection=selection)
    for kv_len, q_len in [(48, 1), (49, 1), (4, 1), (3, 1), (1, 1), (48, 5), (51, 4), (48, 48)]:
        inputs = make_inputs(Shape(2, q_len, False, F32, kv_len))
        shape = (2, 4, q_len, kv_len)
        kept = (torch.rand(2, 1, q_len, kv_len, generator=torch.Generator().manual_seed(1)) < 0.2) & inputs.allowed
        expected = naive_choice(inputs, config, kept.expand(shape))
        (masker,) = efficient([config]).maskers
        dense = Mask.from_dense(shape, kept)
        for previous in (dense, Mask.from_indices(shape, *dense.to_indices())):
            for add in (masker.add_mask, masker.add_indices):
                mask = add(*inputs.tensors(), inputs.scaling, 0.0, {}, previous, layer_idx=0)
                found = ((mask.to_dense() > 0) & inputs.allowed).expand(shape)
                assert torch.equal(found, expected), (kv_len, q_len)


@shapes
@pytest.mark.parametrize("page_size", [1, 4, 16])
def test_bounds_are_those_of_the_keys_that_a_query_may_read(shape: Shape, page_size: int) -> None:
    """Neither padding nor what comes after a query moves a page's bound, however loud it is."""
    inputs = make_inputs(shape)
    never = ~inputs.allowed.any(dim=2).squeeze(1)
    inputs.keys.transpose(1, 2)[never] *= 1000
    expected = naive_bounds(inputs, page_size)
    for bounds_of in (bounds_of_chunk, fast_bounds_of_chunk):
        bounds = bounds_of(
            inputs.queries, inputs.keys, inputs.allowed, inputs.scaling, page_size, lambda *ends: torch.cat(ends, -1)
        )
        assert torch.allclose(bounds.double(), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("label_bits", [None, 1, 3, 8, 16])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=["fp32", "bf16"])
def test_no_score_lies_above_its_page_s_bound(label_bits: int | None, dtype: torch.dtype) -> None:
    """Also where the bounds are rounded: they are rounded outwards."""
    inputs = make_inputs(Shape(3, 1, False, dtype, 96))
    masker = QuestTopKMasker(QuestTopKMaskerConfig(heavy_size=1, page_size=8, label_bits=label_bits))
    units = masker.derive(inputs.keys, None, 0)
    assert units.dtype == dtype
    assert units.shape == (2, 2, 12, 32)
    high, low = units.float().repeat_interleave(3, 1).chunk(2, dim=-1)
    queries = inputs.queries.float()
    bounds = torch.maximum(queries * high, queries * low).sum(-1)
    scores = (queries @ inputs.keys.float().repeat_interleave(3, 1).mT).squeeze(2)
    best = scores.unflatten(-1, (12, 8)).amax(-1)
    slack = 1e-4 if dtype is F32 or label_bits is None else 0.01 * bounds.abs().max()
    assert (best <= bounds + slack).all()
    if label_bits is not None:
        ends = units.unflatten(-1, (2, 16))
        assert max(len(end.unique()) for end in ends.flatten(0, 3)) <= 2**label_bits
        plain = QuestTopKMasker(QuestTopKMaskerConfig(heavy_size=1, page_size=8)).derive(inputs.keys, None, 0)
        assert (units - plain)[..., :16].min() >= -slack and (units - plain)[..., 16:].max() <= slack
        if label_bits == 1:
            assert not torch.equal(units, plain)


def test_the_incomplete_last_page_takes_part() -> None:
    """Its bound is that of the keys that are there, from the first one on."""
    for kv_len in range(33, 49):
        inputs = make_inputs(Shape(1, 1, False, F32, kv_len, kv_heads=1), batch=1)
        inputs.keys[:, :, -1] = inputs.queries[:, :, 0] * 5
        expected = list(range(32, kv_len))
        for make in EXECUTIONS.values():
            config = QuestTopKMaskerConfig(heavy_size=kv_len - 32, page_size=16)
            inclusion = inclusion_of(make([config]), inputs)[0, 0, 0]
            assert inclusion.nonzero().squeeze(-1).tolist() == expected


def previous_lists(shape: tuple[int, int, int, int], lists: int, generator: torch.Generator, shortest: int) -> Mask:
    """Ranges, single keys with unused places, and whole pages of three keys, none of them twice."""
    batch = shape[0]
    order = torch.rand(batch, lists, 20, generator=generator).argsort(-1)[..., :9].unsqueeze(2) + 5
    used = (torch.rand(order.shape, generator=generator) < 0.7).float()
    pages = torch.rand(batch, lists, 5, generator=generator).argsort(-1)[..., :2].unsqueeze(2) + 10
    spans = Mask.from_spans(shape, ((0, 5), (shortest - 6, shortest)))
    return spans.extend(KeyLists(order, used), KeyLists(pages, run=3))


@pytest.mark.parametrize("page_size", [1, 4, 7, 16, 200])
@pytest.mark.parametrize("lists", [2, 6])
@pytest.mark.parametrize("shorter", [0, 11], ids=["rows of one length", "rows of two lengths"])
def test_pages_are_chosen_to_the_key(page_size: int, lists: int, shorter: int) -> None:
    """Rows with budgets of their own, behind lists of every kind, against a plain walk through the pages."""
    generator = torch.Generator().manual_seed(page_size)
    for kv_len in (97, 112):
        shape = (2, 6, 1, kv_len)
        lengths = torch.tensor([kv_len, kv_len - shorter] if shorter else [kv_len])
        readable = (torch.arange(kv_len) < lengths.unsqueeze(-1)).expand(2, -1)
        for previous in (Mask.empty(shape), previous_lists(shape, lists, generator, kv_len - shorter)):
            pages = -(-kv_len // page_size)
            scores = torch.randn(2, lists, pages, generator=generator)
            kept = previous.to_dense().expand(shape)[:, :: 6 // lists, 0] > 0
            left = (readable[:, None] & ~kept).sum(-1)
            add = (torch.rand(2, lists, generator=generator) * left).long()
            add[0, 0], add[1, 1] = left[0, 0], 1
            found = choose_pages(scores, page_size, previous, add, lengths)
            mask = Mask.empty(shape).extend(*found).to_dense().expand(shape)[:, :: 6 // lists, 0] > 0
            for b, row in torch.cartesian_prod(torch.arange(2), torch.arange(lists)).tolist():
                order = [k for p in scores[b, row].argsort(descending=True).tolist()
                         for k in range(p * page_size, min(kv_len, (p + 1) * page_size))]  # fmt: skip
                wanted = [k for k in order if readable[b, k] and not kept[b, row, k]][: int(add[b, row])]
                assert mask[b, row].nonzero().squeeze(-1).tolist() == sorted(wanted)
            assert sum(part.run == page_size for part in found) <= 2
            named = torch.cat([part.of_single_keys(lists)[0] for part in found], dim=-1)
            used = torch.cat([part.of_single_keys(lists)[1] for part in found], dim=-1) > 0
            assert named.max() < kv_len
            assert torch.equal(used.sum(-1).squeeze(-1), add), "no key is named twice"


def test_whole_pages_are_read_as_runs() -> None:
    inputs = make_inputs(Shape(4, 1, False, F32, 640), batch=1)
    attention = efficient([QuestTopKMaskerConfig(heavy_size=64, page_size=16, selection="group")])
    mask = attention.build_mask(*inputs.tensors(), inputs.scaling, 0.0, {}, layer_idx=0)
    (part,) = mask.lists
    assert (part.run, part.indices.shape, part.probabilities) == (16, (1, 2, 1, 4), None)


def test_the_state_is_two_entries_a_channel_and_page() -> None:
    inputs = make_inputs(Shape(2, 1, False, BF16, 1000), batch=1)
    meta: dict[Any, Any] = {}
    attend(efficient([QuestTopKMaskerConfig(density=0.1)]), inputs, meta)
    (state,) = meta[0].values()
    assert state.nbytes() == 62 * 2 * inputs.keys[:, :, :1].nbytes


def test_a_bound_sees_the_sign_of_each_channel() -> None:
    """A page whose mean says nothing is found by its ends, in whichever channel and direction they lie."""
    inputs = make_inputs(Shape(1, 1, False, F32, 64, kv_heads=1), batch=1)
    inputs.keys *= 0.1
    for sign in (1.0, -1.0):
        loud = replace(inputs, keys=inputs.keys.clone(), queries=torch.zeros_like(inputs.queries))
        loud.queries[..., 3] = sign
        loud.keys[:, :, 20, 3], loud.keys[:, :, 21, 3] = 9 * sign, -9 * sign
        for make in EXECUTIONS.values():
            kept = inclusion_of(make([QuestTopKMaskerConfig(heavy_size=16)]), loud)[0, 0, 0]
            assert kept.nonzero().squeeze(-1).tolist() == list(range(16, 32))


@pytest.mark.parametrize(
    ("field", "value"),
    [("page_size", v) for v in (0, -4, 1.5, "16", True, None)]
    + [("label_bits", v) for v in (0, 17, 2.0, True, "4")]
    + [("heavy_size", v) for v in (-1, 2.0, 1.5, True)]
    + [("selection", "heads"), ("group_score", "sum")],
)
def test_bad_values_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        QuestTopKMaskerConfig(**{"heavy_size": 4} | {field: value})
    for part in (f"masker.quest.{field}", repr(value).strip("'"), "Allowed:", f"masker.quest.{field}="):
        assert part in str(caught.value)
    built = QuestTopKMaskerConfig(heavy_size=4)
    with pytest.raises(ConfigError):
        setattr(built, field, value)
    assert built == QuestTopKMaskerConfig(heavy_size=4)
