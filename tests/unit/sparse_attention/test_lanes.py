"""Attention of many lanes at once against its plain form, which takes them one by one with their keys written out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sah.errors import ConfigError
from sah.sparse_attention import (
    AdaptiveSamplingMaskerConfig,
    AutoAttention,
    AutoAttentionConfig,
    DoubleSparsityTopKMaskerConfig,
    Mask,
    QuestTopKMaskerConfig,
    RandomSamplingMaskerConfig,
    SinkMaskerConfig,
    StreamingLLMMaskerConfig,
    TopKMaskerConfig,
    TopPMaskerConfig,
)
from sah.sparse_attention.base import SparseAttention
from sah.sparse_attention.config import DECODE, QUESTION
from sah.sparse_attention.efficient import EfficientAttention
from sah.sparse_attention.ends import add_ends
from sah.sparse_attention.kernels import shared as kernels
from sah.sparse_attention.key_lists import KeyLists
from sah.sparse_attention.key_state import CONTEXT_LENGTH_KEY, CONTEXT_STATE_KEY
from sah.sparse_attention.lanes import LaneStates
from sah.sparse_attention.maskers import adaptive as adaptive_module
from sah.sparse_attention.maskers.base import FixedMasker
from sah.sparse_attention.randomness import LANES_KEY
from sah.sparse_attention.shared import SharedStates
from sah.sparse_attention.statistics import STATISTICS_KEY, AttentionStatistics
from tests.support.attention import (
    BF16,
    DENSE_RECIPES,
    F32,
    RECIPES,
    Recipe,
    assert_near,
    efficient,
    with_channels,
    with_observations,
)

MORE: dict[str, Recipe] = {
    "topk-group+sink+quest-group": lambda: [
        TopKMaskerConfig(heavy_size=3, selection="group"),
        SinkMaskerConfig(sink_size=0.1),
        QuestTopKMaskerConfig(heavy_size=6, page_size=16, selection="group", group_score="softmax_mean"),
    ],
    "topk-group+streaming_llm+quest-group": lambda: [
        TopKMaskerConfig(heavy_size=3, selection="group", group_score="max"),
        StreamingLLMMaskerConfig(density=0.2),
        QuestTopKMaskerConfig(heavy_size=6, page_size=4, label_bits=4, selection="group"),
        RandomSamplingMaskerConfig(sampling_rate=3, selection="group"),
    ],
    "topp+quest": lambda: [TopPMaskerConfig(top_p=0.5), QuestTopKMaskerConfig(heavy_size=6, page_size=4)],
    "topp-group+quest-group": lambda: [
        TopPMaskerConfig(top_p=0.4, selection="group"),
        SinkMaskerConfig(sink_size=2),
        QuestTopKMaskerConfig(density=0.5, page_size=4, selection="group"),
    ],
    "topp-group+double_sparsity-group+topk-group+random": lambda: [
        TopPMaskerConfig(top_p=0.3, selection="group"),
        DoubleSparsityTopKMaskerConfig(heavy_size=4, group_factor=4, selection="group"),
        TopKMaskerConfig(heavy_size=3, selection="group"),
        RandomSamplingMaskerConfig(sampling_rate=4),
    ],
    "topp+double_sparsity+adaptive": lambda: [
        TopPMaskerConfig(top_p=0.4),
        DoubleSparsityTopKMaskerConfig(heavy_size=4, group_factor=4),
        AdaptiveSamplingMaskerConfig(base_min=3, epsilon=0.4),
    ],
    "streaming_llm+topp-group": lambda: [
        StreamingLLMMaskerConfig(density=0.3),
        TopPMaskerConfig(top_p=0.8, selection="group"),
    ],
    "double_sparsity+adaptive": lambda: [
        DoubleSparsityTopKMaskerConfig(heavy_size=4, group_factor=4),
        AdaptiveSamplingMaskerConfig(base_min=5, epsilon=0.1, delta=0.1),
    ],
}
EVERY = {**RECIPES, **MORE}


@dataclass(frozen=True)
class Case:
    """A model's shape, a context, and the questions of the lanes."""

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    context: int
    questions: tuple[int, ...]
    dtype: torch.dtype = F32

    def __str__(self) -> str:
        size = f"{self.heads}x{self.kv_heads}x{self.head_dim}x{self.value_dim}-{self.context}"
        return f"{size}+{'+'.join(str(q) for q in self.questions)}-{str(self.dtype).removeprefix('torch.')}"


CASES = [
    Case(9, 3, 24, 24, 50, (5, 1, 12)),
    Case(8, 8, 16, 16, 1, (2, 3)),
    Case(4, 1, 24, 40, 33, (1, 1, 1, 1)),
    Case(6, 2, 16, 8, 200, (60, 1, 2), BF16),
    Case(4, 2, 16, 16, 64, (1,)),
    Case(4, 4, 24, 12, 15, (30, 30, 30), BF16),
]
DECODE_STEPS = 4


