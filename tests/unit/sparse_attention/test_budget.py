"""The one place where densities and sizes become numbers of keys."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sah.sparse_attention.budget import keys_to_add, size_in_keys, target_keys

counts = st.integers(0, 200_000)
shares = st.floats(1e-9, 1.0, exclude_min=False)


def one(value: int) -> torch.Tensor:
    return torch.tensor([value])


@settings(deadline=None)
@given(shares, counts)
def test_target_is_the_rounded_share_but_at_least_one(density: float, allowed: int) -> None:
    expected = max(1, round(density * allowed)) if allowed else 0
    assert int(target_keys(density, one(allowed))) == expected


@settings(deadline=None)
@given(shares, st.integers(1, 200_000))
def test_a_target_never_floors_to_nothing_nor_overshoots(density: float, allowed: int) -> None:
    target = int(target_keys(density, one(allowed)))
    assert 1 <= target <= allowed
    assert abs(target - density * allowed) <= 0.5 or target == 1


def test_traps_of_the_reference() -> None:
    assert int(target_keys(0.001, one(100))) == 1
    assert int(size_in_keys(0.001, one(100))) == 1
    assert int(size_in_keys(16, one(4096))) == 16


def test_an_int_is_tokens_and_a_float_a_share() -> None:
    allowed = torch.tensor([0, 1, 7, 1000])
    assert size_in_keys(1, allowed).tolist() == [0, 1, 1, 1]
    assert size_in_keys(1.0, allowed).tolist() == [0, 1, 7, 1000]
    assert size_in_keys(0, allowed).tolist() == [0, 0, 0, 0]
    assert size_in_keys(0.0, allowed).tolist() == [0, 0, 0, 0]


@settings(deadline=None)
@given(st.integers(0, 10**7), counts)
def test_a_size_above_the_length_is_all_of_it(size: int, allowed: int) -> None:
    assert int(size_in_keys(size, one(allowed))) == min(size, allowed)


@settings(deadline=None)
@given(shares, counts, st.data())
def test_density_counts_what_is_kept_already(density: float, allowed: int, data: st.DataObject) -> None:
    kept = data.draw(st.integers(0, allowed))
    target = max(1, round(density * allowed)) if allowed else 0
    assert int(keys_to_add(density, None, one(allowed), one(kept))) == max(0, target - kept)


@settings(deadline=None)
@given(st.one_of(st.integers(0, 10**6), shares), counts, st.data())
def test_an_own_size_is_added_up_to_what_is_left(size: float, allowed: int, data: st.DataObject) -> None:
    kept = data.draw(st.integers(0, allowed))
    wanted = int(size_in_keys(size, one(allowed)))
    assert int(keys_to_add(None, size, one(allowed), one(kept))) == min(wanted, allowed - kept)


def test_every_row_has_its_own_budget() -> None:
    allowed = torch.tensor([[[10, 100, 1000]]])
    kept = torch.tensor([[[0, 7, 200]]])
    assert keys_to_add(0.1, None, allowed, kept).tolist() == [[[1, 3, 0]]]


def test_results_are_whole_numbers() -> None:
    for result in (target_keys(0.3, one(10)), size_in_keys(0.3, one(10)), keys_to_add(0.3, None, one(10), one(1))):
        assert result.dtype == torch.int64


def test_neither_budget_is_an_error() -> None:
    with pytest.raises(ValueError, match="neither"):
        keys_to_add(None, None, one(3), one(0))
