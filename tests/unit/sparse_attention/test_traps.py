"""Traps that other implementations fell into, one test each; the trap stands in the test's docstring.

Further traps have their tests beside the method or rule that they concern: biased denominators in test_random.py, stale
means of hashes in test_magicpig.py, the budget rule in test_budget.py, densities in test_statistics.py, and what holds
for every masker (forbidden keys, changed arguments, batch company) in test_matrix.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest
import torch

from sah.errors import ConfigError
from sah.sparse_attention import (
    AdaptiveSamplingMaskerConfig,
    DoubleSparsityTopKMaskerConfig,
    HashAttentionTopKMaskerConfig,
    LocalMaskerConfig,
    MagicPigConfig,
    QuestTopKMaskerConfig,
    SinkMaskerConfig,
    TopKMaskerConfig,
)
from sah.sparse_attention.key_state import CONTEXT_STATE_KEY, KeyStateMasker
from sah.sparse_attention.randomness import LANES_KEY
from tests.support.attention import (
    BF16,
    EXECUTIONS,
    F32,
    RECIPES,
    Inputs,
    Shape,
    assert_near,
    attend,
    causal,
    efficient,
    inclusion_of,
    make_inputs,
    naive_attention,
    research,
)

CONTEXT, QUESTION, LAST = 90, 5, 195
"""Keys of the context, of the question behind it, and of all after a hundred decode steps."""

STATEFUL: dict[str, Callable[[], list[Any]]] = {
    "quest": lambda: [QuestTopKMaskerConfig(heavy_size=9)],
    "quest-group": lambda: [QuestTopKMaskerConfig(density=0.2, page_size=7, selection="group")],
    "quest-behind": lambda: [
        SinkMaskerConfig(),
        LocalMaskerConfig(window_size=20),
        QuestTopKMaskerConfig(heavy_size=17, page_size=4, label_bits=5),
    ],
    "double_sparsity": lambda: [DoubleSparsityTopKMaskerConfig(heavy_size=9, group_factor=2)],
    "double_sparsity-group": lambda: [
        SinkMaskerConfig(),
        DoubleSparsityTopKMaskerConfig(density=0.2, group_factor=4, label_bits=None, selection="group"),
    ],
    "magicpig": lambda: [SinkMaskerConfig(), MagicPigConfig(lsh_l=20, lsh_k=4)],
    "hash_attention": lambda: [HashAttentionTopKMaskerConfig(heavy_size=9, bits=16)],
    "hash_attention-group": lambda: [
        SinkMaskerConfig(),
        HashAttentionTopKMaskerConfig(density=0.2, bits=24, selection="group"),
    ],
}
stateful = pytest.mark.parametrize("name", STATEFUL)
ready_or_not = pytest.mark.parametrize("ready", [True, False], ids=["prepared", "own"])


def sequence(seed: int = 0, length: int = LAST) -> Inputs:
    """Queries and keys of every position; later keys are larger and lie elsewhere, so that what is stale shows."""
    inputs = make_inputs(Shape(3, length, False, F32, length), seed=seed, batch=1)
    inputs.keys[:, :, CONTEXT:] = inputs.keys[:, :, CONTEXT:] * 2 + 0.5
    return inputs


def at(inputs: Inputs, length: int, q_len: int = 1) -> Inputs:
    """The call at which the last of `length` keys has just been added."""
    return Inputs(
        inputs.queries[:, :, length - q_len : length],
        inputs.keys[:, :, :length],
        inputs.values[:, :, :length],
        causal(q_len, length),
        inputs.scaling,
    )


def steps(inputs: Inputs, last: int = LAST) -> list[Inputs]:
    """The question's chunk and the decode steps behind it."""
    first = CONTEXT + QUESTION
    return [at(inputs, first, QUESTION), *(at(inputs, length) for length in range(first + 1, last + 1))]


def prepared(attention: Any, inputs: Inputs, layers: int = 1) -> dict[Any, Any]:
    """A context's state as questions get it: writing to it raises."""
    state: dict[Any, Any] = {}
    for layer in range(layers):
        attention.prepare_context(state, layer, inputs.keys[:, :, :CONTEXT], inputs.values[:, :, :CONTEXT])
    return {CONTEXT_STATE_KEY: MappingProxyType(state)}


