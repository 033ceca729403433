"""Layers chosen by number: what may be written, what it means, and what each layer then runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sah.errors import ConfigError
from sah.sparse_attention import (
    CausalMaskerConfig,
    EfficientAttention,
    EfficientAttentionConfig,
    QuestTopKMaskerConfig,
    RandomSamplingMaskerConfig,
    ResearchAttention,
    ResearchAttentionConfig,
    SinkMaskerConfig,
    TopKMaskerConfig,
)
from sah.sparse_attention.layers import EVERY_LAYER, LayerSet, parse_layers
from sah.sparse_attention.statistics import STATISTICS_KEY, AttentionStatistics
from tests.support.attention import (
    BF16,
    EXECUTIONS,
    F32,
    Shape,
    assert_near,
    attend,
    efficient,
    make_inputs,
    naive_attention,
    research,
    sdpa,
)

FORMS: list[tuple[Any, set[int], str]] = [
    (3, {3}, "3"),
    ("3", {3}, "3"),
    ([], set(), ""),
    ([16, 0, 0], {0, 16}, "0,16"),
    ("0-1", {0, 1}, "0-1"),
    ("2-2", {2}, "2"),
    ("2-", set(range(2, 30)), "2-"),
    ("0, 16, 20-", {0, 16, *range(20, 30)}, "0,16,20-"),
    ("4-,9-,1,3,20", {1, *range(3, 30)}, "1,3-"),
    ("0,1-", set(range(30)), "0-"),
    (None, set(range(30)), "0-"),
]


@pytest.mark.parametrize(("value", "expected", "text"), FORMS, ids=lambda x: repr(x) if not isinstance(x, set) else "")
def test_what_may_be_written(value: Any, expected: set[int], text: str) -> None:
    layers = parse_layers("dense_layers", value)
    assert {layer for layer in range(30) if layer in layers} == expected
    assert str(layers) == text


@pytest.mark.parametrize("value", ["", "a", "-1", "3-1", "1;2", "1,,2", -1, [-1], [0.5], ["1"], True, [True], 1.0, {}])
def test_what_names_no_layers(value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_layers("masker.topk.layers", value)
    for part in ("masker.topk.layers=", "Allowed:", "Write"):
        assert part in str(caught.value)


SETS = st.builds(LayerSet, st.frozensets(st.integers(0, 12)), st.none() | st.integers(0, 12))


@given(SETS, SETS)
def test_sets_are_compared_by_their_layers(a: LayerSet, b: LayerSet) -> None:
    """20 layers are enough: an open range begins at 12 at the latest."""
    members = [{layer for layer in range(20) if layer in layers} for layers in (a, b)]
    assert a.overlaps(b) == b.overlaps(a) == bool(members[0] & members[1])
    assert (str(a) == str(b)) == (members[0] == members[1])
    if str(a):
        assert str(parse_layers("dense_layers", str(a))) == str(a)


def test_the_largest_layer_named() -> None:
    assert [x.largest_named for x in (EVERY_LAYER, LayerSet(frozenset()), LayerSet(frozenset({7}), 3))] == [0, -1, 7]


def test_a_layer_s_recipe_is_made_of_the_maskers_that_work_in_it() -> None:
    config = ResearchAttentionConfig(
        [SinkMaskerConfig(), TopKMaskerConfig(density=0.1, layers="2-"), CausalMaskerConfig(layers=[1])],
        dense_layers=[0],
    )
    assert [config.recipe_of(layer) for layer in range(4)] == [[], [0, 2], [0, 1], [0, 1]]
    config.check_layers(4)


def test_maskers_that_share_no_layer_may_both_have_a_density() -> None:
    apart = [TopKMaskerConfig(density=0.1, layers="0-1"), TopKMaskerConfig(density=0.2, layers="2-")]
    ResearchAttentionConfig(apart).check_layers(3)
    samplers = [RandomSamplingMaskerConfig(density=0.1, layers=[0]), RandomSamplingMaskerConfig(density=0.1, layers=1)]
    ResearchAttentionConfig(samplers).check_layers(2)
    for masker in (TopKMaskerConfig, RandomSamplingMaskerConfig):
        with pytest.raises(ConfigError, match="in one layer"):
            ResearchAttentionConfig([masker(density=0.1, layers="0-2"), masker(density=0.2, layers="2-")])


TOPK: dict[str, Any] = {"density": 0.1}
UNFIT: dict[str, tuple[list[Any], Any, list[str]]] = {
    "a dense layer that is not there": ([TOPK], [0, 3], ["dense_layers=[0, 3]", "0 to 2", "'dense_layers=[2]'"]),
    "an open range that begins behind": ([TOPK], "3-", ["dense_layers='3-'", "0 to 2"]),
    "a masker's layer that is not there": ([TOPK | {"layers": "1-5"}], [0], ["masker.topk.layers='1-5'", "0 to 2"]),
    "layers without a masker": (
        [TOPK | {"layers": [1]}],
        [],
        ["No masker works in layer 0,2", "masker.topk.layers=[1]", "'dense_layers=\"0,2\"'"],
    ),
    "layers without a masker beside dense ones": (
        [TOPK | {"layers": [1]}],
        [0],
        ["No masker works in layer 2 ", "'dense_layers=\"0,2\"'"],
    ),
    "nothing left sparse": ([TOPK], "0-", ["dense_layers='0-'", "masker=dense"]),
    "a masker that no layer is left to": (
        [TOPK, {"heavy_size": 4, "layers": "0-1"}],
        [0, 1],
        ["masker.topk.layers='0-1' leaves topk no layer", "dense_layers=[0, 1]", "'masker.topk.layers=[2]'"],
    ),
    "a masker of no layer": ([TOPK, {"heavy_size": 4, "layers": []}], [], ["masker.topk.layers=[] leaves topk"]),
}


@pytest.mark.parametrize("case", UNFIT)
def test_layers_that_do_not_fit_a_model_of_three(case: str) -> None:
    maskers, dense_layers, parts = UNFIT[case]
    config = ResearchAttentionConfig([TopKMaskerConfig(**values) for values in maskers], dense_layers=dense_layers)
    with pytest.raises(ConfigError) as caught:
        config.check_layers(3)
    for part in [*parts, "Write"]:
        assert part in str(caught.value)


DECODE_AND_CHUNK = [Shape(3, 1, False, F32, 60), Shape(3, 4, True, F32, 47)]
PLACED: dict[int, list[Any]] = {
    0: [],
    1: [SinkMaskerConfig(), QuestTopKMaskerConfig(heavy_size=9, page_size=4)],
    2: [SinkMaskerConfig(), TopKMaskerConfig(density=0.3)],
    3: [SinkMaskerConfig(), TopKMaskerConfig(density=0.3)],
}
"""What each layer shall run; nothing means dense."""


def placed() -> dict[str, Any]:
    recipe = [
        SinkMaskerConfig(),
        QuestTopKMaskerConfig(heavy_size=9, page_size=4, layers=1),
        TopKMaskerConfig(density=0.3, layers="2-"),
    ]
    return {"masker_configs": recipe, "dense_layers": [0]}


def attentions() -> list[Any]:
    return [
        ResearchAttention(ResearchAttentionConfig(**placed())),
        EfficientAttention(EfficientAttentionConfig(**placed())),
    ]


@pytest.mark.parametrize("shape", DECODE_AND_CHUNK, ids=str)
def test_each_layer_runs_its_own_recipe(shape: Shape) -> None:
    """Called in any order, again and again, a layer equals an attention that has only its recipe."""
    inputs = make_inputs(shape)
    for attention, make in zip(attentions(), EXECUTIONS.values(), strict=True):
        meta: dict[Any, Any] = {}
        for layer in (2, 0, 1, 3, 1, 0, 2):
            statistics = AttentionStatistics()
            output = attend(attention, inputs, {**meta, STATISTICS_KEY: statistics}, layer_idx=layer)
            if PLACED[layer]:
                own = AttentionStatistics()
                expected = attend(make(PLACED[layer]), inputs, {STATISTICS_KEY: own}, layer_idx=layer)
                assert torch.equal(output, expected), layer
                assert statistics.density() == own.density() < 1
                assert (statistics.calls(), statistics.layers()) == (1, [layer])
            else:
                assert_near(output, sdpa(inputs))
                assert statistics.density() == 1.0
                assert (statistics.calls(), statistics.layers()) == (0, []), "a dense layer is no sparse call"


def test_a_dense_layer_counts_as_one_in_the_density_of_all() -> None:
    inputs = make_inputs(DECODE_AND_CHUNK[0])
    for attention in attentions():
        statistics, only = AttentionStatistics(), AttentionStatistics()
        for layer in range(4):
            attend(attention, inputs, {STATISTICS_KEY: statistics}, layer_idx=layer)
        for layer in range(1, 4):
            attend(attention, inputs, {STATISTICS_KEY: only}, layer_idx=layer)
        kept = [13 / 60, 18 / 60, 18 / 60]
        assert only.density() == pytest.approx(sum(kept) / 3)
        assert statistics.density() == pytest.approx((1 + sum(kept)) / 4)
        assert (statistics.calls(), statistics.layers()) == (3, [1, 2, 3])


@pytest.mark.parametrize("q_len", [1, 3])
def test_a_dense_layer_is_dense_whatever_the_model_passes_on(q_len: int) -> None:
    """Padding, sinks, a soft cap, half precision: where the fast dense form does not do, the plain one is taken."""
    sinks = torch.tensor([0.5, -2.0, 3.0, 0.0, 1.0, -1.0])
    for dtype in (F32, BF16):
        inputs = make_inputs(Shape(3, q_len, True, dtype, 30))
        inclusion = inputs.allowed.float().expand(2, 6, -1, -1)
        for passed_on in ({}, {"s_aux": sinks}, {"softcap": 2.0}, {"s_aux": sinks, "softcap": 2.0}):
            expected = naive_attention(inputs, inclusion, passed_on.get("s_aux"), passed_on.get("softcap"))
            for attention in attentions():
                meta: dict[Any, Any] = {}
                assert_near(attend(attention, inputs, meta, layer_idx=0, **passed_on), expected, dtype)
                assert 0 not in meta, "a dense layer has no state"


def test_a_layer_without_a_masker_is_an_error_not_a_dense_or_empty_one() -> None:
    inputs = make_inputs(DECODE_AND_CHUNK[0])
    recipe = [TopKMaskerConfig(density=0.3, layers=[1])]
    for attention in (research(recipe), efficient(recipe)):
        attend(attention, inputs, layer_idx=1)
        with pytest.raises(ConfigError, match="No masker works in layer 0"):
            attend(attention, inputs, layer_idx=0)


def test_only_layers_with_a_state_are_prepared() -> None:
    keys = make_inputs(DECODE_AND_CHUNK[0], batch=1).keys
    for attention in attentions():
        state: dict[Any, Any] = {}
        for layer in range(4):
            attention.prepare_context(state, layer, keys)
        assert [layer for _, layer in state] == ([1] if attention.chooses_indices else [])
