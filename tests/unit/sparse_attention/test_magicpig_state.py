"""MagicPIG's signatures: held per context, layer and masker, and never stale."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest
import torch

from sah.sparse_attention import MagicPigConfig, Mask
from sah.sparse_attention.maskers.magicpig import MagicPig
from sah.sparse_attention.randomness import generator_for
from tests.support.attention import BF16, F32, Inputs, Shape, make_inputs
from tests.support.magicpig import add, dense, grown


@pytest.mark.parametrize(
    ("bits", "dtype", "prepared"),
    [
        (5, F32, True),
        (15, BF16, True),
        (16, F32, False),
        (31, F32, True),
        (32, BF16, False),
        (63, F32, False),
        (63, BF16, True),
    ],
)
def test_signatures_are_not_stale_after_a_hundred_steps(bits: int, dtype: torch.dtype, prepared: bool) -> None:
    """Trap of the reference: what hashes are relative to moved with every token, cached ones stayed (85 % stale).

    Later keys are larger and lie elsewhere, so that a mean or norm over all keys would move a lot.
    """
    kv_len, context = 165, 60
    inputs = make_inputs(Shape(3, kv_len, False, dtype, kv_len), batch=1)
    inputs.keys[:, :, context:] = inputs.keys[:, :, context:] * 5 + 3
    config = MagicPigConfig(lsh_l=9, lsh_k=bits, min_matches=1)
    fast, plain = MagicPig(config, "0.magicpig"), MagicPig(config, "0.magicpig")
    metas: list[dict[Any, Any]] = [{}, {}]
    if prepared:
        state: dict[Any, Any] = {}
        fast.prepare_context(state, inputs.keys[:, :, :context], 0)
        metas = [{"context_state": MappingProxyType(state)} for _ in metas]
    calls = [grown(inputs, context + 5, 5), *(grown(inputs, length) for length in range(context + 6, kv_len + 1))]
    for call in calls:
        masks = [dense(add(m, call, meta=t, fast=f)) for m, t, f in [(fast, metas[0], True), (plain, metas[1], False)]]
        assert torch.equal(*masks)
    mean, held = fast.key_state(inputs.keys, metas[0], 0, 1)
    assert torch.equal(mean, inputs.keys[:, :, :context].double().mean(2, keepdim=True))
    from_scratch = MagicPig(config, "0.magicpig").signatures(inputs.keys, mean, 0)
    assert torch.equal(torch.cat(held, dim=2), from_scratch)
    assert from_scratch.dtype == (torch.int16 if bits <= 15 else torch.int32 if bits <= 31 else torch.int64)
    assert [len(part[0, 0]) for part in held] == ([context, kv_len - context] if prepared else [kv_len])
    assert from_scratch.min() >= 0
    distinct = from_scratch.unique().numel()
    assert distinct > (25 if bits == 5 else 1000)


def test_bits_are_packed_in_order() -> None:
    masker = MagicPig(MagicPigConfig(lsh_l=4, lsh_k=63), "k", seed=3)
    states = make_inputs(Shape(1, 1, False, F32, 10)).keys
    planes = torch.randn(63, 4, 16, generator=generator_for(3, "k", 7), dtype=torch.float64)
    hashed = masker.signatures(states, None, 7)
    sides = torch.einsum("klm,bgnm->bgnlk", planes, states.double()) > 0
    for place in torch.cartesian_prod(*(torch.arange(n) for n in hashed.shape)).tolist():
        bits = sides[tuple(place)].tolist()
        assert int(hashed[tuple(place)]) == sum(2**i for i, bit in enumerate(bits) if bit)


def test_planes_are_drawn_once_and_are_each_layers_own() -> None:
    masker = MagicPig(MagicPigConfig(lsh_l=5, lsh_k=3), "a")
    inputs = make_inputs(Shape(1, 1, False, F32, 30))
    meta: dict[Any, Any] = {}
    for layer in (0, 1):
        add(masker, inputs, meta=meta, fast=True, layer=layer)
    planes = {name[0]: tensor for name, tensor in masker._planes.items()}
    assert not torch.equal(planes[0], planes[1])
    add(masker, inputs, meta=meta, fast=True, layer=0)
    assert all(masker._planes[name] is planes[name[0]] for name in masker._planes)
    assert not torch.equal(meta[0]["a"].units()[0], meta[1]["a"].units()[0])
    repeated = MagicPig(MagicPigConfig(lsh_l=5, lsh_k=3), "a").signatures(inputs.keys, None, 1)
    assert torch.equal(repeated, masker.signatures(inputs.keys, None, 1))
    other_seed = MagicPig(MagicPigConfig(lsh_l=5, lsh_k=3), "a", seed=1).signatures(inputs.keys, None, 1)
    assert not torch.equal(repeated, other_seed)


def test_two_maskers_of_one_class_share_no_state() -> None:
    inputs = make_inputs(Shape(2, 1, False, F32, 40))
    config = MagicPigConfig(lsh_l=20, lsh_k=3)
    names = ("0.magicpig", "1.magicpig")
    first, second = (MagicPig(config, name) for name in names)
    state: dict[Any, Any] = {}
    shared: dict[Any, Any] = {"context_state": state}
    for masker in (first, second):
        masker.prepare_context(state, inputs.keys[:, :, :30], 0)
    assert len(state) == 2
    together = [dense(add(masker, inputs, meta=shared, fast=True)) for masker in (first, second)]
    for name, mask in zip(names, together, strict=True):
        own: dict[Any, Any] = {}
        masker = MagicPig(config, name)
        masker.prepare_context(own, inputs.keys[:, :, :30], 0)
        assert torch.equal(mask, dense(add(masker, inputs, meta={"context_state": own}, fast=True)))
    assert not torch.equal(*together)


def test_a_changed_setting_finds_no_foreign_context_state() -> None:
    settings = [{}, {"lsh_l": 4}, {"lsh_k": 4}, {"center": False}]
    maskers = [MagicPig(MagicPigConfig(**{"lsh_l": 5, "lsh_k": 3, **s}), "a") for s in settings]
    maskers += [MagicPig(MagicPigConfig(lsh_l=5, lsh_k=3), "b"), MagicPig(MagicPigConfig(lsh_l=5, lsh_k=3), "a", 1)]
    assert len({masker.state_identity() for masker in maskers}) == len(maskers)
    more_matches = MagicPig(MagicPigConfig(lsh_l=5, lsh_k=3, min_matches=1), "a")
    assert more_matches.state_identity() == maskers[0].state_identity(), "signatures do not depend on it"


def test_questions_share_a_context_state_that_none_of_them_writes_to() -> None:
    context, question = 50, 4
    inputs = make_inputs(Shape(3, 60, False, F32, 60), batch=1)
    masker = MagicPig(MagicPigConfig(lsh_l=25, lsh_k=4), "0.magicpig")
    state: dict[Any, Any] = {}
    masker.prepare_context(state, inputs.keys[:, :, :context], 0)
    (part,) = state.values()
    before = part.fitted.clone(), part.units.clone()

    def ask(seed: int) -> list[torch.Tensor]:
        mine = make_inputs(Shape(3, 60, False, F32, 60), seed=seed, batch=1)
        mine.keys[:, :, :context] = inputs.keys[:, :, :context]
        meta: dict[Any, Any] = {"context_state": MappingProxyType(state)}
        calls = [grown(mine, context + question, question)]
        calls += [grown(mine, length) for length in range(context + question + 1, 61)]
        answers = [dense(add(masker, call, meta=meta, fast=True)) for call in calls]
        plain_meta: dict[Any, Any] = {}
        plain = [dense(add(masker, call, meta=plain_meta)) for call in calls]
        assert all(torch.equal(x, y) for x, y in zip(answers, plain, strict=True))
        return answers

    first = ask(1)
    ask(2)
    assert all(torch.equal(x, y) for x, y in zip(ask(1), first, strict=True))
    assert list(state.values()) == [part]
    assert torch.equal(part.fitted, before[0])
    assert torch.equal(part.units, before[1])


def test_lanes_over_one_context_equal_each_alone() -> None:
    """The context's state has one row, the batch several with keys of their own behind the context."""
    inputs = make_inputs(Shape(3, 1, False, F32, 45), batch=3)
    inputs.keys[:, :, :40] = inputs.keys[:1, :, :40]
    masker = MagicPig(MagicPigConfig(lsh_l=25, lsh_k=4), "0.magicpig")
    state: dict[Any, Any] = {}
    masker.prepare_context(state, inputs.keys[:1, :, :40], 0)
    together = dense(add(masker, inputs, meta={"context_state": state}, fast=True))
    for row in range(3):
        alone = Inputs(*(t[row : row + 1] for t in inputs.tensors()), inputs.scaling)
        assert torch.equal(dense(add(masker, alone, meta={"context_state": state}, fast=True)), together[row : row + 1])


