"""Timed decoding: the same work in every arm, nothing left behind, and times that are split as they are defined."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import sah.adapters.timing as timing
import sah.sparse_attention.times as times
from sah.adapters.huggingface import ModelAdapterHF
from sah.adapters.timing import GROUPED, OWN, TimedDecode, grouped_dense, time_decoding
from sah.errors import ConfigError, DataError, ModelError, StateError
from sah.sparse_attention import (
    EfficientAttentionConfig,
    LocalMaskerConfig,
    QuestTopKMaskerConfig,
    SinkMaskerConfig,
    TopKMaskerConfig,
)
from tests.support.models import (
    CONTEXT,
    FAMILIES,
    QUESTIONS,
    dense_adapter,
    end_tokens,
    fixed_logits,
    folder,
    greedy_reference,
    recorded_calls,
    same_cache,
    snapshot,
)

TOKENS = 3


def window(**place: Any) -> EfficientAttentionConfig:
    """Six keys a query."""
    return EfficientAttentionConfig([SinkMaskerConfig(sink_size=2), LocalMaskerConfig(window_size=4)], **place)


def quest(**values: Any) -> EfficientAttentionConfig:
    """A method with state in the context and in the question."""
    return EfficientAttentionConfig([QuestTopKMaskerConfig(heavy_size=16, **values)])


def arms(*configs: EfficientAttentionConfig, family: str = "llama") -> dict[str, ModelAdapterHF]:
    """Sparse arms named by their place."""
    return {str(place): dense_adapter(family).with_sparse_attention(config) for place, config in enumerate(configs)}


def run(sparse: dict[str, ModelAdapterHF] | None = None, family: str = "llama", **options: Any) -> TimedDecode:
    """A short timed run on a context of its own."""
    dense = dense_adapter(family)
    options = {"new_tokens": TOKENS, "rounds": 1} | options
    return time_decoding(dense, sparse or {}, dense.prefill(CONTEXT), QUESTIONS[0], **options)


def question_ids() -> list[int]:
    """Ids of the question."""
    prompts = dense_adapter("llama").prompts
    return prompts.question_ids(prompts.context_prompt(CONTEXT), QUESTIONS[0])


def passes(calls: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Split recorded calls at the questions."""
    starts = [place for place, call in enumerate(calls) if call["ids"] == question_ids()]
    return [calls[a:b] for a, b in itertools.pairwise([*starts, len(calls)])]


def logits_of(sparse: dict[str, ModelAdapterHF], family: str = "llama", **options: Any) -> list[torch.Tensor]:
    """The logits of every model call of a timed run."""
    seen: list[torch.Tensor] = []

    def keep(logits: torch.Tensor) -> torch.Tensor:
        seen.append(logits.clone())
        return logits

    cache = dense_adapter(family).prefill(CONTEXT)
    with fixed_logits(dense_adapter(family).model, keep):
        time_decoding(dense_adapter(family), sparse, cache, QUESTIONS[0], new_tokens=TOKENS, rounds=1, **options)
    return seen


def test_every_arm_decodes_the_dense_answer() -> None:
    dense = dense_adapter("llama")
    prompt = dense.prompts.prompt_ids(CONTEXT, QUESTIONS[0])
    with end_tokens(dense.model, -1):
        expected = greedy_reference(dense, prompt, TOKENS)
    cache = dense.prefill(CONTEXT)
    with end_tokens(dense.model, expected[0]), recorded_calls(dense.model) as calls:
        timed = time_decoding(dense, arms(window(), quest()), cache, QUESTIONS[0], new_tokens=TOKENS, rounds=2)
    assert timed.token_ids == expected
    greedy, *rest = passes(calls)
    assert [call["ids"] for call in greedy[1:]] == [[token] for token in expected[:-1]]
    assert len(rest) == 4 * (1 + 2)
    for one in rest:
        assert [call["ids"] for call in one[1:]] == [[token] for token in expected]
        assert [int(call["position_ids"][0, 0]) for call in one[1:]] == list(range(len(prompt), len(prompt) + TOKENS))
    assert (timed.context_tokens + timed.question_tokens, timed.rounds) == (len(prompt), 2)