def from_scratch(name: str, call: Inputs, ready: bool, layer: int = 0) -> torch.Tensor:
    """The mask of the plain form, which keeps no state but the length of the context."""
    meta = prepared(efficient(STATEFUL[name]()), call, layer + 1) if ready or name == "magicpig" else {}
    return inclusion_of(research(STATEFUL[name]()), call, meta, layer_idx=layer)


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("q_len", [1, 3])
def test_quest_took_three_pages_whatever_was_asked_for(execution: str, q_len: int) -> None:
    """heavy_size=16 with pages of 128 selected 384 keys; 0.001 of 100 selected none; 2.0 asked for 200 of 100."""
    for size, kv_len, expected in [(16, 1024, 16), (0.001, 100, 1), (1, 100, 1), (200, 300, 200), (1.0, 300, 300)]:
        inputs = make_inputs(Shape(3, q_len, False, F32, kv_len), batch=1)
        for selection in ("head", "group"):
            config = QuestTopKMaskerConfig(heavy_size=size, page_size=128, selection=selection)
            kept = (inclusion_of(EXECUTIONS[execution]([config]), inputs) > 0).sum(-1)
            allowed = inputs.allowed.sum(-1)
            assert torch.equal(kept, allowed.clamp(max=expected).expand_as(kept))
    with pytest.raises(ConfigError, match=r"masker\.quest\.heavy_size=2\.0"):
        QuestTopKMaskerConfig(heavy_size=2.0, page_size=128)


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_pages_that_were_kept_already_cost_budget(execution: str) -> None:
    """Pages under sinks and window took part of the budget, and so did the kept keys of a partly kept page."""
    inputs = make_inputs(Shape(2, 1, False, F32, 256), batch=1)
    # The pages that are kept already have by far the largest bounds.
    inputs.keys[:, :, :40] *= 20
    inputs.keys[:, :, -40:] *= 20
    first = [SinkMaskerConfig(sink_size=36), LocalMaskerConfig(window_size=36)]
    before = inclusion_of(EXECUTIONS[execution](first), inputs) > 0
    for size in (1, 8, 32, 100):
        config = QuestTopKMaskerConfig(heavy_size=size, page_size=16)
        after = inclusion_of(EXECUTIONS[execution]([*first, config]), inputs) > 0
        assert (after >= before).all()
        assert ((after & ~before).sum(-1) == size).all()
        if size >= 24:
            assert after[..., 36:48].all() and after[..., 208:220].all(), "what the partly kept pages lack comes first"


