"""State that methods derive from keys: every unit once, context and question apart, nothing stale."""

from __future__ import annotations

from collections.abc import Hashable
from types import MappingProxyType
from typing import Any

import pytest
import torch

from sah.sparse_attention.key_state import CONTEXT_LENGTH_KEY, CONTEXT_STATE_KEY, ContextPart, KeyStateMasker, OwnPart

CONTEXT, QUESTION, LAST = 45, 5, 150


class Sums(KeyStateMasker):
    """Sums up each unit, less what was fitted, and notes what it was asked for."""

    def __init__(self, unit: int, key: str = "0.sums", name: str = "sums") -> None:
        self.unit = unit
        self.key = key
        self.name = name
        self.derived: list[int] = []
        self.fitted: list[int] = []

    def state_identity(self) -> Hashable:
        return (self.name, self.unit)

    def fit(self, keys: torch.Tensor, layer_idx: int) -> torch.Tensor:
        self.fitted.append(keys.shape[2])
        return keys.sum(dim=2, keepdim=True) + layer_idx

    def derive(self, keys: torch.Tensor, fitted: torch.Tensor, layer_idx: int) -> torch.Tensor:
        self.derived.append(keys.shape[2])
        assert keys.shape[2] % self.unit == 0
        return keys.unflatten(2, (-1, self.unit)).sum(3)[..., :3] - fitted[..., :3] + layer_idx

    def expected(self, keys: torch.Tensor, context: int, layer_idx: int = 0) -> torch.Tensor:
        """What it says of keys in all, made from scratch."""
        complete = keys.shape[2] // self.unit * self.unit
        fitted = keys[:, :, :context].sum(dim=2, keepdim=True) + layer_idx
        return keys[:, :, :complete].unflatten(2, (-1, self.unit)).sum(3)[..., :3] - fitted[..., :3] + layer_idx