@dataclass(frozen=True)
class Call:
    """The rows of one call."""

    phase: str
    queries: torch.Tensor
    keys: SharedStates
    values: SharedStates


class Lanes:
    """Random keys and values of a context and of lanes behind it."""

    def __init__(self, case: Case, seed: int = 0) -> None:
        self.case = case
        self.generator = torch.Generator().manual_seed(seed)
        room = max(case.questions) + DECODE_STEPS
        dims = (case.head_dim, case.value_dim)
        self.context = [self._draw(1, case.kv_heads, case.context, dim) for dim in dims]
        self.own = [torch.zeros(len(case.questions), case.kv_heads, room, dim, dtype=case.dtype) for dim in dims]

    def calls(self) -> Iterator[Call]:
        """The questions in one call, then a token a lane; the first lane ends earlier, where there are several."""
        lanes = range(len(self.case.questions))
        rows = [(lane, slot) for lane in lanes for slot in range(self.case.questions[lane])]
        yield self._call(QUESTION, rows)
        for step in range(DECODE_STEPS):
            left = [lane for lane in lanes if lane or step < 2 or len(lanes) == 1]
            yield self._call(DECODE, [(lane, self.case.questions[lane] + step) for lane in left])

    def states(self, attention: Any, layer_idx: int = 0) -> LaneStates:
        """New state of all lanes over the context."""
        context_state: dict[Any, Any] = {}
        attention.prepare_context(context_state, layer_idx, *self.context)
        given = {CONTEXT_STATE_KEY: context_state}
        context_state = with_observations(attention, self.context[0], self.case.context, given, layer_idx)[
            CONTEXT_STATE_KEY
        ]
        return LaneStates(
            [
                {
                    CONTEXT_STATE_KEY: context_state,
                    CONTEXT_LENGTH_KEY: self.case.context,
                    LANES_KEY: [f"lane {lane}"],
                    STATISTICS_KEY: AttentionStatistics(),
                }
                for lane in range(len(self.case.questions))
            ]
        )

    def _call(self, phase: str, rows: list[tuple[int, int]]) -> Call:
        lanes, slots = (torch.tensor(part) for part in zip(*rows, strict=True))
        for own in self.own:
            own[lanes, :, slots] = self._draw(len(rows), *own.shape[1::2])
        queries = self._draw(len(rows), self.case.heads, 1, self.case.head_dim) * 2
        keys, values = (
            SharedStates(
                context,
                own,
                lanes,
                slots + self.case.context + 1,
                int(slots.max()) + 1,
                one_each=len(set(lanes.tolist())) == len(rows),
                in_order=lanes.tolist() == list(range(len(self.case.questions))),
            )
            for context, own in zip(self.context, self.own, strict=True)
        )
        return Call(phase, queries, keys, values)

    def _draw(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator).to(self.case.dtype)


def built(recipe: str, case: Case) -> EfficientAttention:
    """The efficient execution of a recipe for the shape of a case."""
    attention = efficient({**EVERY, **DENSE_RECIPES}[recipe]())
    return with_channels(attention, kv_heads=case.kv_heads, head_dim=case.head_dim, heads=case.heads)


def outputs(attention: Any, case: Case, *, plain: bool, **passed_on: Any) -> tuple[list[torch.Tensor], LaneStates]:
    """What every call gives, in the plain form or the fast one."""
    lanes = Lanes(case)
    states = lanes.states(attention)
    attend = SparseAttention.attend_lanes if plain else type(attention).attend_lanes
    found = []
    for call in lanes.calls():
        states.begin(call.phase, call.keys.lanes.tolist())
        output = attend(
            attention, None, call.queries, call.keys, call.values, case.head_dim**-0.5, states, layer_idx=0, **passed_on
        )
        assert output.shape == (len(call.queries), case.heads, case.value_dim)
        assert output.dtype == case.dtype
        found.append(output)
    return found, states


def assert_same(recipe: str, case: Case, **passed_on: Any) -> None:
    """Compare both forms, outputs and what they record."""
    attention = built(recipe, case)
    plain, plain_states = outputs(attention, case, plain=True, **passed_on)
    fast, fast_states = outputs(attention, case, plain=False, **passed_on)
    for step, (one, other) in enumerate(zip(plain, fast, strict=True)):
        try:
            assert_near(other, one, case.dtype)
        except AssertionError as error:
            raise AssertionError(f"call {step}: {error}") from error
    for lane in range(len(case.questions)):
        one, other = plain_states.statistics(lane), fast_states.statistics(lane)
        assert (one.calls(), one.layers()) == (other.calls(), other.layers())
        for phase in (None, QUESTION, DECODE):
            assert other.density(phase) == pytest.approx(one.density(phase), abs=1e-9)


