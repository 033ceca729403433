"""A lane alone and the same lane in company give the same, step by step; a batch shrinks, and fails lane by lane."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from sah.adapters import lane_model, lane_products
from sah.adapters.generation import Answer
from sah.adapters.huggingface import ModelAdapterHF
from sah.adapters.lane_support import lanes_supported
from sah.adapters.lanes import Lane, LaneWidth, answer_lanes
from sah.errors import ConfigError, DataError, StateError
from sah.sparse_attention import (
    AdaptiveSamplingMaskerConfig,
    CausalMaskerConfig,
    DoubleSparsityTopKMaskerConfig,
    LocalMaskerConfig,
    MagicPigConfig,
    QuestTopKMaskerConfig,
    RandomSamplingMaskerConfig,
    ResearchAttentionConfig,
    SinkMaskerConfig,
    StreamingLLMMaskerConfig,
    TopKMaskerConfig,
    TopPMaskerConfig,
    efficient,
)
from sah.sparse_attention.kernels import shared as kernels
from sah.sparse_attention.mask import Mask
from sah.sparse_attention.maskers.evicting import EvictingMasker
from sah.sparse_attention.randomness import LANES_KEY
from sah.sparse_attention.shared import SharedStates
from tests.support.attention import RECIPES
from tests.support.lanes import (
    assert_agree,
    assert_same_record,
    ids_as_text,
    reads_ids,
    recorded_choices,
    run_alone,
    run_together,
    setting,
)
from tests.support.models import (
    CONTEXT,
    FAMILIES,
    QUESTIONS,
    dense_adapter,
    end_tokens,
    folder,
    same_cache,
    save_random,
    snapshot,
    stored_lengths,
)
from tests.unit.adapters.test_special_attention import CONFIGS, SMALL

PLENTY = 1 << 33


def settings_of(own: ModelAdapterHF) -> list[ModelAdapterHF]:
    """Thirteen settings: every method, and every way in which a setting can be more than a method."""
    return [
        setting(own, None),
        setting(own, [StreamingLLMMaskerConfig(density=0.1)]),
        setting(own, [TopKMaskerConfig(density=0.1)], phases=["decode"]),
        setting(own, [SinkMaskerConfig(), TopKMaskerConfig(heavy_size=5, selection="group")], dense_layers=[0]),
        setting(own, [QuestTopKMaskerConfig(density=0.2, page_size=7)]),
        setting(
            own,
            [LocalMaskerConfig(window_size=3),
             QuestTopKMaskerConfig(heavy_size=9, page_size=16, label_bits=5, selection="group", group_score="max")],
            phases=["decode"],
        ),
        setting(own, [TopPMaskerConfig(top_p=0.8)]),
        setting(own, [TopPMaskerConfig(top_p=0.6, selection="group"), RandomSamplingMaskerConfig(sampling_rate=5)]),
        setting(own, [SinkMaskerConfig(), LocalMaskerConfig(window_size=8), RandomSamplingMaskerConfig(density=0.3)],
                seed=5, phases=["decode"]),
        setting(own, [SinkMaskerConfig(), AdaptiveSamplingMaskerConfig(base_min=5, epsilon=0.3)]),
        setting(own, [DoubleSparsityTopKMaskerConfig(density=0.2, group_factor=4, label_bits=6)]),
        setting(own, [SinkMaskerConfig(), LocalMaskerConfig(window_size=8), MagicPigConfig(lsh_l=20, lsh_k=4)]),
        setting(own, [TopKMaskerConfig(heavy_size=4, layers="1-"),
                      QuestTopKMaskerConfig(heavy_size=6, selection="group", layers=0),
                      AdaptiveSamplingMaskerConfig(base_rate=6, guarantee="output", layers=1),
                      RandomSamplingMaskerConfig(sampling_rate=6, selection="group", layers=0)], seed=2),
    ]  # fmt: skip


def lanes_of(settings: Sequence[ModelAdapterHF], questions: Sequence[tuple[int, int]]) -> list[Lane]:
    """A lane for each setting and question, of (tokens, new tokens)."""
    return [
        Lane(own, ids_as_text(tokens, seed), max_new_tokens=new)
        for own in settings
        for seed, (tokens, new) in enumerate(questions)
    ]


def evicts(adapter: ModelAdapterHF) -> bool:
    """Whether a setting has a method that forgets keys."""
    return any(isinstance(masker, EvictingMasker) for masker in getattr(adapter.sparse_attention, "maskers", ()))


@pytest.fixture(scope="module")
def own() -> ModelAdapterHF:
    """The tiny Llama, its texts being ids."""
    return reads_ids(dense_adapter("llama"))


def test_forty_lanes_agree_with_each_alone(own: ModelAdapterHF) -> None:
    """Questions of 1 to 40 tokens, answers of 1 to 7; each exception would have to be a tie."""
    cache = own.prefill(ids_as_text(90, 0))
    lanes = lanes_of(settings_of(own), [(1, 4), (40, 2), (6, 7)])
    lanes.insert(0, Lane(lanes[0].adapter, ids_as_text(17, 9), max_new_tokens=1))
    assert len(lanes) == 40
    alone = [run_alone(cache, lane) for lane in lanes]
    found = assert_agree(cache, lanes, alone)
    assert found.steps == sum(len(run.answer.token_ids) for run in alone) > 150


@pytest.mark.slow
@pytest.mark.usefixtures("random_networks")
def test_every_recipe_agrees_over_thousands_of_steps(own: ModelAdapterHF) -> None:
    """Each lane among all of a context's, and alone in the engine; every step after the same ones, and after its own.

    A tie in one step goes on into those behind it, so that its rate is counted where each step finds the same state.
    """
    steps = ties = 0
    for number, tokens in enumerate((45, 130)):
        cache = own.prefill(ids_as_text(tokens, number))
        questions = [(1, 9), (23, 5), (4, 12), (9, 10)]
        for options in ({}, {"phases": ["decode"]}):
            settings = [setting(own, recipe(), **options) for recipe in RECIPES.values()]
            lanes = lanes_of([setting(own, None), *settings], questions[2 * number : 2 * number + 3])
            alone = [run_alone(cache, lane) for lane in lanes]
            assert_agree(cache, lanes, alone)
            # What a method that evicts keeps follows from all steps before: it has no state to be given.
            chosen = [place for place, lane in enumerate(lanes) if not evicts(lane.adapter)]
            lanes, alone = [lanes[place] for place in chosen], [alone[place] for place in chosen]
            found = assert_agree(cache, lanes, alone, same_state=True)
            steps, ties = steps + found.steps, ties + len(found.ties)
            for place in range(number, len(lanes), 2):
                one = slice(place, place + 1)
                found = assert_agree(cache, lanes[one], alone[one], same_state=True)
                steps, ties = steps + found.steps, ties + len(found.ties)
    assert steps > 3000
    assert ties <= 0.001 * steps, f"{ties} of {steps} steps"


@pytest.mark.parametrize("tokens", [1, 3, 16, 17])
def test_contexts_of_a_few_tokens(tokens: int, own: ModelAdapterHF) -> None:
    """Shorter than sinks and window together, than a page, or than one key more than a page."""
    cache = own.prefill(ids_as_text(tokens, tokens))
    chosen = [
        [SinkMaskerConfig(), LocalMaskerConfig(window_size=12)],
        [StreamingLLMMaskerConfig(sink_size=4, window_size=6)],
        [QuestTopKMaskerConfig(heavy_size=2, page_size=16)],
        [QuestTopKMaskerConfig(density=0.3, page_size=16, selection="group", group_score="softmax_mean")],
        [TopKMaskerConfig(density=0.2)],
        [RandomSamplingMaskerConfig(sampling_rate=2)],
        [MagicPigConfig(lsh_l=10, lsh_k=3)],
    ]
    assert_agree(cache, lanes_of([setting(own, recipe) for recipe in chosen], [(1, 4), (18, 2)]))


def test_products_in_common_change_nothing(own: ModelAdapterHF, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings that read all keys share a product where it is small enough; else each has pieces of its own."""
    cache = own.prefill(ids_as_text(60, 0))
    recipes = ["topk-easy", "topp-easy", "topk-group", "sink+local+topk", "causal", "sink+local+random"]
    lanes = lanes_of([setting(own, None), *(setting(own, RECIPES[name]()) for name in recipes)], [(3, 5), (7, 4)])
    alone = [run_alone(cache, lane) for lane in lanes]
    for most, piece in ((0, 1 << 22), (1 << 40, 1 << 22), (0, 4 * 70 * 3), (1 << 40, 4 * 70 * 3)):
        monkeypatch.setattr(lane_products, "MOST_NUMBERS", most)
        monkeypatch.setattr(kernels, "piece_numbers", lambda device, most=piece: most)
        assert not assert_agree(cache, lanes, alone).ties