def test_the_mean_is_the_contexts_and_stays_it() -> None:
    """Keys of the question and the answer are hashed relative to the mean of the context alone, in both forms."""
    inputs = make_inputs(Shape(2, 40, False, F32, 40), batch=1)
    loud = replace(inputs, keys=inputs.keys.clone())
    loud.keys[:, :, 33:] += 100
    config = MagicPigConfig(lsh_l=30, lsh_k=3)
    for fast in (False, True):
        masks = []
        for current in (inputs, loud):
            meta: dict[Any, Any] = {}
            add(MagicPig(config), grown(current, 36, 3), meta=meta, fast=fast)
            masks.append(dense(add(MagicPig(config), grown(current, 40), meta=meta, fast=fast))[..., :33])
        assert torch.equal(*masks)


def test_the_context_is_told_apart_at_the_first_call_though_it_needs_no_sample() -> None:
    """A masker in front may keep everything at first; what came before that call is the context all the same."""
    inputs = make_inputs(Shape(2, 40, False, F32, 40), batch=1)
    masker = MagicPig(MagicPigConfig(lsh_l=30, lsh_k=3))
    masks = []
    for fast, everything in [(False, False), (False, True), (True, True)]:
        meta: dict[Any, Any] = {}
        first = grown(inputs, 33, 3)
        add(masker, first, Mask.full((1, 4, 3, 33)) if everything else None, meta=meta, fast=fast)
        masks.append(dense(add(masker, grown(inputs, 40), meta=meta, fast=fast)))
    assert torch.equal(masks[1], masks[0])
    assert torch.equal(masks[2], masks[0])


def test_a_sequence_cut_back_into_its_context_is_hashed_anew() -> None:
    """Also where it has grown beyond its old length since, with other keys."""
    inputs = make_inputs(Shape(2, 40, False, F32, 40), batch=1)
    others = make_inputs(Shape(2, 40, False, F32, 40), batch=1, seed=1)
    masker = MagicPig(MagicPigConfig(lsh_l=30, lsh_k=3))
    for fast in (False, True):
        for after in (grown(inputs, 20), grown(others, 40, 25)):
            meta: dict[Any, Any] = {}
            add(masker, grown(inputs, 40), meta=meta, fast=fast)
            again = dense(add(masker, after, meta=meta, fast=fast))
            assert torch.equal(again, dense(add(masker, after, fast=fast)))
