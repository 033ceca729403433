"""Kept keys as lists: what they mean, how their rows are read, and attention over them, on odd shapes and layouts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sah.sparse_attention import Mask
from sah.sparse_attention.kernels import lists as kernel
from sah.sparse_attention.kernels import scores as scores_kernel
from sah.sparse_attention.kernels.fused import fused_attention
from sah.sparse_attention.kernels.gather import gather_rows
from sah.sparse_attention.kernels.grouped import grouped_attention
from sah.sparse_attention.kernels.scores import attention_logits
from sah.sparse_attention.kernels.workspace import Workspace
from sah.sparse_attention.key_lists import KeyLists, union_of_spans
from sah.sparse_attention.maskers.base import extend_by_best, hide_kept
from tests.support.attention import BF16, F32, Inputs, Shape, assert_near, make_inputs, naive_attention, sdpa

LAYOUTS = [
    "contiguous", "capacity of whole pages", "odd capacity", "offset", "transposed", "narrow", "sparse rows", "shared",
]  # fmt: skip


def laid_out(states: torch.Tensor, layout: str) -> torch.Tensor:
    """The same keys or values as a view whose memory lies differently, NaN wherever they are not."""
    batch, heads, length, dim = states.shape

    def room(*shape: int) -> torch.Tensor:
        return torch.full(shape, float("nan"), dtype=states.dtype)

    if layout == "contiguous":
        return states.contiguous()
    if layout == "transposed":
        return states.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "shared":
        return states[:1].expand(batch, -1, -1, -1)
    if layout == "narrow":
        view = room(batch, heads, length, dim + 3)[..., :dim]
    elif layout == "sparse rows":
        view = room(batch, heads, 2 * length, dim)[:, :, ::2]
    elif layout == "offset":
        view = room(batch, heads + 1, length + 9, dim)[:, 1:, 5 : 5 + length]
    else:
        capacity = length + 1 if layout == "odd capacity" else -(-(length + 1) // 16) * 16
        view = room(batch, heads, capacity, dim)[:, :, :length]
    view.copy_(states)
    return view


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [F32, BF16], ids=["fp32", "bf16"])
def test_gathered_rows_are_the_named_ones(layout: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    for length, run in [(50, 1), (50, 4), (47, 16), (16, 16), (5, 1)]:
        for per_head in (1, 3):
            states = laid_out(torch.randn(2, 3, length, 8, generator=generator).to(dtype), layout)
            indices = torch.randint(length // run, (2, 3 * per_head, 7), generator=generator)
            expected = torch.empty(2, 3 * per_head, 7 * run, 8, dtype=dtype)
            for b, row, place in torch.cartesian_prod(torch.arange(2), torch.arange(3 * per_head), torch.arange(7)):
                first = int(indices[b, row, place]) * run
                expected[b, row, place * run : (place + 1) * run] = states[b, row // per_head, first : first + run]
            workspace = Workspace()
            for given_workspace in (None, workspace, workspace):
                assert torch.equal(gather_rows(states, indices, run, workspace=given_workspace), expected)


def test_no_rows_are_gathered_from_lists_of_none() -> None:
    for run in (1, 16):
        states = torch.randn(2, 3, 5, 8)
        assert gather_rows(states, torch.empty(2, 3, 0, dtype=torch.long), run).shape == (2, 3, 0, 8)


def test_a_workspace_grows_and_keeps_its_buffers_apart() -> None:
    workspace = Workspace()
    first = workspace.take("a", (3, 4), F32, torch.device("cpu")).fill_(1)
    assert workspace.take("a", (2, 6), F32, torch.device("cpu")).data_ptr() == first.data_ptr()
    before = workspace.nbytes()
    for name, dtype in [("b", F32), ("a", BF16)]:
        workspace.take(name, (12,), dtype, torch.device("cpu")).fill_(7)
    assert (first == 1).all()
    assert workspace.nbytes() > before
    assert workspace.take("a", (100, 100), F32, torch.device("cpu")).shape == (100, 100)
    assert workspace.nbytes() >= 40_000


KV_LEN, RUN, GROUP, KV_HEADS, BATCH = 101, 4, 3, 2, 2
SHAPE = (BATCH, GROUP * KV_HEADS, 1, KV_LEN)
SPANS = ((0, 3), (92, KV_LEN))


def some_of(first: int, stop: int, lists: int, count: int, batch: int, seed: int) -> torch.Tensor:
    """Distinct numbers of a range for every list, (batch, lists, 1, count)."""
    order = torch.rand(batch, lists, stop - first, generator=torch.Generator().manual_seed(seed)).argsort(-1)
    return (order[..., :count] + first).unsqueeze(2)


def chances(indices: torch.Tensor, seed: int) -> torch.Tensor:
    """Probabilities with unused places, very small ones and certain ones among them."""
    drawn = torch.rand(indices.shape, generator=torch.Generator().manual_seed(seed))
    return drawn.masked_fill(drawn < 0.3, 1e-6).masked_fill(drawn < 0.2, 0.0).masked_fill(drawn > 0.8, 1.0)


def logits_at(inputs: Inputs, indices: torch.Tensor) -> torch.Tensor:
    group = inputs.queries.shape[1] // inputs.keys.shape[1]
    logits = inputs.queries.double() @ inputs.keys.double().repeat_interleave(group, 1).mT * inputs.scaling
    return logits.float().gather(-1, indices)


def parts(inputs: Inputs) -> dict[str, KeyLists]:
    """Lists of every kind, no key in two of them or in `SPANS`."""
    heads = GROUP * KV_HEADS
    known = some_of(76, 84, heads, 5, BATCH, 4)
    drawn, shared = some_of(44, 60, heads, 9, BATCH, 2), some_of(60, 68, 1, 3, 1, 3)
    sampled, repeated = some_of(68, 76, KV_HEADS, 6, BATCH, 5), some_of(84, 92, 1, 4, 1, 6)
    unused = chances(repeated, 6)
    # Unused places may name any key, also one that is kept elsewhere.
    repeated = torch.where(unused == 0, 1, repeated)
    return {
        "pages by group": KeyLists(some_of(1, 6, KV_HEADS, 3, BATCH, 0), run=RUN),
        "pages by head": KeyLists(some_of(6, 11, heads, 2, BATCH, 1), run=RUN),
        "drawn by head": KeyLists(drawn, chances(drawn, 2)),
        "shared by all": KeyLists(shared),
        "known by head": KeyLists(known, chances(known, 4), logits_at(inputs, known)),
        "drawn by group": KeyLists(sampled, chances(sampled, 5)),
        "unused places": KeyLists(repeated, unused),
    }


def meaning(spans: tuple[tuple[int, int], ...], lists: list[KeyLists]) -> torch.Tensor:
    """Inclusion probabilities (batch, heads, 1, kv_len), place by place in plain Python."""
    result = torch.zeros(SHAPE)
    for b in range(BATCH):
        for h in range(SHAPE[1]):
            for start, stop in spans:
                result[b, h, 0, start:stop] = 1
            for part in lists:
                row = (b if len(part.indices) > 1 else 0), h * part.indices.shape[1] // SHAPE[1], 0
                names = part.indices[row].tolist()
                given = [1.0] * len(names) if part.probabilities is None else part.probabilities[row].tolist()
                for name, p in zip(names, given, strict=True):
                    for key in range(name * part.run, (name + 1) * part.run):
                        result[b, h, 0, key] = max(float(result[b, h, 0, key]), p)
    return result


def combinations(inputs: Inputs) -> Iterator[tuple[str, tuple[tuple[int, int], ...], list[KeyLists]]]:
    every = parts(inputs)
    yield "spans alone", SPANS, []
    for name, part in every.items():
        yield name, (), [part]
        yield f"{name} behind spans", SPANS, [part]
    for (name, part), (other_name, other) in pairwise(every.items()):
        yield f"{name}, {other_name}", SPANS[:1], [part, other]
    yield "all", SPANS, list(every.values())


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    return make_inputs(Shape(GROUP, 1, False, F32, KV_LEN, kv_heads=KV_HEADS), batch=BATCH)


def test_masks_of_lists_mean_what_their_places_say(inputs: Inputs) -> None:
    allowed = torch.rand(BATCH, 1, 1, KV_LEN, generator=torch.Generator().manual_seed(9)) < 0.7
    for name, spans, lists in combinations(inputs):
        mask = Mask.from_spans(SHAPE, spans).extend(*lists)
        expected = meaning(spans, lists)
        assert torch.equal(mask.to_dense().expand(SHAPE), expected), name
        assert torch.equal(Mask.from_indices(SHAPE, *mask.to_indices()).to_dense().expand(SHAPE), expected), name
        for keys in (allowed, torch.ones_like(allowed)):
            counted = mask.count(keys).expand(SHAPE[:3])
            assert torch.equal(counted, ((expected > 0) & keys).sum(-1)), name
        assert mask.is_certain == all(part.probabilities is None for part in lists), name
        assert mask.has_indices and not mask.is_empty and not mask.is_full, name


def test_merging_lists_is_a_union(inputs: Inputs) -> None:
    every = list(combinations(inputs))
    for (name, spans, lists), (other_name, other_spans, others) in zip(every, every[3:] + every[:3], strict=True):
        left, right = (Mask.from_spans(SHAPE, s).extend(*p) for s, p in ((spans, lists), (other_spans, others)))
        expected = torch.maximum(meaning(spans, lists), meaning(other_spans, others))
        for merged in (left.merge(right), right.merge(left)):
            assert merged.has_indices
            assert torch.equal(merged.to_dense().expand(SHAPE), expected), (name, other_name)
            assert torch.equal(merged.count(torch.ones(1, 1, 1, KV_LEN, dtype=torch.bool)), (expected > 0).sum(-1))
        dense = Mask.from_dense(SHAPE, meaning(other_spans, others))
        assert torch.equal(left.merge(dense).to_dense(), expected)


def test_kept_keys_are_hidden_and_unused_places_hide_none(inputs: Inputs) -> None:
    generator = torch.Generator().manual_seed(1)
    for name, spans, lists in combinations(inputs):
        mask, kept = Mask.from_spans(SHAPE, spans).extend(*lists), meaning(spans, lists) > 0
        allowed = torch.rand(BATCH, 1, 1, KV_LEN, generator=generator) < 0.9
        scores = torch.randn(SHAPE, generator=generator)
        expected = scores.masked_fill(kept | ~allowed, float("-inf"))
        hide_kept(scores, allowed, mask)
        assert torch.equal(scores, expected), name


def test_every_row_is_extended_by_its_own_number_of_best_keys() -> None:
    generator = torch.Generator().manual_seed(2)
    for lists in (KV_HEADS, GROUP * KV_HEADS):
        scores = torch.randn(BATCH, lists, 1, KV_LEN, generator=generator)
        scores[..., 20:50] = float("-inf")
        add = torch.randint(0, 12, (BATCH, lists, 1), generator=generator)
        add[0, 0], add[0, 1] = 0, 71
        previous = Mask.from_spans(SHAPE, ((20, 50),))
        (part,) = extend_by_best(previous, scores, add, are_logits=True).lists
        rank = scores.argsort(-1, descending=True).argsort(-1)
        indices, used = part.indices, part.probabilities == 1
        assert torch.equal(part.probabilities > 0, used)
        assert torch.equal(used.sum(-1), add)
        assert torch.equal(used, rank.gather(-1, indices) < add.unsqueeze(-1))
        assert torch.equal(part.logits[used], scores.gather(-1, indices)[used])
        assert extend_by_best(previous, scores, torch.zeros_like(add)) is previous


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=5))
def test_ranges_are_joined_in_order(spans: list[tuple[int, int]]) -> None:
    joined = union_of_spans(spans)
    assert {k for a, b in joined for k in range(a, b)} == {k for a, b in spans for k in range(a, b)}
    assert all(a < b for a, b in joined)
    assert all(left[1] < right[0] for left, right in pairwise(joined))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [F32, BF16], ids=["fp32", "bf16"])
def test_attention_over_lists_equals_the_formula(
    layout: str, dtype: torch.dtype, inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every kind of list, with sinks and a soft cap; all at once, head by head, and in tiles of unequal size."""
    states = [laid_out(t.to(dtype), layout) for t in (inputs.keys, inputs.values[..., :12])]
    given_inputs = Inputs(inputs.queries.to(dtype), *states, inputs.allowed, inputs.scaling)
    sinks = torch.tensor([0.5, -3.0, 4.0, 0.0, 60.0, -60.0])
    workspace = Workspace()
    for number, (name, spans, lists) in enumerate(combinations(given_inputs)):
        inclusion = meaning(spans, lists)
        given_sinks, softcap = sinks if number % 2 else None, 2.0 if number % 3 == 1 else None
        expected = naive_attention(given_inputs, inclusion, given_sinks, softcap)
        row_bytes = sum(p.indices.shape[-1] * p.run for p in lists) * 16 * 4
        for tile_bytes in (4 << 20, 1, row_bytes * 4):
            monkeypatch.setattr(kernel, "TILE_BYTES", tile_bytes)
            output = kernel.attend_lists(
                given_inputs.queries, *states, spans, tuple(lists), inputs.scaling, workspace, sinks=given_sinks,
                softcap=softcap,
            )  # fmt: skip
            assert output.dtype == dtype
            try:
                assert_near(output, expected, dtype)
            except AssertionError as error:
                raise AssertionError(f"{name}, tiles of {tile_bytes} bytes: {error}") from error