def test_each_arm_runs_its_own_attention_and_rounds_change_direction() -> None:
    sparse = arms(window(), window(phases=["decode"]))
    with recorded_calls(dense_adapter("llama").model) as calls:
        run(sparse, rounds=2)
    _, *rest = passes(calls)
    assert len({call["implementation"] for one in rest for call in one}) == 4
    loaded = dense_adapter("llama").model.config._attn_implementation
    order = {}
    for number, one in enumerate(rest[:4]):
        question, *decode = [call["implementation"] for call in one]
        assert len(set(decode)) == 1
        assert (question == loaded) == (number != 2), "only the arm with a sparse question switches before it"
        order[decode[0]] = number
    assert list(order)[0] == loaded
    assert [order[one[1]["implementation"]] for one in rest[4:]] == [0, 1, 2, 3, 3, 2, 1, 0]
    for one, number in zip(rest, [0, 1, 2, 3] * 2 + [3, 2, 1, 0], strict=True):
        assert ["sparse_meta_data" in call for call in one] == [number == 2, *[number > 1] * TOKENS]


@pytest.mark.parametrize("family", FAMILIES)
def test_both_dense_forms_say_the_same(family: str) -> None:
    logits = logits_of({}, family)
    own, grouped = logits[TOKENS : 2 * TOKENS + 1], logits[2 * TOKENS + 1 : 3 * TOKENS + 2]
    for a, b in zip(own, grouped, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("options", [{"s_aux": torch.tensor([0.5, -1.0, 2.0, 0.0])}, {"softcap": 2.0}], ids=str)
def test_the_grouped_form_honours_what_models_add(options: dict[str, Any]) -> None:
    query, key, value = torch.randn(1, 4, 1, 8), torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8)
    allowed = torch.tensor([[[[False, True, True, True, True]]]])
    logits = query @ key.repeat_interleave(2, 1).mT / 8**0.5
    if "softcap" in options:
        logits = options["softcap"] * torch.tanh(logits / options["softcap"])
    logits = logits.masked_fill(~allowed, float("-inf"))
    if "s_aux" in options:
        logits = torch.cat([logits, options["s_aux"].view(1, 4, 1, 1)], -1)
    expected = logits.softmax(-1)[..., :5] @ value.repeat_interleave(2, 1)
    output, _ = grouped_dense(torch.nn.Module(), query, key, value, allowed, **options)
    torch.testing.assert_close(output, expected.transpose(1, 2))


def test_the_cache_and_its_state_are_as_before() -> None:
    dense = dense_adapter("llama")
    sparse = dense.with_sparse_attention(quest())
    cache = dense.prefill(CONTEXT)
    before = sparse.answer(cache, QUESTIONS[1], max_new_tokens=4)
    keys, state = snapshot(cache.past_key_values), dict(cache.context_state)
    time_decoding(dense, {"a": sparse} | arms(quest(page_size=4)), cache, QUESTIONS[0], new_tokens=TOKENS, rounds=1)
    assert same_cache(snapshot(cache.past_key_values), keys)
    assert cache.context_state == state
    assert sparse.answer(cache, QUESTIONS[1], max_new_tokens=4).token_ids == before.token_ids


def test_no_state_of_an_arm_reaches_another() -> None:
    sparse = arms(quest(), quest(page_size=4), window())
    with recorded_calls(dense_adapter("llama").model) as calls:
        run(sparse)
    _, *rest = passes(calls)
    states = [{id(call["sparse_meta_data"]) for call in one if "sparse_meta_data" in call} for one in rest]
    assert [len(state) for state in states] == [0, 0, 1, 1, 1, 0, 0, 1, 1, 1]
    assert len(set.union(*states)) == 6, "a new state for every arm and round"
    derived = [set(one[1]["sparse_meta_data"]["context_state"]) for one in rest[2:5]]
    assert [len(names) for names in derived] == [3, 3, 0], "one entry a layer"
    assert not derived[0] & derived[1]


def test_an_arm_decodes_the_same_in_any_company() -> None:
    alone = logits_of(arms(quest()))
    together = logits_of(arms(quest(), quest(page_size=4)))
    size = TOKENS + 1
    start = TOKENS + 2 * size
    for a, b in zip(alone[start : start + size], together[start : start + size], strict=True):
        assert torch.equal(a, b)
    other = together[start + size : start + 2 * size]
    assert not any(torch.equal(a, b) for a, b in zip(alone[start : start + size], other, strict=True))


def ticking() -> Callable[[torch.device], tuple[float, float]]:
    """A clock of which every reading is one second after the last, two of CPU time."""
    count = itertools.count()
    return lambda _: (float(tick := next(count)), 2.0 * tick)


