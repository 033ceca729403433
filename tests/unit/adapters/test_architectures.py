"""Six architectures: density 1.0 is dense, dense is the model's own greedy generation, windows stay windows."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sah.adapters.huggingface import ModelAdapterHF
from sah.adapters.kv_cache import new_cache
from sah.adapters.prefill import run_context
from sah.sparse_attention import LocalMaskerConfig, ResearchAttentionConfig
from tests.support.models import (
    CONTEXT,
    EXECUTION_CONFIGS,
    FAMILIES,
    QUESTIONS,
    adapter,
    dense_adapter,
    end_tokens,
    fixed_logits,
    greedy_reference,
    recorded_calls,
)

families = pytest.mark.parametrize("family", FAMILIES)
executions = pytest.mark.parametrize("execution", EXECUTION_CONFIGS)
NEW_TOKENS = 10
FULL = ["all:causal", "all:streaming_llm-density", "all:topk-density", "all:topp-1", "all:sink+local+random"]


def answered(own: ModelAdapterHF, question: str = QUESTIONS[0]) -> tuple[list[int], torch.Tensor]:
    """Token ids of an answer, and the logits it came from."""
    cache = own.prefill(CONTEXT)
    seen: list[torch.Tensor] = []

    def keep(logits: torch.Tensor) -> torch.Tensor:
        seen.append(logits[0, -1].clone())
        return logits

    with fixed_logits(own.model, keep):
        answer = own.answer(cache, question, max_new_tokens=NEW_TOKENS)
    return answer.token_ids, torch.stack(seen)


@families
@executions
@pytest.mark.parametrize("recipe", FULL)
def test_density_one_equals_dense(family: str, execution: str, recipe: str) -> None:
    ids, logits = answered(adapter(family, recipe, execution))
    dense_ids, dense_logits = answered(dense_adapter(family))
    assert ids == dense_ids
    assert (logits - dense_logits).abs().max() <= 1e-4


@families
@executions
def test_a_hard_recipe_differs_from_dense(family: str, execution: str) -> None:
    """Else the tests above would prove nothing."""
    _, logits = answered(adapter(family, "local-hard", execution))
    _, dense_logits = answered(dense_adapter(family))
    assert (logits[0] - dense_logits[0]).abs().max() > 0.05


@families
@pytest.mark.parametrize("recipe", ["sink+local+topk", "topk+random", "topp-easy"])
def test_both_executions_agree(family: str, recipe: str) -> None:
    plain_ids, plain = answered(adapter(family, recipe, "research"))
    fast_ids, fast = answered(adapter(family, recipe, "efficient"))
    assert plain_ids == fast_ids
    assert (plain - fast).abs().max() <= 1e-4


@families
@pytest.mark.parametrize("words", [3, 60])
def test_dense_answers_equal_the_model_s_own_greedy_generation(family: str, words: int) -> None:
    own = dense_adapter(family)
    context = " ".join(f"w{i}" for i in range(words))
    for question in QUESTIONS:
        answer = own.answer(own.prefill(context), question, max_new_tokens=24)
        expected = greedy_reference(own, own.prompts.prompt_ids(context, question), 24)
        assert answer.token_ids == expected
        assert answer.text == own.tokenizer.decode(expected, skip_special_tokens=True)


@families
@pytest.mark.parametrize("recipe", ["sink+local+topk", None], ids=str)
def test_any_listed_end_token_ends_the_answer(family: str, recipe: str | None) -> None:
    own = adapter(family, recipe)
    cache = own.prefill(CONTEXT)
    with end_tokens(own.model, None), end_tokens(own.model, [10**6]):
        free = own.answer(cache, QUESTIONS[0], max_new_tokens=12).token_ids
    assert len(free) == 12
    for at in (0, 1, 6):
        end = free[at]
        expected = free[: free.index(end) + 1]
        for value in (end, [10**6, end], [end]):
            with end_tokens(own.model, value):
                answer = own.answer(cache, QUESTIONS[0], max_new_tokens=12)
                assert answer.token_ids == expected
                assert answer.stop_reason == "eos"
                if recipe is None:
                    ids = own.prompts.prompt_ids(CONTEXT, QUESTIONS[0])
                    assert greedy_reference(own, ids, 12) == expected


def test_an_end_token_that_comes_first_ends_the_answer_and_is_not_text() -> None:
    own = adapter()
    end = own.model.generation_config.eos_token_id
    end = end if isinstance(end, int) else end[0]

    def end_first(logits: torch.Tensor) -> torch.Tensor:
        changed = logits.clone()
        changed[..., end] = 1e9
        return changed

    cache = own.prefill(CONTEXT)
    with fixed_logits(own.model, end_first), recorded_calls(own.model) as calls:
        answer = own.answer(cache, QUESTIONS[0])
    assert (answer.token_ids, answer.text, answer.stop_reason) == ([end], "", "eos")
    assert len(calls) == 1


def test_an_answer_that_reaches_its_limit_says_so() -> None:
    own = adapter()
    with end_tokens(own.model, [10**6]):
        answer = own.answer(own.prefill(CONTEXT), QUESTIONS[0], max_new_tokens=1)
    assert len(answer.token_ids) == 1
    assert answer.stop_reason == "length"
    assert answer.decode_ms_per_token is None


def sparse_layers(own: ModelAdapterHF, monkeypatch: pytest.MonkeyPatch) -> set[int]:
    called: set[int] = set()
    real = own.sparse_attention.custom_attention

    def look(*args: Any, **kwargs: Any) -> Any:
        called.add(kwargs["layer_idx"])
        return real(*args, **kwargs)

    monkeypatch.setattr(own.sparse_attention, "custom_attention", look)
    own.answer(own.prefill(CONTEXT), QUESTIONS[0], max_new_tokens=3)
    return called


@families
def test_sparse_attention_applies_to_full_attention_layers(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = adapter(family)
    config = own.model.config
    types = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    expected = {i for i, kind in enumerate(types) if kind == "full_attention"}
    assert sparse_layers(own, monkeypatch) == expected
    if family == "gemma3":
        assert 0 < len(expected) < config.num_hidden_layers


def test_sliding_layers_compute_what_they_did(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs of Gemma's sliding layers in a sparse run against a dense one, given the same inputs."""
    own = dense_adapter("gemma3").with_sparse_attention(
        ResearchAttentionConfig(masker_configs=[LocalMaskerConfig(window_size=1)])
    )
    outputs: dict[str, dict[int, list[torch.Tensor]]] = {"dense": {}, "sparse": {}}
    for mode in outputs:
        cache = own.prefill(CONTEXT)
        hooks = [
            layer.self_attn.register_forward_hook(
                lambda module, args, output, mode=mode, i=i: outputs[mode].setdefault(i, []).append(output[0])
            )
            for i, layer in enumerate(own.model.model.layers)
        ]
        runner = own if mode == "sparse" else own.with_sparse_attention(None)
        with fixed_logits(own.model, torch.zeros_like):
            runner.answer(
                cache, QUESTIONS[0] + " and a long tail beyond the window of thirty-two tokens", max_new_tokens=4
            )
        for hook in hooks:
            hook.remove()
    for i in range(5):
        for dense, sparse in zip(outputs["dense"][i], outputs["sparse"][i], strict=True):
            assert torch.allclose(dense, sparse, atol=1e-5)
    assert not torch.allclose(outputs["dense"][5][0], outputs["sparse"][5][0], atol=1e-2)


@families
@executions
def test_a_question_chunk_equals_token_by_token(family: str, execution: str) -> None:
    own = adapter(family, "sink+local+topk", execution)
    ids = own.prompts.prompt_ids(CONTEXT, QUESTIONS[0])
    split = len(ids) - 9
    results = []
    for steps in ([(split, len(ids))], [(i, i + 1) for i in range(split, len(ids))]):
        past = new_cache(own.model.config)
        run_context(own, ids[:split], past)
        logits = []
        with torch.no_grad(), own.enable_sparse_mode():
            for a, b in steps:
                output = own.model(
                    input_ids=torch.tensor([ids[a:b]]),
                    position_ids=torch.arange(a, b)[None],
                    past_key_values=past,
                    sparse_meta_data={},
                )
                logits.append(output.logits)
        results.append(torch.cat(logits, 1))
    assert (results[0] - results[1]).abs().max() <= 1e-4
