"""Both executions agree over thousands of decode steps; where they do not, keys tie at the threshold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest
import torch

from sah.sparse_attention import (
    AdaptiveSamplingMaskerConfig,
    DoubleSparsityTopKMaskerConfig,
    LocalMaskerConfig,
    Mask,
    QuestTopKMaskerConfig,
    SinkMaskerConfig,
    TopKMaskerConfig,
    TopPMaskerConfig,
)
from sah.sparse_attention.key_state import CONTEXT_STATE_KEY
from sah.sparse_attention.randomness import LANES_KEY
from tests.support.agreement import Pair, assert_tied, true_scores
from tests.support.attention import RECIPES, Inputs, Recipe, with_channels

KV_HEADS, GROUP, HEAD_DIM = 3, 3, 64
"""Those of SmolLM2-135M."""

MORE: dict[str, Recipe] = {
    "vattention": lambda: [
        SinkMaskerConfig(sink_size=16),
        LocalMaskerConfig(window_size=32),
        TopKMaskerConfig(heavy_size=0.05),
        AdaptiveSamplingMaskerConfig(base_rate=0.05, base_min=20, epsilon=0.1, delta=0.1),
    ],
    "quest-0.05": lambda: [QuestTopKMaskerConfig(density=0.05)],
    "quest-group-0.05": lambda: [QuestTopKMaskerConfig(density=0.05, selection="group", group_score="max")],
    "double_sparsity-0.05": lambda: [DoubleSparsityTopKMaskerConfig(density=0.05)],
    "double_sparsity-group-0.05": lambda: [DoubleSparsityTopKMaskerConfig(density=0.05, selection="group")],
}

# (keys before the first step, steps, batch rows, whether the rows share a context whose state was prepared)
RUNS = [(150, 8, 6, False), (700, 2, 6, True), (1990, 2, 4, False)]


def keys_and_queries(length: int, rows: int, steps: int, seed: int) -> tuple[torch.Tensor, ...]:
    """Keys, values and queries of the last steps; every other row Gaussian, the rest more like a model's.

    Those have neighbours that are alike, channels that stand out, a first key that draws attention, and queries that
    look for a key of long ago.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(rows, *shape, generator=generator)

    keys, values = draw(KV_HEADS, length, HEAD_DIM), draw(KV_HEADS, length, HEAD_DIM)
    queries = draw(KV_HEADS * GROUP, steps, HEAD_DIM) * 2
    like_a_model = keys[1::2]
    like_a_model += 0.15 * draw(KV_HEADS, length, HEAD_DIM)[1::2].cumsum(2)
    like_a_model[..., 5] += 12
    like_a_model[..., 40] -= 7
    wanted = torch.randint(length - steps, (steps,), generator=generator)
    queries[1::2] += like_a_model[:, :, wanted].repeat_interleave(GROUP, 1) * 0.5
    like_a_model[:, :, 0] = queries[1::2].mean(2).unflatten(1, (KV_HEADS, GROUP)).mean(2)
    return keys, values, queries


def decode(first: int, steps: int, rows: int, shared: bool, seed: int) -> Iterator[Inputs]:
    """Decode steps over keys that grow in a buffer of odd capacity."""
    length = first + steps
    keys, values, queries = keys_and_queries(length + 3, rows, steps, seed)
    if shared:
        for states in (keys, values):
            states[:, :, :first] = states[1:2, :, :first].clone()
    for step in range(steps):
        end = first + step + 1
        allowed = torch.ones(1, 1, 1, end, dtype=torch.bool)
        query = queries[:, :, step : step + 1]
        yield Inputs(query, keys[:, :, :end], values[:, :, :end], allowed, HEAD_DIM**-0.5)


def equip(attention: Any) -> None:
    with_channels(attention, kv_heads=KV_HEADS, head_dim=HEAD_DIM)


@pytest.mark.slow
def test_both_executions_agree_on_thousands_of_decode_steps() -> None:
    steps = exceptions = 0
    for number, (name, recipe) in enumerate({**RECIPES, **MORE}.items()):
        for first, length, rows, shared in RUNS:
            pair = Pair(recipe, equip)
            metas: tuple[dict[Any, Any], ...] = tuple({LANES_KEY: [f"{row}" for row in range(rows)]} for _ in range(2))
            for inputs in decode(first, length, rows, shared, seed=number):
                if shared and CONTEXT_STATE_KEY not in metas[0]:
                    state: dict[Any, Any] = {}
                    pair.efficient.prepare_context(state, 0, inputs.keys[:1, :, :first], inputs.values[:1, :, :first])
                    for meta in metas:
                        meta[CONTEXT_STATE_KEY] = MappingProxyType(state)
                try:
                    pair.step(inputs, metas)
                except AssertionError as error:
                    raise AssertionError(f"{name}, {inputs.keys.shape[2]} keys: {error}") from error
            steps, exceptions = steps + pair.steps, exceptions + pair.exceptions
    assert steps > 3000
    assert exceptions <= 0.001 * steps, f"{exceptions} of {steps} steps"


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    """A step in which the two best keys of every query are one and the same."""
    (step,) = decode(100, 1, 2, False, seed=0)
    query = step.queries.unflatten(1, (KV_HEADS, GROUP)).mean(2)[:, :, 0]
    keys = step.keys.clone()
    keys[:, :, 30] = keys[:, :, 60] = query * 3
    return Inputs(step.queries, keys, step.values, step.allowed, step.scaling)