def test_a_difference_that_is_no_tie_is_told(own: ModelAdapterHF, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests above rest on."""
    cache = own.prefill(ids_as_text(40, 0))
    random, topk = (setting(own, RECIPES[name]()) for name in ("sink+local+random", "sink+local+topk"))
    lanes = lanes_of([random, topk, setting(own, None)], [(5, 3)])
    alone = [run_alone(cache, lane) for lane in lanes]
    assert not assert_agree(cache, lanes, alone).ties
    ids = alone[1].answer.token_ids
    wrong = replace(alone[1], answer=replace(alone[1].answer, token_ids=[ids[0], 77, 78]))
    changed = run_together(cache, lanes, [alone[0], wrong, alone[2]])
    assert torch.allclose(changed[1].logits[:2], alone[1].logits[:2], atol=1e-4)
    assert not torch.allclose(changed[1].logits[2], alone[1].logits[2], atol=1e-2), "other tokens, other logits"

    def as_others(masker: Any, changed: Callable[[list[Any]], list[Any]]) -> None:
        """Let a masker choose by other arguments in company."""
        choose = masker.add_indices

        def add(*given: Any, **more: Any) -> Mask:
            return choose(*(changed([*given]) if isinstance(given[1], SharedStates) else given), **more)

        monkeypatch.setattr(masker, "add_indices", add)

    maskers = [adapter.sparse_attention.efficient.maskers[-1] for adapter in (random, topk)]  # type: ignore[union-attr]
    as_others(maskers[0], lambda given: [*given[:6], {**given[6], LANES_KEY: ["another"] * len(given[0])}, given[7]])
    with pytest.raises(AssertionError, match="scores no keys, so that nothing can tie"):
        assert_agree(cache, lanes, alone)
    as_others(maskers[1], lambda given: [given[0] * -1, *given[1:]])
    with pytest.raises(AssertionError, match="apart in head"):
        assert_agree(cache, lanes[1:], alone[1:])
    monkeypatch.undo()
    exact = lane_model.attend_everything
    monkeypatch.setattr(lane_model, "attend_everything", lambda *given, **more: exact(*given, **more) * 1.001)
    with pytest.raises(AssertionError, match="a dense lane differs"):
        assert_agree(cache, lanes[2:], alone[2:])
    monkeypatch.undo()
    exact_lists = efficient.attend_shared_lists
    monkeypatch.setattr(efficient, "attend_shared_lists", lambda *given, **more: exact_lists(*given, **more) * 1.001)
    with pytest.raises(AssertionError, match="keeps the same keys alone and in company"):
        assert_agree(cache, lanes[1:2], alone[1:2])


def test_samples_are_those_of_the_lane_alone_in_any_company(own: ModelAdapterHF) -> None:
    """Key for key and with the same probabilities, in two orders of lanes, with and without lanes that end early."""
    cache = own.prefill(ids_as_text(70, 0))
    recipes = [
        [SinkMaskerConfig(), RandomSamplingMaskerConfig(sampling_rate=7)],
        [RandomSamplingMaskerConfig(density=0.6, selection="group"), LocalMaskerConfig(window_size=4)],
        [AdaptiveSamplingMaskerConfig(base_rate=9, epsilon=0.4)],
    ]
    settings = [setting(own, recipe, seed=3) for recipe in recipes]
    lanes = lanes_of(settings, [(2, 4), (11, 1), (5, 2)])
    companies = {
        "forwards": lanes,
        "backwards": lanes[::-1],
        "none that ends early": [lane for lane in lanes if lane.max_new_tokens == 4],
        "a dense lane first": [Lane(own, ids_as_text(9, 7), max_new_tokens=2), *lanes[:4], lanes[6]],
    }
    with end_tokens(own.model, [10**6]):
        drawn: set[tuple[float, ...]] = set()
        for lane in lanes[::3]:
            ids = own.prompts.question_ids(cache.prompt, lane.question)
            (identity,) = lane.adapter.new_meta_data(cache, ids)[LANES_KEY]
            with recorded_choices(lane.adapter, identity) as expected:
                alone = run_alone(cache, lane)
            drawn.add(tuple(expected[cache.length, 0, 0].kept.flatten().tolist()))
            for name, company in companies.items():
                nines = replace(alone.answer, token_ids=[9] * 4)
                runs = [alone if x is lane else replace(alone, answer=nines) for x in company]
                with recorded_choices(lane.adapter, identity) as found:
                    run_together(cache, company, runs)
                assert found.keys() == expected.keys(), name
                for place, choice in expected.items():
                    assert torch.equal(found[place].kept, choice.kept), f"{name}, {place}"
        assert len(drawn) == 3


@contextmanager
def widths(
    model: Any, most: int = 10**6, error: Callable[[], Exception] = torch.OutOfMemoryError
) -> Iterator[list[int]]:
    """Record the number of lanes of every batched call, and let calls of too many of them run out of memory."""
    seen: list[int] = []

    def look(_: Any, __: Any, call: dict[str, Any]) -> None:
        kept = call["logits_to_keep"]
        if isinstance(kept, torch.Tensor):
            seen.append(len(kept))
            if len(kept) > most:
                raise error()

    hook = model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield seen
    finally:
        hook.remove()


def answered(cache: Any, lane: Lane) -> Answer | Exception:
    """What the lane gives alone."""
    try:
        return lane.adapter.answer(
            cache,
            lane.question,
            answer_prefix=lane.answer_prefix,
            max_new_tokens=lane.max_new_tokens,
            attention_error=lane.attention_error,
        )
    except Exception as error:
        return error


def assert_answers(found: list[tuple[int, Answer | Exception]], expected: Sequence[Answer | Exception]) -> None:
    """Every lane answers once, with what it gives alone."""
    assert sorted(number for number, _ in found) == list(range(len(expected)))
    for number, answer in found:
        alone = expected[number]
        if isinstance(alone, Exception):
            assert (type(answer), str(answer)) == (type(alone), str(alone))
        else:
            assert isinstance(answer, Answer), repr(answer)
            assert_same_record(alone, answer)


@pytest.fixture(scope="module")
def talking() -> tuple[ModelAdapterHF, Any, list[Lane], list[Answer | Exception]]:
    """A context as text, lanes over it, and what each gives alone."""
    own = dense_adapter("llama")
    recipes = [None, "sink+local+topk", "quest-easy", "sink+local+random"]
    cache = own.prefill(CONTEXT)
    lanes = []
    for recipe in recipes:
        adapter = setting(own, None if recipe is None else RECIPES[recipe]())
        lanes += [
            Lane(adapter, QUESTIONS[0], max_new_tokens=6),
            Lane(adapter, QUESTIONS[1], "It is ", max_new_tokens=2),
            Lane(adapter, QUESTIONS[2], max_new_tokens=4),
        ]
    assert lanes_supported(own, cache), "asked here, so that no test meets the call that finds out"
    return own, cache, lanes, [answered(cache, lane) for lane in lanes]


Talking = tuple[ModelAdapterHF, Any, list[Lane], list[Answer | Exception]]


def test_answers_and_all_they_tell_are_those_alone(talking: Talking) -> None:
    """And the wall seconds that fell to all lanes fit into those that passed."""
    own, cache, lanes, expected = talking
    begun = time.perf_counter()
    found = list(answer_lanes(own, cache, lanes, PLENTY))
    passed = time.perf_counter() - begun
    assert_answers(found, expected)
    spent = 0.0
    for number, answer in found:
        assert isinstance(answer, Answer)
        sparse = lanes[number].adapter.sparse_attention is not None
        assert answer.attention_seconds is not None
        assert answer.selection_seconds is not None
        assert answer.attention_seconds > 0
        assert (answer.selection_seconds > 0) == sparse
        spent += answer.attention_seconds + answer.selection_seconds
        assert (answer.density, answer.attention_calls > 0) != (None, True)
        assert [answer.question_seconds, answer.decode_seconds, answer.decode_ms_per_token] == [None] * 3
    assert spent < passed
    assert [number for number, _ in found[:4]] == [1, 4, 7, 10], "a lane that is done does not wait for the others"


def test_lanes_may_stand_in_any_order_and_come_twice(talking: Talking) -> None:
    own, cache, lanes, expected = talking
    order = [11, 0, 6, 6, 3, 9, 2, 0, 8]
    found = list(answer_lanes(own, cache, [lanes[place] for place in order], PLENTY))
    assert_answers(found, [expected[place] for place in order])


@pytest.mark.parametrize("rate", [1.0, 0.3])
def test_a_lane_is_compared_with_dense_attention_as_it_is_alone(talking: Talking, rate: float) -> None:
    """Query by query the same ones, whether a method works in lanes or takes them one by one."""
    own, cache, lanes, _ = talking
    compared = [replace(lane, attention_error=rate) for lane in lanes]
    answers: dict[int, Any] = dict(answer_lanes(own, cache, [*compared, lanes[3]], PLENTY))
    sparse = 0
    for number, lane in enumerate(compared):
        alone: Any = answered(cache, lane)
        assert answers[number].token_ids == alone.token_ids
        found, expected = answers[number].attention_errors, alone.attention_errors
        assert found.keys() == expected.keys()
        for layer, errors in expected.items():
            assert found[layer].queries == errors.queries
            for name in ("output_error", "mass_recalled", "density"):
                assert torch.allclose(getattr(found[layer], name), getattr(errors, name), atol=1e-4), (number, name)
            sparse += 1
    assert sparse
    assert answers[len(compared)].output_error is None


def test_end_tokens_end_their_lane_alone(talking: Talking) -> None:
    own, cache, lanes, expected = talking
    first, second = (answer.token_ids[place] for answer, place in ((expected[0], 2), (expected[8], 1)))  # type: ignore[union-attr]
    for value in (first, [10**6, second]):
        with end_tokens(own.model, value):
            alone = [answered(cache, lane) for lane in lanes]
            with widths(own.model) as seen:
                assert_answers(list(answer_lanes(own, cache, lanes, PLENTY)), alone)
        reasons = {answer.stop_reason for answer in alone}  # type: ignore[union-attr]
        assert reasons == {"eos", "length"}
        assert sum(seen) == sum(len(answer.token_ids) for answer in alone), "lanes that are done leave"  # type: ignore[union-attr]


MEMORY_ERRORS: dict[str, Callable[[], Exception]] = {
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "cpu": lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 4096 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "windows": lambda: RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4096 bytes."),
    "mps": lambda: RuntimeError("MPS backend out of memory (MPS allocated: 9.04 GB, max allowed: 9.07 GB)."),
    "numpy": lambda: MemoryError("Unable to allocate 1.00 GiB for an array"),
}


@pytest.mark.parametrize("kind", MEMORY_ERRORS)
def test_a_batch_shrinks_until_memory_suffices(kind: str, talking: Talking, caplog: pytest.LogCaptureFixture) -> None:
    own, cache, lanes, expected = talking
    before = snapshot(cache.past_key_values)
    with widths(own.model, 2, MEMORY_ERRORS[kind]) as seen, caplog.at_level(logging.WARNING, "sah"):
        assert_answers(list(answer_lanes(own, cache, lanes[2:8], PLENTY)), expected[2:8])
    assert seen[:3] == [6, 3, 2]
    assert max(seen[2:]) == 2
    assert [record.args for record in caplog.records] == [(6, 3), (3, 2)]
    assert same_cache(snapshot(cache.past_key_values), before)


def test_the_width_that_memory_allowed_is_kept_for_the_next_context(talking: Talking) -> None:
    own, cache, lanes, expected = talking
    known = LaneWidth()
    with widths(own.model, 2) as seen:
        for _ in range(2):
            assert_answers(list(answer_lanes(own, cache, lanes[2:8], PLENTY, known)), expected[2:8])
    assert known.most == 2
    assert [width for width in seen if width > 2] == [6, 3]


def test_lanes_that_are_done_stay_done_when_memory_runs_out(talking: Talking) -> None:
    """It lasts for the questions and the first token of all, and runs out then."""
    own, cache, lanes, expected = talking
    calls: list[int] = []

    def late() -> Exception:
        return torch.OutOfMemoryError("late")

    def look(_: Any, __: Any, call: dict[str, Any]) -> None:
        if isinstance(call["logits_to_keep"], torch.Tensor):
            calls.append(len(call["logits_to_keep"]))
            if len(calls) == 3:
                raise late()

    hook = own.model.register_forward_pre_hook(look, with_kwargs=True)
    found = list(answer_lanes(own, cache, lanes, PLENTY))
    hook.remove()
    assert_answers(found, expected)
    assert [number for number, _ in found[:4]] == [1, 4, 7, 10]
    assert calls[:4] == [12, 12, 8, 6], "half of the twelve, of the eight that were not done"


def test_memory_that_does_not_suffice_for_one_lane_is_its_error(talking: Talking) -> None:
    own, cache, lanes, _ = talking

    def never(*_: Any) -> None:
        raise torch.OutOfMemoryError("none left")

    before = snapshot(cache.past_key_values)
    hook = own.model.register_forward_pre_hook(never)
    found = dict(answer_lanes(own, cache, lanes[:5], PLENTY))
    hook.remove()
    assert sorted(found) == [0, 1, 2, 3, 4]
    assert all(isinstance(error, torch.OutOfMemoryError) for error in found.values())
    assert same_cache(snapshot(cache.past_key_values), before)


def test_width_follows_the_budget(talking: Talking) -> None:
    own, cache, lanes, expected = talking
    found: dict[int, list[tuple[int, Answer | Exception]]] = {}
    for mebibytes in range(0, 25, 2):
        with widths(own.model) as seen:
            answers = list(answer_lanes(own, cache, lanes[:5], mebibytes << 20))
        assert max(seen) >= max(found, default=1), "more memory, wider batches"
        found.setdefault(max(seen), answers)
    assert len(found) >= 3
    assert {1, 5} <= found.keys()
    for answers in found.values():
        assert_answers(answers, expected[:5])


def test_what_a_lane_cannot_do_keeps_no_other_from_its_answer(
    own: ModelAdapterHF, caplog: pytest.LogCaptureFixture
) -> None:
    cache = own.prefill(ids_as_text(30, 0))
    good, sampling = setting(own, RECIPES["sink+local+topk"]()), setting(own, RECIPES["sink+local+random"]())
    nothing = setting(own, [SinkMaskerConfig(sink_size=0)])
    factor = setting(own, [DoubleSparsityTopKMaskerConfig(density=0.5, group_factor=32)])
    lanes = [
        Lane(good, "11 12 13", max_new_tokens=3),
        Lane(good, "", max_new_tokens=3),
        Lane(good, "11 12 14", max_new_tokens=3),
        Lane(nothing, "11 12", max_new_tokens=3),
        Lane(own, "11 12", max_new_tokens=9000),
        Lane(factor, "14", max_new_tokens=2),
        Lane(sampling, "15 16", max_new_tokens=0),
        Lane(sampling, "15 16", max_new_tokens=4),
        Lane(own, "11 12", max_new_tokens=4),
    ]
    expected = [answered(cache, lane) for lane in lanes]
    kinds = [None, DataError, None, ConfigError, DataError, ConfigError, ConfigError, None, None]
    assert [type(x) if isinstance(x, Exception) else None for x in expected] == kinds
    before = snapshot(cache.past_key_values)
    assert lanes_supported(own, cache)
    with widths(own.model) as seen:
        assert_answers(list(answer_lanes(own, cache, lanes, PLENTY)), expected)
    assert seen.count(2) == 3, "a setting's lanes stay together"
    assert same_cache(snapshot(cache.past_key_values), before)


def test_a_context_of_another_model_is_refused(own: ModelAdapterHF) -> None:
    """And says nothing on what this model can do."""
    other = reads_ids(dense_adapter("qwen2"))
    cache = other.prefill(ids_as_text(8, 0))
    with pytest.raises(StateError, match="prefilled by"):
        list(answer_lanes(own, cache, [Lane(own, "12")], PLENTY))
    ((_, error),) = answer_lanes(other, cache, [Lane(own, "12")], PLENTY)
    assert isinstance(error, StateError)
    with widths(own.model) as seen:
        list(answer_lanes(own, own.prefill("11 12 13"), [Lane(own, "12", max_new_tokens=1)] * 3, PLENTY))
    assert max(seen) == 3


def test_nothing_is_left_behind(own: ModelAdapterHF) -> None:
    """The cache holds the context bit by bit, its state is as it was, and no registry knows more names."""
    cache = own.prefill(ids_as_text(50, 0))
    settings = settings_of(own)
    lanes = lanes_of(settings, [(3, 2), (8, 4)])
    for adapter in settings:
        adapter.prepare_context(cache)
    before, state = snapshot(cache.past_key_values), dict(cache.context_state)
    units = {name: part.units.clone() for name, part in state.items()}
    names = [set(interface._global_mapping) for interface in (AttentionInterface, AttentionMaskInterface)]
    assert len(units) >= 4
    assert len(list(answer_lanes(own, cache, lanes, PLENTY))) == len(lanes)
    for _ in answer_lanes(own, cache, lanes, PLENTY):
        break  # and left before its end
    assert same_cache(snapshot(cache.past_key_values), before)
    assert set(stored_lengths(cache.past_key_values)) == {50}
    assert cache.context_state.keys() == units.keys()
    assert all(cache.context_state[name] is part for name, part in state.items())
    assert all(torch.equal(cache.context_state[name].units, part) for name, part in units.items())
    # Names of other tests' adapters may go meanwhile.
    for interface, known in zip((AttentionInterface, AttentionMaskInterface), names, strict=True):
        assert set(interface._global_mapping) <= known
    assert {config._attn_implementation for config, _ in own.loaded} == {"sdpa"}
    for adapter in settings:
        adapter.close()


FAMILY_RECIPES = ["topk-easy", "quest-hard", "sink+local+random", "sink+local+magicpig", "topp-group"]


def assert_family_agrees(own: ModelAdapterHF, contexts: Sequence[int], recipes: Sequence[str]) -> None:
    for tokens in contexts:
        cache = own.prefill(ids_as_text(tokens, 0))
        settings = [setting(own, None), *(setting(own, RECIPES[name]()) for name in recipes)]
        lanes = lanes_of(settings, [(1, 3), (14, 2)])
        assert_agree(cache, lanes)
        with widths(own.model) as seen:
            found = list(answer_lanes(own, cache, lanes, PLENTY))
        assert len(found) == len(lanes)
        assert max(seen) == len(lanes), "all lanes in one batch"


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str) -> None:
    """Gemma's sliding window of 32 is longer than one context, shorter than the other."""
    contexts = (10, 60) if family == "gemma3" else (41,)
    assert_family_agrees(reads_ids(dense_adapter(family)), contexts, FAMILY_RECIPES)


@pytest.mark.parametrize("name", ["gpt_oss", "gemma2", "mistral with windows", "mistral with one huge window"])
def test_special_attention(name: str, tmp_path: Path) -> None:
    """Sinks, soft caps, and windows on some layers or on all, longer and shorter than a context."""
    own = reads_ids(ModelAdapterHF(None, save_random(CONFIGS[name](), tmp_path)))
    contexts = (8, 40) if name.startswith("mistral") else (40,)
    assert_family_agrees(own, contexts, [] if name == "mistral with windows" else FAMILY_RECIPES)


def test_lanes_that_cross_the_border_of_longrope_run_alone(tmp_path: Path) -> None:
    """Frequencies follow the longest position of a call, so that a lane must not cross the border for another."""
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 64,
            "short_factor": [1.0, 1.0, 1.0, 1.0], "long_factor": [2.0, 3.0, 4.0, 5.0]}  # fmt: skip
    config = transformers.Phi3Config(
        **SMALL, num_hidden_layers=2, original_max_position_embeddings=64, rope_parameters=rope
    )
    own = reads_ids(ModelAdapterHF(None, save_random(config, tmp_path)))
    settings = [setting(own, None), setting(own, RECIPES["sink+local+topk"]())]
    for tokens, together in ((30, 6), (55, 4), (64, 6)):
        cache = own.prefill(ids_as_text(tokens, 0))
        lanes = lanes_of(settings, [(2, 4), (5, 4), (4, 6)])
        expected = [answered(cache, lane) for lane in lanes]
        with widths(own.model) as seen:
            assert_answers(list(answer_lanes(own, cache, lanes, PLENTY)), expected)
        # From 55 tokens the lane with 4 + 6 more reaches 65; those with 6 and 9 stay within 64.
        assert max(seen) == together