def pairs() -> list[Any]:
    """Every recipe with two of the cases in turn, those of this file with all."""
    return [
        pytest.param(recipe, case, id=f"{recipe}-{case}")
        for place, recipe in enumerate(EVERY)
        for number, case in enumerate(CASES)
        if recipe in MORE or number in (2 * place % 6, (2 * place + 3) % 6)
    ]


@pytest.mark.parametrize(("recipe", "case"), pairs())
def test_the_fast_form_is_the_plain_one(recipe: str, case: Case) -> None:
    assert_same(recipe, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_fast_form_is_the_plain_one_in_every_case(case: Case) -> None:
    for recipe in {**EVERY, **DENSE_RECIPES}:
        try:
            assert_same(recipe, case)
        except AssertionError as error:
            raise AssertionError(f"{recipe}: {error}") from error


FORMS = ["sink+local+topk", "sink+local+random", "topp-group", "quest-easy", "adaptive-easy", "all:causal",
         "topk+random+local"]  # fmt: skip


@pytest.mark.parametrize("recipe", FORMS)
@pytest.mark.parametrize("special", ["sinks", "softcap", "both"])
def test_sinks_and_soft_caps_count_the_same(recipe: str, special: str) -> None:
    case = CASES[0]
    sinks = torch.randn(case.heads, generator=torch.Generator().manual_seed(1)) * 2 + 1
    given: dict[str, Any] = {} if special == "softcap" else {"s_aux": sinks}
    if special != "sinks":
        given["softcap"] = 1.5
    assert_same(recipe, case, **given)
    plain, _ = outputs(built(recipe, case), case, plain=False)
    changed, _ = outputs(built(recipe, case), case, plain=False, **given)
    assert not torch.allclose(plain[0], changed[0], atol=1e-2), "it changes something"


@pytest.mark.parametrize("recipe", [*FORMS, "double_sparsity-hard", "quest-group-softmax", "sink+local"])
@pytest.mark.parametrize("rows", [1, 4])
def test_pieces_of_rows_give_the_same(recipe: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(4, 2, 16, 16, 37, (9, 1, 4))
    whole, whole_states = outputs(built(recipe, case), case, plain=False)
    monkeypatch.setattr(kernels, "piece_numbers", lambda device: rows * case.heads * (case.context + 9))
    pieces, states = outputs(built(recipe, case), case, plain=False)
    for one, other in zip(whole, pieces, strict=True):
        assert_near(other, one)
    for lane in range(3):
        one, other = whole_states.statistics(lane), states.statistics(lane)
        assert other.calls() == one.calls() == (3 if lane == 0 else 5)
        assert other.density() == pytest.approx(one.density(), abs=1e-9)


def test_pieces_ask_for_the_whole_call_and_known_logits_need_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "piece_numbers", lambda device: 1)
    lanes = torch.arange(3)
    keys = SharedStates(torch.randn(1, 2, 5, 4), torch.randn(3, 2, 2, 4), lanes, torch.full((3,), 6), 1, True, True)
    queries = torch.randn(3, 4, 1, 4)
    pieces = kernels.row_pieces(queries, keys)
    assert pieces == [slice(0, 1), slice(1, 2), slice(2, 3)]
    found = [kernels.call_logits(queries[piece], keys.of_rows(piece), 1.0) for piece in pieces]
    assert keys.known.asked and keys.known.of(queries) is None
    assert not keys.of_rows(pieces[0]).known.asked
    keys.known.put(queries, torch.cat(found))
    assert kernels.row_pieces(queries, keys) == [slice(0, 3)]


@pytest.mark.parametrize("share", [0, 10**9], ids=["key by key", "by products over all keys"])
@pytest.mark.parametrize("recipe", [*FORMS, "quest-hard", "random-hard", "random-group", "topk-group", "sink+local"])
def test_both_ways_of_reading_lists_give_the_same(recipe: str, share: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "WIDE_SHARE", share)
    assert_same(recipe, CASES[0])


@pytest.mark.parametrize("recipe", ["adaptive-easy", "adaptive-group", "sink+local+topk+adaptive"])
def test_a_large_base_sample_is_read_by_one_product(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaptive_module, "FEW_ROWS", 0)
    assert_same(recipe, CASES[3])


def test_what_a_lane_may_not_read_does_not_matter() -> None:
    """Neither other lanes' keys, nor what lies behind a row's own place."""
    case = CASES[0]
    for recipe in ("sink+local+topk", "topp-easy", "quest-easy", "sink+local+random", "all:causal"):
        found = []
        for noise in (0.0, 50.0):
            attention, lanes = built(recipe, case), Lanes(case)
            states, calls = lanes.states(attention), lanes.calls()
            next(calls)
            call = next(calls)
            for own in lanes.own:
                for lane, question in enumerate(case.questions):
                    own[lane, :, question + 1 :] += noise
                own[2] += noise
            states.begin(DECODE, call.keys.lanes.tolist())
            found.append(attention.attend_lanes(None, call.queries, call.keys, call.values, 0.2, states, layer_idx=0))
        assert torch.equal(found[0][:2], found[1][:2]), recipe
        assert not torch.equal(found[0][2], found[1][2]), recipe


def test_a_recipe_that_keeps_nothing_is_refused() -> None:
    case = CASES[0]
    attention, lanes = efficient([SinkMaskerConfig(sink_size=0)]), Lanes(case)
    states, call = lanes.states(attention), next(lanes.calls())
    states.begin(QUESTION, call.keys.lanes.tolist())
    with pytest.raises(ConfigError, match="keeps no key"):
        attention.attend_lanes(None, call.queries, call.keys, call.values, 1.0, states, layer_idx=0)


def test_auto_takes_the_fast_form_and_seconds_add_up() -> None:
    case = CASES[0]
    attention = AutoAttention(AutoAttentionConfig(RECIPES["sink+local+topk"]()))
    found, states = outputs(attention, case, plain=False)
    expected, _ = outputs(attention.efficient, case, plain=False)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    seconds = torch.tensor([states.seconds(lane) for lane in range(3)])
    assert (seconds > 0).all()
    assert (seconds[2] > seconds[1]).all(), "12 tokens of a question take more than one"


class Spans(FixedMasker):
    """Keeps as many first and last keys of each row as it was told."""

    def __init__(self, first: list[int], last: list[int]) -> None:
        super().__init__(SinkMaskerConfig())
        self.given = (first, last)

    def spans(self, allowed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return tuple(torch.tensor(size).view_as(allowed) for size in self.given)


@st.composite
def ends(draw: st.DrawFn) -> tuple[int, list[int], list[list[int]]]:
    """Keys in common, readable keys of each row, and twice two sizes a row."""
    common, rows = draw(st.integers(1, 12)), draw(st.integers(1, 4))
    lengths = draw(st.lists(st.integers(common + 1, common + 8), min_size=rows, max_size=rows))
    sizes = draw(st.lists(st.lists(st.integers(0, 22), min_size=rows, max_size=rows), min_size=4, max_size=4))
    return common, lengths, sizes


@given(ends(), st.sampled_from(["nothing", "a range", "ends", "lists", "lists of KV heads", "a dense mask", "all"]))
@settings(max_examples=150, deadline=None)
def test_ends_of_rows_are_those_of_the_plain_form(case: tuple[int, list[int], list[list[int]]], kind: str) -> None:
    common, row_lengths, (first, last, earlier_first, earlier_last) = case
    lengths, rows = torch.tensor(row_lengths), len(row_lengths)
    shape = (rows, 4, 1, max(row_lengths))
    allowed = (torch.arange(shape[3]) < lengths.unsqueeze(-1))[:, None, None]
    earlier = (torch.tensor(earlier_first), torch.tensor(earlier_last))
    previous = Mask.empty(shape)
    if kind == "a range":
        previous = Mask.from_spans(shape, ((common // 3, common - common // 3),))
    elif kind == "ends":
        previous = add_ends(previous, *earlier, lengths, common)
    elif kind.startswith("lists"):
        lists = 4 if kind == "lists" else 2
        place = torch.stack([earlier[0] % lengths, earlier[1] % lengths], dim=-1)
        used = torch.stack([torch.ones(rows), (place[:, 0] != place[:, 1]).float() * 0.5], dim=-1)
        previous = previous.extend(
            *(KeyLists(*(part[:, None, None].repeat(1, lists, 1, 1) for part in (place, used))),)
        )
    elif kind == "a dense mask":
        previous = Mask.from_dense(shape, (torch.arange(shape[3]) % 3 == 0) & allowed)
    elif kind == "all":
        previous = Mask.full(shape)
    before = previous.to_dense().clone()
    found = add_ends(previous, torch.tensor(first), torch.tensor(last), lengths, common)
    none = torch.zeros(rows, 1, 1, 1)
    plain = Spans(first, last).add_mask(none, none, none, allowed, 1.0, 0.0, {}, previous)
    assert torch.equal(found.to_dense().expand(shape) * allowed, plain.to_dense().expand(shape) * allowed)
    assert torch.equal(previous.to_dense(), before)
    if previous.has_indices:
        assert found.has_indices
        kept = (plain.to_dense() > 0).expand(shape).sum(-1)
        assert torch.equal(found.count_listed().expand(shape[:3]), kept), "no key stands twice, none is forbidden"
        assert all(0 <= a < b <= common for a, b in found.spans)
        if kind == "lists of KV heads":
            assert all(part.indices.shape[1] in (1, 2) for part in found.lists), "a group stays a group"