MASKERS: dict[str, Any] = {
    "topk": TopKMaskerConfig(heavy_size=1),
    "topk-group": TopKMaskerConfig(heavy_size=1, selection="group", group_score="softmax_mean"),
    "quest": QuestTopKMaskerConfig(heavy_size=1, page_size=1),
    "double_sparsity": DoubleSparsityTopKMaskerConfig(heavy_size=1),
    "topp": TopPMaskerConfig(top_p=0.1),
}


@pytest.mark.parametrize("name", MASKERS)
def test_ties_are_told_from_errors(name: str, inputs: Inputs) -> None:
    """What is tested above would mean little if every difference passed for a tie."""
    pair = Pair(lambda: [MASKERS[name]], equip)
    (masker,) = pair.research.maskers
    scores = true_scores(masker, inputs, 0)[1, :, 0]
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    one, other, wrong, both = (chosen.clone() for _ in range(4))
    one[:, 30], other[:, 60], wrong[:, 31], both[:, [30, 60]] = True, True, True, True
    assert_tied(masker, one, other, scores)
    with pytest.raises(AssertionError, match="apart in head"):
        assert_tied(masker, one, wrong, scores)
    with pytest.raises(AssertionError, match="apart in head" if name == "topp" else "1 and 2 keys"):
        assert_tied(masker, one, both, scores)


@pytest.mark.parametrize("name", MASKERS)
@pytest.mark.parametrize(("position", "is_tie"), [(60, True), (31, False)])
def test_a_tie_passes_a_step_and_another_difference_does_not(
    name: str, position: int, is_tie: bool, inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plain form is made to choose one of two equal keys, the efficient one the other or a wrong one."""
    shape = (*inputs.queries.shape[:3], inputs.keys.shape[2])

    def keep(key: int) -> Callable[..., Mask]:
        kept = torch.zeros(1, 1, 1, shape[3])
        kept[..., key] = 1
        return lambda *_, **__: Mask.from_dense(shape, kept)

    pair = Pair(lambda: [MASKERS[name], SinkMaskerConfig(sink_size=1)], equip)
    monkeypatch.setattr(pair.research.maskers[0], "add_mask", keep(30))
    monkeypatch.setattr(pair.efficient.maskers[0], "add_indices", keep(position))
    if is_tie:
        pair.step(inputs, ({}, {}))
        assert (pair.steps, pair.exceptions) == (2, 2)
    else:
        with pytest.raises(AssertionError, match="apart in head"):
            pair.step(inputs, ({}, {}))


@pytest.mark.parametrize(("factor", "is_tie"), [(1 + 1e-6, True), (1.5, False)])
def test_an_adaptive_number_of_keys_may_differ_only_where_the_promise_is_nearly_kept(
    factor: float, is_tie: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The efficient form promises a little more or less; the plain one is put where one more key is just needed."""
    (step,) = decode(400, 1, 1, False, seed=0)
    config = AdaptiveSamplingMaskerConfig(base_rate=20, epsilon=0.2, delta=0.2)

    def drawn(epsilon: float) -> torch.Tensor:
        (masker,) = Pair(lambda: [replace(config, epsilon=epsilon)]).research.maskers
        given = (*step.tensors(), step.scaling, 0.0, {}, Mask.empty((1, KV_HEADS * GROUP, 1, 401)))
        return masker.add_mask(*given, layer_idx=0).to_dense() > 0

    low, high = 0.2, 0.2 * 1.01
    assert not torch.equal(drawn(low), drawn(high))
    while high / low - 1 > 2e-7:
        middle = (low + high) / 2
        low, high = (middle, high) if torch.equal(drawn(middle), drawn(low)) else (low, middle)
    pair = Pair(lambda: [replace(config, epsilon=low)])
    pair.efficient.maskers[0].config = replace(config, epsilon=low * factor)
    monkeypatch.setattr("tests.support.agreement.TOLERANCE", 1e-9)
    if is_tie:
        pair.step(step, ({}, {}))
        assert pair.exceptions == 1
    else:
        with pytest.raises(AssertionError, match="not for a promise that is nearly kept"):
            pair.step(step, ({}, {}))


def test_equal_masks_and_unequal_outputs_are_no_tie(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(lambda: [SinkMaskerConfig()])
    run = pair.efficient.attend
    monkeypatch.setattr(pair.efficient, "attend", lambda *given, **more: (run(*given, **more)[0] + 2e-4, None))
    with pytest.raises(AssertionError, match="the masks are equal, the outputs are not"):
        pair.step(inputs, ({}, {}))