def some_keys(seed: int = 0, batch: int = 1, length: int = LAST) -> torch.Tensor:
    """Whole numbers, so that sums are exact in any order."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-50, 50, (batch, 2, length, 4), generator=generator).float()


def state_of(masker: Sums, keys: torch.Tensor, meta: dict[Any, Any], layer_idx: int = 0, q_len: int = 1) -> Any:
    _, segments = masker.key_state(keys, meta, layer_idx, q_len)
    rows = max((s.shape[0] for s in segments), default=1)
    return torch.cat([s.expand(rows, -1, -1, -1) for s in segments], dim=2)


def prepared(masker: Sums, keys: torch.Tensor, layers: int = 1) -> dict[Any, Any]:
    """State of a context, in the form in which a question gets it: writing to it raises."""
    context_state: dict[Any, Any] = {}
    for layer_idx in range(layers):
        masker.prepare_context(context_state, keys, layer_idx)
    return {CONTEXT_STATE_KEY: MappingProxyType(context_state)}


@pytest.mark.parametrize("unit", [1, 3, 16])
@pytest.mark.parametrize("ready", [True, False], ids=["prepared", "own"])
def test_a_hundred_steps_derive_every_unit_once(unit: int, ready: bool) -> None:
    keys = some_keys()
    masker = Sums(unit)
    meta = prepared(masker, keys[:, :, :CONTEXT]) if ready else {}
    first = CONTEXT + QUESTION
    for length, q_len in [(first, QUESTION), *((length, 1) for length in range(first + 1, LAST + 1))]:
        state = state_of(masker, keys[:, :, :length], meta, q_len=q_len)
        assert torch.equal(state, masker.expected(keys[:, :, :length], CONTEXT)), length
    assert sum(masker.derived) == LAST // unit * unit
    assert masker.fitted == [CONTEXT], "the keys before the first call's queries are the context"
    assert set(meta) <= {CONTEXT_STATE_KEY, 0}
    assert list(meta[0]) == ["0.sums"]


@pytest.mark.parametrize("first", [CONTEXT + 1, CONTEXT + QUESTION + 1])
def test_a_context_s_length_that_is_told_counts_whenever_the_first_call_comes(first: int) -> None:
    keys, masker, meta = some_keys(), Sums(4), {CONTEXT_LENGTH_KEY: CONTEXT}
    for length in (*range(first, 70), 60):
        state = state_of(masker, keys[:, :, :length], meta)
        assert torch.equal(state, masker.expected(keys[:, :, :length], CONTEXT)), length
    assert set(masker.fitted) == {CONTEXT}


@pytest.mark.parametrize("length", [0, 3, 15, 16])
def test_a_context_shorter_than_a_unit_and_no_context_at_all(length: int) -> None:
    keys = some_keys(length=60)
    for unit in (1, 16):
        for ready in (True, False):
            masker = Sums(unit)
            meta = prepared(masker, keys[:, :, :length]) if ready else {}
            for end in range(length + 1, 40):
                _, segments = masker.key_state(keys[:, :, :end], meta, 0, 1)
                units = [*segments, torch.empty(1, 2, 0, 3)]
                assert torch.equal(torch.cat(units, dim=2), masker.expected(keys[:, :, :end], length))


@pytest.mark.parametrize("unit", [1, 8])
@pytest.mark.parametrize("ready", [True, False], ids=["prepared", "own"])
def test_what_lay_behind_a_cut_is_void(unit: int, ready: bool) -> None:
    """Other keys come after the cut; a state that kept the old ones would say something else."""
    keys, other = some_keys(), some_keys(seed=1)
    for cut in (CONTEXT + 1, 90, 96, 97):
        masker = Sums(unit)
        meta = prepared(masker, keys[:, :, :CONTEXT]) if ready else {}
        state_of(masker, keys[:, :, :100], meta, q_len=100 - CONTEXT)
        replaced = torch.cat([keys[:, :, :cut], other[:, :, cut:]], dim=2)
        # Without a prepared context the first call after the cut tells anew where the context ends.
        context = CONTEXT if ready or cut // unit == 100 // unit else cut - 1
        for length in (cut, *range(cut + 1, 130)):
            state = state_of(masker, replaced[:, :, :length], meta)
            assert torch.equal(state, masker.expected(replaced[:, :, :length], context)), (cut, length)


def test_a_cut_inside_an_incomplete_unit_voids_nothing() -> None:
    masker, keys, meta = Sums(16), some_keys(), {}
    state_of(masker, keys[:, :, :103], meta)
    derived = list(masker.derived)
    state_of(masker, keys[:, :, :97], meta)
    assert masker.derived == derived


def test_layers_and_maskers_share_nothing() -> None:
    """Two layers and two maskers, called in turn, against each alone."""
    keys = {layer: some_keys(layer) for layer in range(2)}
    for ready in (True, False):
        maskers = [Sums(4, "0.sums"), Sums(4, "1.sums"), Sums(6, "2.sums", name="others")]
        state: dict[Any, Any] = {}
        for masker in maskers if ready else []:
            for layer in keys:
                masker.prepare_context(state, keys[layer][:, :, :CONTEXT], layer)
        meta: dict[Any, Any] = {CONTEXT_STATE_KEY: MappingProxyType(state)}
        for length in range(CONTEXT + 1, 90):
            for masker in maskers:
                for layer in keys:
                    found = state_of(masker, keys[layer][:, :, :length], meta, layer)
                    assert torch.equal(found, masker.expected(keys[layer][:, :, :length], CONTEXT, layer))
        assert {layer: list(meta[layer]) for layer in keys} == {layer: [m.key for m in maskers] for layer in keys}
        # Maskers that agree in everything that the state depends on prepare it once.
        assert len(state) == (4 if ready else 0)
        assert [len(m.fitted) for m in maskers] == ([2, 0, 2] if ready else [2, 2, 2])


def test_a_context_is_prepared_once_and_no_question_writes_to_it() -> None:
    keys = some_keys()
    masker = Sums(4)
    state: dict[Any, Any] = {}
    for _ in range(2):
        masker.prepare_context(state, keys[:, :, :CONTEXT], 0)
    assert masker.derived == [CONTEXT // 4 * 4]
    (part,) = state.values()
    assert isinstance(part, ContextPart)
    before, derived = (part.fitted.clone(), part.units.clone()), len(masker.derived)
    found = []
    for seed in (1, 2, 1):
        mine = torch.cat([keys[:, :, :CONTEXT], some_keys(seed)[:, :, CONTEXT:]], dim=2)
        meta: dict[Any, Any] = {CONTEXT_STATE_KEY: MappingProxyType(state)}
        found.append([state_of(masker, mine[:, :, :length], meta) for length in range(CONTEXT + 1, 80)])
        assert torch.equal(found[-1][-1], masker.expected(mine[:, :, :79], CONTEXT))
    assert all(torch.equal(x, y) for x, y in zip(found[0], found[2], strict=True))
    assert len(masker.derived) > derived
    assert list(state.values()) == [part]
    assert torch.equal(part.fitted, before[0]) and torch.equal(part.units, before[1])


def test_lanes_of_one_context_have_rows_of_their_own() -> None:
    context = some_keys()[:, :, :CONTEXT]
    keys = torch.cat([context.expand(3, -1, -1, -1), some_keys(1, batch=3)[:, :, CONTEXT:]], dim=2)
    masker = Sums(4)
    meta = prepared(masker, context)
    for length in range(CONTEXT + 1, 80):
        state = state_of(masker, keys[:, :, :length], meta)
        expected = masker.expected(keys[:, :, :length], CONTEXT)
        assert torch.equal(state.expand_as(expected), expected)
    assert meta[0]["0.sums"].units()[0].shape[0] == 3
    assert meta[CONTEXT_STATE_KEY][masker.state_identity(), 0].units.shape[0] == 1


def test_a_state_s_buffer_grows_by_steps_and_counts_what_it_holds() -> None:
    part = OwnPart(None, first=7)
    assert (part.end, part.units(), part.nbytes()) == (7, [], 0)
    rows = torch.arange(2 * 3 * 700 * 5.0).view(2, 3, 700, 5)
    buffers = set()
    for start, stop in [(0, 1), (1, 1), (1, 90), *((k, k + 1) for k in range(90, 700))]:
        part.append(rows[:, :, start:stop])
        (units,) = part.units()
        assert torch.equal(units, rows[:, :, :stop])
        buffers.add(units.data_ptr())
    assert part.end == 707
    assert part.nbytes() == rows.numel() * 4
    assert len(buffers) < 12, "steps are written to the buffer, which is not copied for each of them"