@stateful
@ready_or_not
def test_state_was_derived_from_the_whole_cache_at_every_token(
    name: str, ready: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Page bounds and hashes were recomputed over all keys for each token. Here a key is looked at once."""
    attention, inputs, seen = efficient(STATEFUL[name]()), sequence(), []
    (masker,) = (m for m in attention.maskers if isinstance(m, KeyStateMasker))
    derive = masker.derive
    monkeypatch.setattr(masker, "derive", lambda keys, *more: seen.append(keys.shape[2]) or derive(keys, *more))
    meta = prepared(attention, inputs) if ready else {}
    for call in steps(inputs):
        attend(attention, call, meta)
    assert sum(seen) == LAST // masker.unit * masker.unit
    assert len([size for size in seen if size > masker.unit]) <= 2, "only context and question come in one piece"


@stateful
@ready_or_not
def test_state_went_stale_as_the_cache_grew(name: str, ready: bool) -> None:
    """Bounds and signatures stayed while what they were relative to moved. Here a hundred steps equal a fresh start."""
    attention, inputs = efficient(STATEFUL[name]()), sequence()
    meta = prepared(attention, inputs) if ready else {}
    parts = list(meta.get(CONTEXT_STATE_KEY, {}).values())
    before = [part.units.clone() for part in parts]
    for number, call in enumerate(steps(inputs)):
        mask = inclusion_of(attention, call, meta)
        if number % 9 == 0 or number == LAST - CONTEXT - QUESTION:
            assert torch.equal(mask, from_scratch(name, call, ready)), number
    assert all(torch.equal(part.units, was) for part, was in zip(parts, before, strict=True))


@stateful
@ready_or_not
def test_state_outlived_a_cut_of_the_cache(name: str, ready: bool) -> None:
    """Keys behind a cut were answered for by the state of those that had stood there before."""
    attention, inputs, other = efficient(STATEFUL[name]()), sequence(), sequence(seed=1)
    for cut in (CONTEXT + 1, 112, 121):
        meta = prepared(attention, inputs) if ready else {}
        for call in steps(inputs, 130):
            attend(attention, call, meta)
        again = replace(inputs, keys=inputs.keys.clone())
        again.keys[:, :, cut:] = other.keys[:, :, cut:]
        for length in (cut, cut + 1, 130, 160):
            call = at(again, length)
            assert torch.equal(inclusion_of(attention, call, meta), from_scratch(name, call, ready)), (cut, length)


@stateful
@ready_or_not
def test_layers_shared_one_state(name: str, ready: bool) -> None:
    """What was derived in one layer answered for the next one's keys."""
    attention = efficient(STATEFUL[name]())
    layers = [sequence(seed) for seed in range(3)]
    state: dict[Any, Any] = {}
    for layer, inputs in enumerate(layers) if ready else ():
        attention.prepare_context(state, layer, inputs.keys[:, :, :CONTEXT], inputs.values[:, :, :CONTEXT])
    meta = {CONTEXT_STATE_KEY: MappingProxyType(state)}
    for number, calls in enumerate(zip(*(steps(inputs, 120) for inputs in layers), strict=True)):
        for layer, call in enumerate(calls):
            mask = inclusion_of(attention, call, meta, layer_idx=layer)
            if number % 6 == 0:
                assert torch.equal(mask, from_scratch(name, call, ready, layer)), (layer, number)


def test_layers_read_the_channels_of_the_first_one() -> None:
    """The channel file's entry of layer 0 was used in all layers."""
    inputs = make_inputs(Shape(3, 1, False, F32, 200), batch=1)
    orders = {layer: torch.arange(16).roll(-2 * layer).repeat(2, 1) for layer in range(4)}
    needles = {layer: 50 + 10 * layer for layer in orders}
    inputs.queries[:] = 0.01
    for layer, needle in needles.items():
        # Only labels that hold channel 2 * layer see this key.
        inputs.queries[..., 2 * layer] = 1
        inputs.keys[:, :, needle, 2 * layer] = 50
    for make in EXECUTIONS.values():
        attention = make([DoubleSparsityTopKMaskerConfig(heavy_size=1, group_factor=8)])
        attention.maskers[0].use_channels(orders)
        meta: dict[Any, Any] = {}
        for layer in (0, 1, 2, 3, 1, 0):
            kept = inclusion_of(attention, inputs, meta, layer_idx=layer)
            assert (kept[..., needles[layer]] == 1).all()
            assert kept.sum() == 6


PAIRS: dict[str, tuple[Any, Any]] = {
    "quest": (
        QuestTopKMaskerConfig(heavy_size=9, page_size=16),
        QuestTopKMaskerConfig(heavy_size=9, page_size=4, label_bits=3),
    ),
    "quest, bits": (
        QuestTopKMaskerConfig(heavy_size=9, page_size=4, label_bits=1),
        QuestTopKMaskerConfig(heavy_size=9, page_size=4),
    ),
    "quest twice the same": (QuestTopKMaskerConfig(heavy_size=9), QuestTopKMaskerConfig(heavy_size=9)),
    "double_sparsity, bits": (
        DoubleSparsityTopKMaskerConfig(heavy_size=9, group_factor=2, label_bits=3),
        DoubleSparsityTopKMaskerConfig(heavy_size=9, group_factor=2, label_bits=None),
    ),
    "hash_attention": (
        HashAttentionTopKMaskerConfig(heavy_size=9, bits=8),
        HashAttentionTopKMaskerConfig(heavy_size=9, bits=64, selection="head"),
    ),
    "double_sparsity": (
        DoubleSparsityTopKMaskerConfig(heavy_size=9, group_factor=8),
        DoubleSparsityTopKMaskerConfig(heavy_size=9, group_factor=2, label_bits=None),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
@ready_or_not
def test_two_maskers_of_one_class_shared_one_state(name: str, ready: bool) -> None:
    """A recipe with two quests read the bounds of one of them for both."""
    attention, inputs = efficient(list(PAIRS[name])), sequence()
    meta = prepared(attention, inputs) if ready else {}
    for number, call in enumerate(steps(inputs, 150)):
        mask = inclusion_of(attention, call, meta)
        if number % 9 == 0:
            assert torch.equal(mask, inclusion_of(research(list(PAIRS[name])), call)), number
    assert len(meta[0]) == 2


def test_a_new_question_found_the_state_of_the_one_before() -> None:
    """State was kept in the attention itself. Here a question's own dict holds it, and a new one starts clean."""
    shared, questions = sequence(), {}
    for seed in (1, 2):
        questions[seed] = sequence(seed)
        for states in ("keys", "values"):
            getattr(questions[seed], states)[:, :, :CONTEXT] = getattr(shared, states)[:, :, :CONTEXT]
    for name, recipe in RECIPES.items():
        alone = {seed: answer(efficient(recipe()), question) for seed, question in questions.items()}
        attention = efficient(recipe())
        meta = prepared(attention, shared)
        for seed in (2, 1):
            outputs = answer(attention, questions[seed], dict(meta))
            for output, expected in zip(outputs, alone[seed], strict=True):
                assert torch.equal(output, expected), (name, seed)


def answer(attention: Any, inputs: Inputs, meta: dict[Any, Any] | None = None) -> list[torch.Tensor]:
    meta = prepared(attention, inputs) if meta is None else meta
    return [attend(attention, call, meta) for call in steps(inputs, CONTEXT + QUESTION + 2)]


def test_a_lane_depended_on_the_lanes_beside_it() -> None:
    """Draws came from one stream for the whole batch. Here each row over a shared context equals itself alone."""
    shared, lanes = sequence(), ["a", "b", "c"]
    rows = [sequence(seed) for seed in range(1, 4)]
    for row in rows:
        row.keys[:, :, :CONTEXT], row.values[:, :, :CONTEXT] = (
            shared.keys[:, :, :CONTEXT],
            shared.values[:, :, :CONTEXT],
        )
    together = replace(
        shared, **{name: torch.cat([getattr(row, name) for row in rows]) for name in ("queries", "keys", "values")}
    )
    for name, recipe in RECIPES.items():
        attention = efficient(recipe())
        state = prepared(attention, shared)
        outputs = answer(attention, together, {**state, LANES_KEY: lanes})
        for number, (lane, row) in enumerate(zip(lanes, rows, strict=True)):
            for output, alone in zip(outputs, answer(attention, row, {**state, LANES_KEY: [lane]}), strict=True):
                try:
                    assert_near(output[number : number + 1], alone)
                except AssertionError as error:
                    raise AssertionError(f"{name}, lane {lane}: {error}") from error


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_learned_sinks_were_left_out(execution: str) -> None:
    """GPT-OSS adds a learned logit to the denominator of each head; every method must honour it, chunk and decode."""
    sinks = torch.tensor([2.0, -3.0, 8.0, 0.0, 60.0, -60.0])
    for name, recipe in RECIPES.items():
        for shape in (Shape(3, 1, False, F32, 63), Shape(3, 3, True, BF16, 41)):
            inputs = make_inputs(shape, batch=1)
            inclusion = inclusion_of(research(recipe()), inputs, s_aux=sinks)
            expected = naive_attention(inputs, inclusion, sinks)
            output = attend(EXECUTIONS[execution](recipe()), inputs, s_aux=sinks)
            try:
                assert_near(output, expected, shape.dtype)
            except AssertionError as error:
                raise AssertionError(f"{name}, {shape}: {error}") from error


@pytest.mark.parametrize("dtype", [F32, BF16], ids=["fp32", "bf16"])
def test_the_running_maximum_was_taken_over_keys_that_are_not_read(dtype: torch.dtype) -> None:
    """One unselected key 100 logits above the rest gave 0/0. Labels and samples miss such a key, as sinks do."""
    inputs = make_inputs(Shape(3, 1, False, dtype, 130), batch=1)
    inputs.queries[..., 9] = 4
    inputs.keys[:, :, 70, 9] = 400
    recipes: dict[str, list[Any]] = {
        "double_sparsity": [DoubleSparsityTopKMaskerConfig(heavy_size=20, group_factor=2, label_bits=None)],
        "adaptive": [SinkMaskerConfig(), AdaptiveSamplingMaskerConfig(base_rate=5, epsilon=0.5, delta=0.5)],
        "quest": [QuestTopKMaskerConfig(heavy_size=4, page_size=8)],
        "topk": [SinkMaskerConfig(), TopKMaskerConfig(heavy_size=3, selection="group")],
    }
    missed = set()
    for name, recipe in recipes.items():
        for make in EXECUTIONS.values():
            attention = make(recipe)
            for masker in attention.maskers:
                if getattr(masker, "needs_channels", False):
                    masker.use_channels({0: torch.arange(16).repeat(2, 1)})
            inclusion = inclusion_of(attention, inputs)
            expected = naive_attention(inputs, inclusion)
            assert_near(attend(attention, inputs), expected, dtype)
            if (inclusion[..., 70] == 0).any():
                missed.add(name)
    assert missed >= {"double_sparsity", "adaptive"}
