"""One context, many questions: prefilled once, answered apart, and cut back to exactly the context."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from sah.adapters.base import Request, RequestResponse
from sah.errors import ConfigError, DataError, StateError
from sah.sparse_attention import (
    EfficientAttentionConfig,
    LocalMaskerConfig,
    QuestTopKMaskerConfig,
    ResearchAttentionConfig,
)
from tests.support.models import (
    CONTEXT,
    EXECUTION_CONFIGS,
    FAMILIES,
    QUESTIONS,
    adapter,
    dense_adapter,
    recorded_calls,
    same_cache,
    snapshot,
    stored_lengths,
)

families = pytest.mark.parametrize("family", FAMILIES)
RECIPE_NAMES = ["sink+local+topk", "sink+local+random", None]


def test_a_string_gives_a_string_and_a_list_a_list() -> None:
    sparse = adapter()
    single = sparse.process_request(Request(CONTEXT, QUESTIONS[0], max_new_tokens=6))
    assert isinstance(single, RequestResponse)
    assert isinstance(single.responses, str)
    listed = sparse.process_request(Request(CONTEXT, [QUESTIONS[0]], max_new_tokens=6))
    assert listed.responses == [single.responses]
    several = sparse.process_request(Request(CONTEXT, QUESTIONS, max_new_tokens=6))
    assert isinstance(several.responses, list)
    assert len(several.responses) == len(QUESTIONS)
    assert several.responses[0] == single.responses
    assert sparse.process_request(Request(CONTEXT, [])).responses == []


def test_default_number_of_new_tokens() -> None:
    assert Request(CONTEXT, QUESTIONS).max_new_tokens == 50
    dense = adapter(recipe=None)
    with recorded_calls(dense.model) as calls:
        answer = dense.answer(dense.prefill(CONTEXT), QUESTIONS[0])
    assert len(answer.token_ids) == 50 or answer.stop_reason == "eos"
    assert len(calls) == 1 + len(answer.token_ids)


@families
@pytest.mark.parametrize("recipe", RECIPE_NAMES, ids=str)
def test_answers_do_not_depend_on_the_other_questions(family: str, recipe: str | None) -> None:
    sparse = adapter(family, recipe)
    alone = {q: sparse.process_request(Request(CONTEXT, q, max_new_tokens=6)).responses for q in QUESTIONS}
    for order in (QUESTIONS, QUESTIONS[::-1]):
        together = sparse.process_request(Request(CONTEXT, list(order), max_new_tokens=6))
        assert together.responses == [alone[q] for q in order]
    twice = sparse.process_request(Request(CONTEXT, [QUESTIONS[0], QUESTIONS[0]], max_new_tokens=6))
    assert twice.responses == [alone[QUESTIONS[0]]] * 2


@families
@pytest.mark.parametrize("recipe", ["sink+local+topk", None], ids=str)
def test_the_context_goes_through_once_dense_and_questions_once_each(family: str, recipe: str | None) -> None:
    sparse = adapter(family, recipe)
    prompt = sparse.prompts.context_prompt(CONTEXT)
    with recorded_calls(sparse.model) as calls:
        sparse.process_request(Request(CONTEXT, QUESTIONS, max_new_tokens=4))
    context, *rest = calls
    assert context["ids"] == prompt.ids
    assert not context["implementation"].startswith("sah")
    assert context.get("sparse_meta_data") is None
    assert context["logits_to_keep"] in (0, 1)
    chunks = [call for call in rest if call["tokens"] > 1]
    assert [c["ids"] for c in chunks] == [sparse.prompts.question_ids(prompt, q) for q in QUESTIONS]
    position = 0
    for call in rest:
        positions = call["position_ids"][0].tolist()
        position = len(prompt.ids) if call["tokens"] > 1 else position
        assert positions == list(range(position, position + call["tokens"]))
        position += call["tokens"]
        assert call["implementation"].startswith("sah") == (recipe is not None)


@families
def test_each_question_has_its_own_meta_data_in_each_of_its_calls(family: str) -> None:
    sparse = adapter(family)
    with recorded_calls(sparse.model) as calls:
        sparse.process_request(Request(CONTEXT, QUESTIONS, max_new_tokens=4))
    groups: list[list[Any]] = []
    for call in calls[1:]:
        if call["tokens"] > 1:
            groups.append([])
        groups[-1].append(call["sparse_meta_data"])
    assert len(groups) == len(QUESTIONS)
    for group in groups:
        assert all(meta is group[0] for meta in group)
    assert len({id(group[0]) for group in groups}) == len(QUESTIONS)


@families
@pytest.mark.parametrize("words", [2, 12, 150], ids=lambda n: f"{n}words")
@pytest.mark.parametrize("recipe", ["sink+local+topk", None], ids=str)
def test_the_cache_is_exactly_the_context_after_every_question(family: str, words: int, recipe: str | None) -> None:
    """Gemma's window is 32 tokens: contexts below, near and far beyond it."""
    sparse = adapter(family, recipe, "efficient")
    context = " ".join(f"w{i}" for i in range(words))
    cache = sparse.prefill(context)
    before = snapshot(cache.past_key_values)
    assert cache.length == len(cache.prompt.ids)
    for question, tokens in zip(["\n" + "long " * 30, *QUESTIONS], [40, 1, 5, 2], strict=True):
        answer = sparse.answer(cache, question, max_new_tokens=tokens)
        assert stored_lengths(cache.past_key_values) == [cache.length] * len(cache.past_key_values.layers)
        assert same_cache(snapshot(cache.past_key_values), before)
        assert answer.kv_len == cache.length + answer.num_question_tokens + len(answer.token_ids) - 1
    assert answer.token_ids == sparse.answer(sparse.prefill(context), QUESTIONS[-1], max_new_tokens=2).token_ids


