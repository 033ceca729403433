"""The adapter on SmolLM2-135M-Instruct for real."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from sah.adapters.base import Request
from sah.adapters.factory import create_adapter
from sah.sparse_attention import (
    EfficientAttentionConfig,
    LocalMaskerConfig,
    RandomSamplingMaskerConfig,
    ResearchAttentionConfig,
    SinkMaskerConfig,
    TopKMaskerConfig,
)
from tests.support.models import greedy_reference, recorded_calls, same_cache, snapshot, stored_lengths

pytestmark = pytest.mark.e2e

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
NEEDLE = "One of the special magic numbers for quiet-harbor is: 7492318. "
CONTEXT = (
    "A special magic number is hidden within the following text. Make sure to memorize it. I will quiz you about the "
    "number afterwards.\n" + NOISE * 10 + NEEDLE + NOISE * 12
)
QUESTION = "\nWhat is the special magic number for quiet-harbor mentioned in the provided text?"
PREFIX = " The special magic number for quiet-harbor mentioned in the provided text is"
OTHERS = ["\nWhat color is the sky?", "\nWhat color is the grass, in one word?"]
TRICKY = ["", " ", "\n", "12345", "don", "  \n\n ", "漢字", "'", '"', "e\u0301", "\t", "..."]


@pytest.fixture(scope="module")
def dense() -> Iterator[Any]:
    adapter = create_adapter("embedded:smollm2-135m-instruct")
    yield adapter
    adapter.close()


def sparse(dense: Any, execution: Any, density: float) -> Any:
    recipe = [SinkMaskerConfig(), LocalMaskerConfig(window_size=32), TopKMaskerConfig(density=density)]
    return dense.with_sparse_attention(execution(masker_configs=recipe))


@pytest.mark.parametrize("ending", TRICKY, ids=repr)
def test_ids_are_the_template_s_own(dense: Any, ending: str) -> None:
    for start in ["\nWhat is it?", " what", "what", "678", "'t", "\u0301x", "字", "  x", ".\n"]:
        context = "Some words of context, and then" + ending
        prompt = dense.prompts.context_prompt(context)
        ids = prompt.ids + dense.prompts.question_ids(prompt, start)
        expected = dense.tokenizer.apply_chat_template(
            [{"role": "user", "content": context + start}], tokenize=True, add_generation_prompt=True, return_dict=True
        )["input_ids"]
        assert ids == expected
        assert ids[0] == 1
        header = dense.tokenizer.apply_chat_template(
            [{"role": "user", "content": "x"}], tokenize=True, add_generation_prompt=True, return_dict=True
        )["input_ids"]
        assert ids.count(1) == header.count(1), "<|im_start|> is BOS, too: only the template's own headers have it"


def test_dense_answers_equal_the_model_s_own_greedy_generation(dense: Any) -> None:
    for question in (QUESTION, *OTHERS):
        answer = dense.answer(dense.prefill(CONTEXT), question, max_new_tokens=12)
        expected = greedy_reference(dense, dense.prompts.prompt_ids(CONTEXT, question), 12)
        assert answer.token_ids == expected


def test_an_answer_ends_at_the_generation_config_s_end_token(dense: Any) -> None:
    answer = dense.answer(dense.prefill("What is the capital of"), " France?", max_new_tokens=50)
    assert answer.text == "The capital of France is Paris."
    assert answer.stop_reason == "eos"
    assert answer.token_ids[-1] == 2
    assert "<|im" not in answer.text


def test_needle_dense_and_sparse(dense: Any) -> None:
    cache = dense.prefill(CONTEXT)
    before = snapshot(cache.past_key_values)
    found = {}
    for name, adapter in {
        "dense": dense,
        "research": sparse(dense, ResearchAttentionConfig, 0.15),
        "efficient": sparse(dense, EfficientAttentionConfig, 0.15),
    }.items():
        answer = adapter.answer(cache, QUESTION, answer_prefix=PREFIX, max_new_tokens=12)
        found[name] = answer.text
        if name != "dense":
            assert answer.density == pytest.approx(0.15, abs=0.01)
            assert answer.attention_calls == 30 * len(answer.token_ids)
        assert stored_lengths(cache.past_key_values) == [cache.length] * 30
        assert same_cache(snapshot(cache.past_key_values), before)
    assert all("7492318" in text for text in found.values()), found
    drawn = dense.with_sparse_attention(
        EfficientAttentionConfig(masker_configs=[SinkMaskerConfig(), RandomSamplingMaskerConfig(density=0.1)])
    )
    assert "7492318" not in drawn.answer(cache, QUESTION, answer_prefix=PREFIX, max_new_tokens=12).text


@pytest.mark.parametrize("execution", [ResearchAttentionConfig, EfficientAttentionConfig])
def test_density_one_equals_dense(dense: Any, execution: Any) -> None:
    cache = dense.prefill(CONTEXT)
    results = []
    for adapter in (dense, sparse(dense, execution, 1.0)):
        logits: list[torch.Tensor] = []
        hook = dense.model.register_forward_hook(lambda m, a, out, kept=logits: kept.append(out.logits[0, -1].clone()))
        results.append((adapter.answer(cache, QUESTION, answer_prefix=PREFIX, max_new_tokens=8).token_ids, logits))
        hook.remove()
    assert results[0][0] == results[1][0]
    assert (torch.stack(results[0][1]) - torch.stack(results[1][1])).abs().max() <= 1e-4


def test_a_request_prefills_once_and_answers_apart(dense: Any) -> None:
    adapter = sparse(dense, EfficientAttentionConfig, 0.2)
    questions = [QUESTION, *OTHERS]
    with recorded_calls(dense.model) as calls:
        together = adapter.process_request(Request(CONTEXT, questions, max_new_tokens=6)).responses
    assert sum(call["tokens"] > 200 for call in calls) == 1
    backwards = adapter.process_request(Request(CONTEXT, questions[::-1], max_new_tokens=6)).responses
    alone = adapter.process_request(Request(CONTEXT, questions[1], max_new_tokens=6)).responses
    assert together == backwards[::-1]
    assert together[1] == alone


@pytest.mark.slow
def test_three_questions_cost_little_more_than_one(dense: Any) -> None:
    """CPU seconds of whole requests on a 2,000-token context, 16 new tokens each."""
    context = NOISE * 85

    def seconds(questions: list[str]) -> float:
        start = time.process_time()
        dense.process_request(Request(context, questions, max_new_tokens=16))
        return time.process_time() - start

    assert 1800 < len(dense.prompts.context_prompt(context).ids) < 2300
    one, three = seconds([QUESTION]), seconds([QUESTION, *OTHERS])
    assert three / one < 1.4


def test_generate_sparse_finds_the_needle(dense: Any) -> None:
    adapter = sparse(dense, EfficientAttentionConfig, 0.15)
    ids = torch.tensor([dense.prompts.prompt_ids(CONTEXT, QUESTION, PREFIX)])
    with adapter.enable_sparse_mode():
        output = adapter.generate(ids, max_new_tokens=12, do_sample=False)
    assert "7492318" in dense.tokenizer.decode(output[0, ids.shape[1] :])