def test_tiles_are_cut_where_the_rows_do_not_fit(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this, small tiles in the test above would prove nothing."""
    listed = kernel._grouped(parts(inputs)["pages by group"], BATCH, KV_HEADS, GROUP)
    for tile_bytes, tiles in [(4 << 20, 1), (1, BATCH * KV_HEADS), (3 * RUN * 16 * 4 * KV_HEADS, BATCH)]:
        monkeypatch.setattr(kernel, "TILE_BYTES", tile_bytes)
        cut = kernel._tiles(inputs.keys, SPANS, [listed])
        assert len(cut) == tiles
        covered = torch.zeros(BATCH, KV_HEADS)
        for rows, heads in cut:
            covered[rows, heads] += 1
        assert (covered == 1).all()


def test_a_certain_key_weighs_the_same_whether_or_not_its_probability_is_written(inputs: Inputs) -> None:
    """The trap is 1/(p + 1e-6), which makes 1 into 0.999999; beside keys without a probability it would show."""
    indices = some_of(3, 92, GROUP * KV_HEADS, 20, BATCH, 7)
    outputs = [
        kernel.attend_lists(
            inputs.queries, inputs.keys, inputs.values, SPANS, (KeyLists(indices, probabilities),), 0.25, Workspace()
        )
        for probabilities in (None, torch.ones(indices.shape))
    ]
    assert torch.equal(*outputs)


def test_logits_that_are_known_are_used(inputs: Inputs) -> None:
    """They are those of another scaling here, so that computing them again would show."""
    indices = some_of(0, KV_LEN, GROUP * KV_HEADS, 20, BATCH, 8)
    louder = replace(inputs, scaling=inputs.scaling * 3)
    part = KeyLists(indices, None, logits_at(louder, indices))
    output = kernel.attend_lists(inputs.queries, inputs.keys, inputs.values, (), (part,), inputs.scaling, Workspace())
    assert_near(output, naive_attention(louder, meaning((), [part])))


def test_a_row_whose_places_are_all_unused_reads_nothing(inputs: Inputs) -> None:
    """A padded query; the others are as without it."""
    part = parts(inputs)["drawn by head"]
    probabilities = part.probabilities.clone()
    probabilities[0] = 0
    output = kernel.attend_lists(
        inputs.queries, inputs.keys, inputs.values, (), (KeyLists(part.indices, probabilities),), 0.25, Workspace()
    )
    assert (output[0] == 0).all()
    inclusion = meaning((), [part])
    expected = naive_attention(Inputs(*inputs.tensors(), 0.25), inclusion)
    assert_near(output[1], expected[1])


@pytest.mark.parametrize("dtype", [F32, BF16], ids=["fp32", "bf16"])
def test_scores_of_converted_blocks_are_those_of_the_whole(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores_kernel, "BLOCK_NUMBERS", 1)
    for batch_of_keys, length in [(2, 193), (1, 64), (2, 1)]:
        inputs = make_inputs(Shape(3, 2, False, dtype, length))
        keys = inputs.keys[:batch_of_keys]
        expected = inputs.queries.double() @ keys.double().repeat_interleave(3, 1).mT * inputs.scaling
        assert_near(attention_logits(inputs.queries, keys, inputs.scaling), expected)
        capped = attention_logits(inputs.queries, keys, inputs.scaling, softcap=1.5)
        assert_near(capped, 1.5 * torch.tanh(expected / 1.5))


@pytest.mark.parametrize("layout", LAYOUTS[:4])
def test_the_grouped_dense_form_equals_dense_attention(layout: str) -> None:
    for dtype in (F32, BF16):
        inputs = make_inputs(Shape(GROUP, 1, True, dtype, KV_LEN))
        states = [laid_out(t, layout) for t in (inputs.keys, inputs.values)]
        output = grouped_attention(inputs.queries, *states, inputs.allowed, inputs.scaling)
        assert_near(output, sdpa(inputs), dtype)
        free = make_inputs(Shape(GROUP, 1, False, dtype, KV_LEN))
        assert_near(grouped_attention(free.queries, free.keys, free.values, None, free.scaling), sdpa(free), dtype)


@pytest.mark.parametrize("layout", LAYOUTS[:4])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=["fp32", "bf16"])
def test_the_fused_form_of_chunks_equals_the_formula(layout: str, dtype: torch.dtype) -> None:
    """Masks of all heads or of each, certain or drawn, full, and with rows that read nothing."""
    given = make_inputs(Shape(GROUP, 4, False, dtype, 41))
    states = [laid_out(t, layout) for t in (given.keys, given.values)]
    inputs = Inputs(given.queries, *states, given.allowed, given.scaling)
    generator = torch.Generator().manual_seed(0)
    for heads in (1, GROUP * KV_HEADS):
        drawn = torch.rand(2, heads, 4, 41, generator=generator)
        for inclusion in (drawn.masked_fill(drawn < 0.4, 0.0), (drawn < 0.5).float(), torch.ones(1, 1, 1, 41)):
            inclusion = (inclusion * inputs.allowed).clone()
            inclusion[0, :, 2] = 0
            output = fused_attention(inputs.queries, *states, inclusion, inputs.scaling)
            expected = naive_attention(inputs, inclusion.expand(2, GROUP * KV_HEADS, 4, 41))
            assert output.dtype == dtype
            assert (output[0, :, 2] == 0).all()
            assert_near(output, expected, dtype)