@pytest.mark.parametrize("execution", EXECUTION_CONFIGS)
def test_the_cache_is_exactly_the_context_after_an_error(execution: str) -> None:
    """A recipe that fails inside the first layer has already written to that layer's cache only."""
    nothing = EXECUTION_CONFIGS[execution](masker_configs=[LocalMaskerConfig(window_size=0)])
    broken = dense_adapter().with_sparse_attention(nothing)
    cache = broken.prefill(CONTEXT)
    before = snapshot(cache.past_key_values)
    with pytest.raises(ConfigError, match="keeps no key"):
        broken.answer(cache, QUESTIONS[0], max_new_tokens=3)
    assert stored_lengths(cache.past_key_values) == [cache.length] * 3
    assert same_cache(snapshot(cache.past_key_values), before)
    good = dense_adapter()
    assert good.answer(cache, QUESTIONS[0], max_new_tokens=5).token_ids == (
        good.answer(good.prefill(CONTEXT), QUESTIONS[0], max_new_tokens=5).token_ids
    )


@families
@pytest.mark.parametrize("step", [1, 4])
def test_the_cache_is_exactly_the_context_after_an_interruption(family: str, step: int) -> None:
    """Ctrl-C before the last layer of some model call; Gemma's sliding layers have grown by then."""
    sparse = adapter(family)
    cache = sparse.prefill(CONTEXT)
    before = snapshot(cache.past_key_values)
    calls = itertools.count(1)

    def interrupt(*_: Any) -> None:
        if next(calls) == step:
            raise KeyboardInterrupt

    hook = sparse.model.model.layers[-1].register_forward_pre_hook(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            sparse.answer(cache, QUESTIONS[0], max_new_tokens=8)
    finally:
        hook.remove()
    assert stored_lengths(cache.past_key_values) == [cache.length] * len(cache.past_key_values.layers)
    assert same_cache(snapshot(cache.past_key_values), before)


def test_settings_share_one_prefill() -> None:
    """A cache prefilled by one adapter serves every other adapter of the same model."""
    cache = dense_adapter().prefill(CONTEXT)
    for recipe in ("topk-hard", None, "sink+local", "sink+local+random"):
        own = adapter("llama", recipe)
        shared = own.answer(cache, QUESTIONS[1], max_new_tokens=6)
        assert shared.token_ids == own.answer(own.prefill(CONTEXT), QUESTIONS[1], max_new_tokens=6).token_ids


def test_what_an_answer_tells() -> None:
    for config, layers in ((EfficientAttentionConfig, 3), (ResearchAttentionConfig, 3)):
        recipe = config(masker_configs=[LocalMaskerConfig(window_size=4)])
        sparse = dense_adapter().with_sparse_attention(recipe)
        cache = sparse.prefill(CONTEXT)
        answer = sparse.answer(cache, QUESTIONS[0], max_new_tokens=5)
        n, steps = answer.num_question_tokens, len(answer.token_ids) - 1
        assert answer.attention_calls == layers * (1 + steps)
        lengths = [cache.length + i + 1 for i in range(n + steps)]
        shares = [4 / length for length in lengths]
        assert answer.density == pytest.approx(sum(shares) / len(shares))
        assert answer.density_by_phase["question"] == pytest.approx(sum(shares[:n]) / n)
        assert answer.density_by_phase["decode"] == pytest.approx(sum(shares[n:]) / steps)
        assert answer.question_seconds > 0
        assert answer.decode_seconds > 0
        assert answer.state_seconds == 0
    dense = dense_adapter().answer(cache, QUESTIONS[0], max_new_tokens=5)
    assert (dense.density, dense.attention_calls, dense.state_seconds) == (None, 0, None)


def test_the_first_answer_over_a_context_tells_what_its_state_took() -> None:
    cache = dense_adapter().prefill(CONTEXT)
    for size in (4, 8):
        config = EfficientAttentionConfig(masker_configs=[QuestTopKMaskerConfig(heavy_size=8, page_size=size)])
        own = dense_adapter().with_sparse_attention(config)
        first, second = (own.answer(cache, question, max_new_tokens=2).state_seconds for question in QUESTIONS[:2])
        assert first is not None and first > 0 == second


def test_an_answer_prefix_follows_the_assistant_s_header() -> None:
    sparse = adapter()
    prefix = "The number is"
    with recorded_calls(sparse.model) as calls:
        answer = sparse.process_request(
            Request(CONTEXT, QUESTIONS[0], answer_prefix=prefix, max_new_tokens=3)
        ).responses
    ids = calls[0]["ids"] + calls[1]["ids"]
    template = sparse.tokenizer.apply_chat_template(
        [{"role": "user", "content": CONTEXT + QUESTIONS[0]}], tokenize=False, add_generation_prompt=True
    )
    assert ids == sparse.tokenizer(template + prefix, add_special_tokens=False)["input_ids"]
    assert not answer.startswith(prefix)


@pytest.mark.parametrize("text", ["", "  \n", None, 3])
def test_empty_texts_are_refused(text: Any) -> None:
    with pytest.raises(DataError, match="context"):
        Request(text, QUESTIONS)
    with pytest.raises(DataError, match=r"questions\[1\]"):
        Request(CONTEXT, [QUESTIONS[0], text])
    with pytest.raises(DataError, match="context"):
        dense_adapter().prefill(text)
    cache = dense_adapter().prefill(CONTEXT)
    with pytest.raises(DataError, match="question"):
        dense_adapter().answer(cache, text)
    assert stored_lengths(cache.past_key_values) == [cache.length] * 3


@pytest.mark.parametrize("value", [0, -1])
def test_no_new_token_is_refused(value: int) -> None:
    with pytest.raises(ConfigError, match="max_new_tokens"):
        dense_adapter().answer(dense_adapter().prefill(CONTEXT), QUESTIONS[0], max_new_tokens=value)


def test_a_context_beyond_the_window_is_refused() -> None:
    dense = dense_adapter()
    with pytest.raises(DataError, match="8192") as caught, recorded_calls(dense.model) as calls:
        dense.process_request(Request("word " * 2000, QUESTIONS))
    assert calls == []
    assert "context" in str(caught.value).lower()
    assert str(len(dense.prompts.context_prompt("word " * 2000).ids)) in str(caught.value)


def test_context_question_and_new_tokens_must_fit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = dense_adapter()
    cache = dense.prefill(CONTEXT)
    ids = dense.prompts.question_ids(cache.prompt, QUESTIONS[0])
    monkeypatch.setattr(dense.model.config, "max_position_embeddings", cache.length + len(ids) + 7)
    dense.answer(cache, QUESTIONS[0], max_new_tokens=7)
    with recorded_calls(dense.model) as calls, pytest.raises(DataError, match="new tokens") as caught:
        dense.answer(cache, QUESTIONS[0], max_new_tokens=8)
    assert calls == []
    for number in (cache.length + len(ids) + 8, cache.length + len(ids) + 7):
        assert str(number) in str(caught.value)


def test_a_cache_of_another_model_is_refused() -> None:
    cache = dense_adapter("llama").prefill("Some words that make a context.")
    with pytest.raises(StateError, match="prefilled by"):
        dense_adapter("qwen2").answer(cache, "\nA question?")


def test_what_questions_see_of_the_context_state_is_read_only() -> None:
    state = dense_adapter("llama")._meta_data({"layer": 1}, "lane")["context_state"]
    assert state["layer"] == 1
    with pytest.raises(TypeError):
        state["layer"] = 2