@contextmanager
def mixing(model: Any) -> Iterator[None]:
    """Let every token see the one before it in the call, whoever that belongs to."""

    def mix(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        return output + output.roll(1, dims=1)

    hook = model.get_input_embeddings().register_forward_hook(mix)
    try:
        yield
    finally:
        hook.remove()


@pytest.mark.parametrize("kind", ["mixing float32", "mixing bfloat16", "chunked attention"])
def test_a_model_that_cannot_is_run_lane_by_lane_and_the_log_says_so_once(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if kind == "chunked attention":
        config = transformers.Llama4TextConfig(
            **SMALL, num_hidden_layers=2, intermediate_size_mlp=32, num_local_experts=2, attention_chunk_size=32,
            layer_types=["chunked_attention", "full_attention"],
        )  # fmt: skip
        loaded = ModelAdapterHF(None, save_random(config, tmp_path))
    else:
        loaded = ModelAdapterHF(None, folder("llama"), model_kwargs={"dtype": kind.split()[1]})
    own = reads_ids(loaded)
    lanes = lanes_of([setting(own, None), setting(own, RECIPES["sink+local+topk"]())], [(3, 3), (9, 2)])
    with mixing(own.model), caplog.at_level(logging.WARNING, "sah"):
        for tokens in (20, 25):
            cache = own.prefill(ids_as_text(tokens, 0))
            expected = [answered(cache, lane) for lane in lanes]
            with widths(own.model) as seen:
                found = list(answer_lanes(own, cache, lanes, PLENTY))
            assert_answers(found, expected)
            # Nothing but the first look at the model runs lanes together.
            assert seen == ([2] if tokens == 20 else [])
    (record,) = [record for record in caplog.records if "one by one" in record.getMessage()]
    assert own.model_name in record.getMessage()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounding_is_not_taken_for_mixing(dtype: str, caplog: pytest.LogCaptureFixture) -> None:
    own = reads_ids(ModelAdapterHF(None, folder("llama"), model_kwargs={"dtype": dtype}))
    cache = own.prefill(ids_as_text(20, 0))
    lanes = lanes_of([setting(own, None), setting(own, RECIPES["sink+local+topk"]())], [(3, 3)])
    with widths(own.model) as seen, caplog.at_level(logging.WARNING, "sah"):
        answers = dict(answer_lanes(own, cache, lanes, PLENTY))
    assert len(answers) == 2
    assert seen[1] == 2
    assert not caplog.records


def test_the_plain_execution_takes_its_lanes_one_by_one_within_the_batch(own: ModelAdapterHF) -> None:
    """`ResearchAttention` has no form of its own for lanes; projections and MLPs are shared all the same."""
    cache = own.prefill(ids_as_text(35, 0))
    recipes = [RECIPES[name]() for name in ("sink+local+topk", "quest-easy", "sink+local+random")]
    settings = [own.with_sparse_attention(ResearchAttentionConfig(recipe)) for recipe in recipes]
    lanes = lanes_of([*settings, setting(own, [CausalMaskerConfig()])], [(1, 3), (8, 3)])
    assert_agree(cache, lanes)