def test_times_are_split_as_defined(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ticking()
    monkeypatch.setattr(timing, "now", clock)
    monkeypatch.setattr(times, "now", clock)
    timed = run(arms(window()), rounds=2)
    dense, sparse = timed.arms[OWN].wall, timed.arms["0"].wall
    # Three layers, each read at the start and the end of its call; the sparse one at three points within, too.
    assert (dense.token, dense.attention, dense.selection, dense.rest) == (7000, 3000, 0, 4000)
    assert timed.arms[GROUPED].wall == dense
    assert (sparse.token, sparse.attention, sparse.selection, sparse.rest) == (16000, 9000, 3000, 4000)
    for arm in timed.arms.values():
        assert arm.cpu.token == 2 * arm.wall.token
        assert arm.cpu.attention == 2 * arm.wall.attention


def test_real_times_add_up() -> None:
    for arm in run(arms(window(), quest()), rounds=2).arms.values():
        for split in (arm.wall, arm.cpu):
            assert split.attention + split.selection + split.rest == pytest.approx(split.token)
        assert (arm.wall.selection == 0) == (arm.density is None)


def test_density_is_that_of_the_timed_tokens() -> None:
    timed = run(arms(window()))
    first = timed.context_tokens + timed.question_tokens + 1
    assert timed.arms["0"].density == pytest.approx(sum(6 / (first + step) for step in range(TOKENS)) / TOKENS)
    assert timed.arms[OWN].density is None


def test_timed_tokens_go_without_a_record() -> None:
    with recorded_calls(dense_adapter("llama").model) as calls:
        run(arms(window()))
    records = [one[1]["sparse_meta_data"]["statistics"] for one in passes(calls)[1:] if "sparse_meta_data" in one[1]]
    assert [record is None for record in records] == [False, True]


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_stays_registered(fails: bool) -> None:
    dense, sparse = dense_adapter("llama"), arms(window())
    cache = dense.prefill(CONTEXT)
    registries = (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS)
    before = [dict(registry) for registry in registries]
    keys, loaded = snapshot(cache.past_key_values), dense.model.config._attn_implementation
    calls = itertools.count()

    def fail(logits: torch.Tensor) -> torch.Tensor:
        if fails and next(calls) == 3 * (TOKENS + 1) + 1:  # the second token of the sparse arm's first pass
            assert ALL_ATTENTION_FUNCTIONS._local_mapping
            raise RuntimeError("broken")
        return logits

    with fixed_logits(dense.model, fail):
        if fails:
            with pytest.raises(RuntimeError, match="broken"):
                time_decoding(dense, sparse, cache, QUESTIONS[0], new_tokens=TOKENS, rounds=1)
        else:
            time_decoding(dense, sparse, cache, QUESTIONS[0], new_tokens=TOKENS, rounds=1)
    sparse["0"].close()
    assert [dict(registry) for registry in registries] == before
    assert dense.model.config._attn_implementation == loaded
    assert same_cache(snapshot(cache.past_key_values), keys)


def test_a_users_own_override_is_timed_and_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    original = ALL_ATTENTION_FUNCTIONS["sdpa"]
    mine = lambda *given, **more: called.append(1) or original(*given, **more)  # noqa: E731
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "sdpa", mine)
    run()
    assert called
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is mine


def test_eager_attention_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "now", ticking())
    eager = ModelAdapterHF(None, folder("llama"), None, {"attn_implementation": "eager"})
    timed = time_decoding(eager, {}, eager.prefill(CONTEXT), QUESTIONS[0], new_tokens=2, rounds=1)
    assert timed.arms[OWN].wall.attention == 3000
    assert timed.token_ids == run(new_tokens=2).token_ids


def test_the_window_bounds_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = dense_adapter("llama")
    filled = len(dense.prompts.prompt_ids(CONTEXT, QUESTIONS[0]))
    monkeypatch.setattr(ModelAdapterHF, "window", filled + 2)
    assert len(run(new_tokens=9).token_ids) == 2
    monkeypatch.setattr(ModelAdapterHF, "window", filled)
    with pytest.raises(DataError, match=f"window of {filled}"):
        run()


def test_wrong_use_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for option in ("new_tokens", "rounds"):
        with pytest.raises(ConfigError, match=option):
            run(**{option: 0})
    with pytest.raises(StateError, match="share one model"):
        run(arms(window(), family="qwen3"))
    monkeypatch.setattr("sah.adapters.attention_switch.is_full_attention", lambda *_: False)
    with pytest.raises(ModelError, match="no layer called the attention"):
        run(arms(EfficientAttentionConfig([TopKMaskerConfig(heavy_size=3)])))
