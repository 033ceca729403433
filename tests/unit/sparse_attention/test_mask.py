"""Two representations, one meaning."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sah.sparse_attention import Mask
from sah.sparse_attention.key_lists import KeyLists

SHAPE = (2, 3, 2, 9)
PROBABILITIES = [0.0, 0.0, 0.25, 0.5, 1.0]


@st.composite
def dense_masks(draw: st.DrawFn) -> torch.Tensor:
    """Inclusion probabilities, possibly broadcast over heads."""
    heads = draw(st.sampled_from([1, SHAPE[1]]))
    size = SHAPE[0] * heads * SHAPE[2] * SHAPE[3]
    values = draw(st.lists(st.sampled_from(PROBABILITIES), min_size=size, max_size=size))
    return torch.tensor(values).view(SHAPE[0], heads, SHAPE[2], SHAPE[3])


@st.composite
def index_masks(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """Lists in any order; unused places name any key, also one that is kept elsewhere in the list."""
    heads = draw(st.sampled_from([1, SHAPE[1]]))
    places = draw(st.integers(0, 5))
    unused = draw(st.integers(0, 3))
    indices, probabilities = [], []
    for _ in range(SHAPE[0] * heads * SHAPE[2]):
        row = draw(st.permutations(range(SHAPE[3])))[:places]
        row_probabilities = draw(st.lists(st.sampled_from(PROBABILITIES), min_size=places, max_size=places))
        filler = draw(st.lists(st.integers(0, SHAPE[3] - 1), min_size=unused, max_size=unused))
        order = draw(st.permutations(range(places + unused)))
        names, chances = [*row, *filler], [*row_probabilities, *[0.0] * unused]
        indices.append([names[i] for i in order])
        probabilities.append([chances[i] for i in order])
    lists = (SHAPE[0], heads, SHAPE[2], places + unused)
    return torch.tensor(indices, dtype=torch.long).view(lists), torch.tensor(probabilities).view(lists)


def meaning(mask: Mask) -> torch.Tensor:
    return mask.to_dense().expand(SHAPE)


def lists_meaning(indices: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
    """What index lists say, place by place in plain Python."""
    result = torch.zeros(SHAPE)
    for b in range(SHAPE[0]):
        for h in range(SHAPE[1]):
            for q in range(SHAPE[2]):
                source = h if indices.shape[1] > 1 else 0
                for key, p in zip(indices[b, source, q].tolist(), probabilities[b, source, q].tolist(), strict=True):
                    result[b, h, q, key] = max(float(result[b, h, q, key]), p)
    return result


any_mask = st.one_of(
    dense_masks().map(lambda dense: Mask.from_dense(SHAPE, dense)),
    index_masks().map(lambda lists: Mask.from_indices(SHAPE, *lists)),
    st.just(Mask.full(SHAPE)),
    st.just(Mask.empty(SHAPE)),
)


@settings(deadline=None, max_examples=40)
@given(dense_masks())
def test_dense_to_indices_and_back(dense: torch.Tensor) -> None:
    lists = Mask.from_dense(SHAPE, dense).to_indices()
    assert torch.equal(lists_meaning(*lists), dense.expand(SHAPE))
    assert torch.equal(meaning(Mask.from_indices(SHAPE, *lists)), dense.expand(SHAPE))


@settings(deadline=None, max_examples=40)
@given(index_masks())
def test_indices_to_dense_and_back(lists: tuple[torch.Tensor, torch.Tensor]) -> None:
    mask = Mask.from_indices(SHAPE, *lists)
    assert torch.equal(meaning(mask), lists_meaning(*lists))
    again = Mask.from_dense(SHAPE, mask.to_dense())
    assert torch.equal(lists_meaning(*again.to_indices()), meaning(mask))


@settings(deadline=None, max_examples=80)
@given(any_mask, any_mask)
def test_merge_is_a_union_with_the_larger_probability(left: Mask, right: Mask) -> None:
    before = meaning(left).clone(), meaning(right).clone()
    merged = left.merge(right)
    assert torch.equal(meaning(merged), torch.maximum(*before))
    assert torch.equal(meaning(merged), meaning(right.merge(left)))
    assert torch.equal(lists_meaning(*merged.to_indices()), torch.maximum(*before))
    assert torch.equal(meaning(left), before[0])
    assert torch.equal(meaning(right), before[1])


@settings(deadline=None, max_examples=80)
@given(any_mask, any_mask)
def test_merged_lists_name_no_kept_key_twice(left: Mask, right: Mask) -> None:
    indices, probabilities = left.merge(right).to_indices()
    for row, chances in zip(indices.flatten(0, 2), probabilities.flatten(0, 2), strict=True):
        kept = row[chances > 0].tolist()
        assert len(kept) == len(set(kept))


@settings(deadline=None, max_examples=60)
@given(any_mask, dense_masks())
def test_count_is_over_allowed_keys_only(mask: Mask, chance: torch.Tensor) -> None:
    allowed = chance > 0.25
    expected = ((meaning(mask) > 0) & allowed).sum(-1)
    assert torch.equal(mask.count(allowed).expand(SHAPE[:3]), expected)


@settings(deadline=None, max_examples=40)
@given(dense_masks(), index_masks())
def test_extend_equals_merge_where_nothing_is_held_twice(
    dense: torch.Tensor, lists: tuple[torch.Tensor, torch.Tensor]
) -> None:
    indices, probabilities = lists
    taken = dense.expand(SHAPE).gather(-1, indices.expand(-1, SHAPE[1], -1, -1)) > 0
    probabilities = probabilities.expand_as(taken).masked_fill(taken, 0.0)
    indices = indices.expand_as(taken)
    as_dense = Mask.from_dense(SHAPE, dense)
    as_lists = Mask.from_indices(SHAPE, *as_dense.to_indices())
    for mask in (as_dense, as_lists):
        extended = mask.extend(KeyLists(indices, probabilities))
        assert torch.equal(meaning(extended), meaning(mask.merge(Mask.from_indices(SHAPE, indices, probabilities))))


def test_full_and_empty_cost_nothing() -> None:
    huge = (1, 1024, 1024, 10**9)
    assert Mask.full(huge).is_full
    assert not Mask.full(huge).is_empty
    assert Mask.empty(huge).is_empty
    assert not Mask.empty(huge).is_full
    assert Mask.empty(huge).merge(Mask.full(huge)).is_full
    assert Mask.full(huge).merge(Mask.empty(huge)).is_full


def test_full_and_empty_mean_what_they_say() -> None:
    assert (meaning(Mask.full(SHAPE)) == 1).all()
    assert (meaning(Mask.empty(SHAPE)) == 0).all()
    indices, probabilities = Mask.full(SHAPE).to_indices()
    assert (lists_meaning(indices, probabilities) == 1).all()
    assert Mask.empty(SHAPE).to_indices()[0].shape[-1] == 0


def test_merging_different_shapes_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be merged"):
        Mask.full(SHAPE).merge(Mask.full((1, 1, 1, 1)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.bool])
def test_probabilities_are_float32(dtype: torch.dtype) -> None:
    mask = Mask.from_dense(SHAPE, torch.ones(SHAPE, dtype=dtype))
    assert mask.to_dense().dtype == torch.float32
    assert mask.to_indices()[1].dtype == torch.float32
    lists = torch.zeros(2, 3, 2, 1, dtype=torch.long), torch.ones(2, 3, 2, 1).to(dtype)
    assert Mask.from_indices(SHAPE, *lists).to_dense().dtype == torch.float32
