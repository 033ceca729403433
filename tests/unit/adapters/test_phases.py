"""Where sparsity applies: the phases that run sparse, and the layers that stay dense."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sah.adapters.huggingface import ModelAdapterHF
from sah.adapters.kv_cache import new_cache
from sah.errors import ConfigError, ModelError
from sah.sparse_attention import (
    CausalMaskerConfig,
    LocalMaskerConfig,
    MagicPigConfig,
    SinkMaskerConfig,
    TopKMaskerConfig,
)
from sah.sparse_attention.mask import Mask
from sah.sparse_attention.research import ResearchAttention
from tests.support.models import (
    CONTEXT,
    EXECUTION_CONFIGS,
    FAMILIES,
    QUESTIONS,
    dense_adapter,
    end_tokens,
    fixed_logits,
    folder,
    recorded_calls,
    same_cache,
    snapshot,
    stored_lengths,
)

families = pytest.mark.parametrize("family", FAMILIES)
executions = pytest.mark.parametrize("execution", EXECUTION_CONFIGS)
DECODE_ONLY = {"phases": ["decode"]}


def hard() -> list[Any]:
    """A recipe whose answers differ from dense ones."""
    return [SinkMaskerConfig(sink_size=2), LocalMaskerConfig(window_size=4)]


def sparse(
    family: str = "llama", recipe: list[Any] | None = None, execution: str = "efficient", **place: Any
) -> ModelAdapterHF:
    """An adapter whose sparsity applies at a place."""
    config = EXECUTION_CONFIGS[execution](masker_configs=recipe or hard(), **place)
    return dense_adapter(family).with_sparse_attention(config)


def by_hand(own: ModelAdapterHF, question: str, steps: int) -> list[int]:
    """The whole prompt dense, what follows sparse: written out without the engine."""
    ids = own.prompts.prompt_ids(CONTEXT, question)
    past, meta = new_cache(own.model.config), {}
    with torch.no_grad():
        logits = own.model(torch.tensor([ids]), past_key_values=past, use_cache=True).logits
        generated = [int(logits[0, -1].argmax())]
        with own.enable_sparse_mode():
            while len(generated) < steps:
                logits = own.model(
                    torch.tensor([generated[-1:]]), past_key_values=past, use_cache=True, sparse_meta_data=meta
                ).logits
                generated.append(int(logits[0, -1].argmax()))
    return generated


@families
def test_decode_only_runs_the_question_dense(family: str) -> None:
    own = sparse(family, **DECODE_ONLY)
    cache = own.prefill(CONTEXT)
    before = snapshot(cache.past_key_values)
    with recorded_calls(own.model) as calls:
        answer = own.answer(cache, QUESTIONS[0], max_new_tokens=6)
    assert [call["implementation"].startswith("sah") for call in calls] == [False, True, True, True, True, True]
    assert calls[0].get("sparse_meta_data") is None
    assert len({id(call["sparse_meta_data"]) for call in calls[1:]}) == 1
    assert same_cache(snapshot(cache.past_key_values), before)
    assert answer.density_by_phase["question"] is None
    assert answer.density == answer.density_by_phase["decode"]
    full = len(answer.sparse_layers)
    assert answer.attention_calls == 5 * full > 0
    shares = [6 / (cache.length + answer.num_question_tokens + step) for step in range(1, 6)]
    assert answer.density == pytest.approx(sum(shares) / 5)


@families
@executions
def test_decode_only_equals_the_same_steps_by_hand(family: str, execution: str) -> None:
    own = sparse(family, [*hard(), TopKMaskerConfig(heavy_size=3)], execution, **DECODE_ONLY)
    for question in QUESTIONS:
        expected = by_hand(own, question, 8)
        answer = own.answer(own.prefill(CONTEXT), question, max_new_tokens=8)
        assert answer.token_ids == expected[: len(answer.token_ids)]


def test_the_context_ends_where_it_does_though_the_question_ran_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a method derives from the context (here a mean) leaves the question out, in both executions."""
    record = ResearchAttention.record_density
    kept: list[torch.Tensor] = []

    def keep(self: ResearchAttention, mask: Mask, *more: Any) -> None:
        kept.append(mask.to_dense())
        record(self, mask, *more)

    monkeypatch.setattr(ResearchAttention, "record_density", keep)
    cache = dense_adapter().prefill(CONTEXT)
    for question in QUESTIONS:
        answers, masks = [], []
        for execution in EXECUTION_CONFIGS:
            own = sparse(recipe=[MagicPigConfig(lsh_l=40, lsh_k=4)], execution=execution, **DECODE_ONLY)
            kept.clear()
            answers.append(own.answer(cache, question, max_new_tokens=8))
            masks.append(list(kept))
        assert answers[0].token_ids == answers[1].token_ids
        assert answers[0].density == pytest.approx(answers[1].density)
        assert len(masks[0]) == answers[0].attention_calls > 0
        assert all(torch.equal(a > 0, b > 0) for a, b in zip(*masks, strict=True))


def test_the_phases_differ_in_what_they_do() -> None:
    cache = dense_adapter().prefill(CONTEXT)
    dense, decode, both = (
        own.answer(cache, QUESTIONS[0], max_new_tokens=12)
        for own in (dense_adapter(), sparse(**DECODE_ONLY), sparse(phases=["question", "decode"]))
    )
    assert decode.token_ids[0] == dense.token_ids[0] != both.token_ids[0]
    assert decode.token_ids != dense.token_ids
    assert None not in both.density_by_phase.values()


@pytest.mark.parametrize("ends", ["limit", "end token"])
def test_an_answer_of_one_token_decodes_nothing_and_is_no_error(ends: str) -> None:
    own = sparse(**DECODE_ONLY)
    cache = own.prefill(CONTEXT)
    first = own.answer(cache, QUESTIONS[0], max_new_tokens=2).token_ids[0]
    with end_tokens(own.model, first if ends == "end token" else None):
        answer = own.answer(cache, QUESTIONS[0], max_new_tokens=1 if ends == "limit" else 9)
    assert answer.token_ids == [first]
    assert (answer.density, answer.attention_calls, answer.sparse_layers) == (None, 0, ())
    assert answer.density_by_phase == {"question": None, "decode": None}
    assert stored_lengths(cache.past_key_values) == [cache.length] * 3


def test_a_sparse_answer_of_one_token_still_proves_itself() -> None:
    answer = sparse().answer(dense_adapter().prefill(CONTEXT), QUESTIONS[0], max_new_tokens=1)
    assert answer.attention_calls == 3
    assert answer.density_by_phase["decode"] is None


def test_decode_only_that_never_calls_the_attention_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    own = sparse(**DECODE_ONLY)
    monkeypatch.setattr("sah.adapters.attention_switch.is_full_attention", lambda *_: False)
    with pytest.raises(ModelError, match="without calling the sparse attention once"):
        own.answer(own.prefill(CONTEXT), QUESTIONS[0], max_new_tokens=3)


def test_an_error_in_the_dense_question_restores_model_and_cache() -> None:
    own = sparse(**DECODE_ONLY)
    cache = own.prefill(CONTEXT)
    before = own.model.config._attn_implementation

    def fail(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("broken")

    with fixed_logits(own.model, fail), pytest.raises(RuntimeError, match="broken"):
        own.answer(cache, QUESTIONS[0])
    assert own.model.config._attn_implementation == before
    assert stored_lengths(cache.past_key_values) == [cache.length] * 3


def test_questions_do_not_depend_on_one_another_when_only_decoding_is_sparse() -> None:
    own = sparse(**DECODE_ONLY)
    cache = own.prefill(CONTEXT)
    alone = [own.answer(own.prefill(CONTEXT), q, max_new_tokens=8).token_ids for q in QUESTIONS]
    for order in ([0, 1, 2], [2, 0, 1]):
        assert [own.answer(cache, QUESTIONS[i], max_new_tokens=8).token_ids for i in order] == [alone[i] for i in order]


@pytest.mark.parametrize("phases", [["question", "decode"], ["decode"]], ids="+".join)
def test_generate_runs_the_prompts_last_token_by_the_phases(phases: list[str]) -> None:
    own = sparse(phases=phases)
    ids = torch.tensor([own.prompts.prompt_ids(CONTEXT, QUESTIONS[0])])
    with own.enable_sparse_mode(), recorded_calls(own.model.model) as calls:
        own.generate(ids, max_new_tokens=3, do_sample=False)
    assert [call["tokens"] for call in calls] == [ids.shape[1] - 1, 1, 1, 1]
    assert [call["implementation"].startswith("sah") for call in calls] == [False, "question" in phases, True, True]


def test_generate_of_one_token_may_run_dense_altogether() -> None:
    own = sparse(**DECODE_ONLY)
    ids = torch.tensor([own.prompts.prompt_ids(CONTEXT, QUESTIONS[0])])
    with own.enable_sparse_mode():
        sparse_ids = own.generate(ids, max_new_tokens=1, do_sample=False)
    assert torch.equal(sparse_ids, dense_adapter().generate(ids, max_new_tokens=1, do_sample=False))


def test_generate_refuses_decoding_that_takes_tokens_back() -> None:
    own = sparse()
    ids = torch.tensor([own.prompts.prompt_ids(CONTEXT, QUESTIONS[0])])
    with own.enable_sparse_mode(), pytest.raises(ConfigError, match="prompt_lookup_num_tokens takes guessed tokens"):
        own.generate(ids, max_new_tokens=3, prompt_lookup_num_tokens=2)


@executions
def test_dense_layers_are_dense_and_count_with_density_one(execution: str) -> None:
    """A layer that is dense equals one in which a masker keeps everything."""
    recipe = [TopKMaskerConfig(density=0.2)]
    apart = [CausalMaskerConfig(layers=[0, 2]), TopKMaskerConfig(density=0.2, layers=1)]
    cache = dense_adapter().prefill(CONTEXT)
    own, twin, everywhere = (
        adapter.answer(cache, QUESTIONS[0], max_new_tokens=8)
        for adapter in (
            sparse(recipe=recipe, execution=execution, dense_layers=[0, 2]),
            sparse(recipe=apart, execution=execution),
            sparse(recipe=recipe, execution=execution),
        )
    )
    assert own.token_ids == twin.token_ids != everywhere.token_ids
    assert own.sparse_layers == (1,)
    assert twin.sparse_layers == (0, 1, 2)
    assert own.attention_calls == len(own.token_ids)
    assert everywhere.density is not None
    assert own.density == pytest.approx(twin.density) == pytest.approx((2 + everywhere.density) / 3, abs=2e-3)


def test_dense_layers_may_be_written_in_several_ways() -> None:
    cache = dense_adapter().prefill(CONTEXT)
    forms: list[Any] = [[1, 2], "1-2", "1-", "2,1"]
    answers = [sparse(dense_layers=form).answer(cache, QUESTIONS[1], max_new_tokens=6) for form in forms]
    assert all((x.token_ids, x.sparse_layers) == (answers[0].token_ids, (0,)) for x in answers)


def test_layers_and_phases_together() -> None:
    own = sparse(dense_layers=[0], **DECODE_ONLY)
    answer = own.answer(own.prefill(CONTEXT), QUESTIONS[0], max_new_tokens=5)
    assert answer.sparse_layers == (1, 2)
    assert answer.attention_calls == 2 * (len(answer.token_ids) - 1)


def test_full_attention_layers_that_are_all_dense_are_an_error() -> None:
    """Gemma's only full-attention layer of six is the last one; the others keep their window and never call us."""
    own = sparse("gemma3", dense_layers=[5])
    with pytest.raises(ModelError, match="outside dense_layers"):
        own.answer(own.prefill(CONTEXT), QUESTIONS[0], max_new_tokens=3)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ({"dense_layers": [3]}, r"dense_layers=\[3\].*0 to 2"),
        ({"dense_layers": "0-"}, "masker=dense"),
        ({"recipe": [SinkMaskerConfig(layers="7-")]}, r"masker\.sink\.layers='7-'.*0 to 2"),
        ({"recipe": [SinkMaskerConfig(layers="1-")]}, "No masker works in layer 0 "),
    ],
)
def test_layers_that_the_model_lacks_are_refused_when_the_adapter_is_made(place: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sparse(**place)
    recipe = place.pop("recipe", hard())
    with pytest.raises(ConfigError, match=message):
        ModelAdapterHF(EXECUTION_CONFIGS["research"](masker_configs=recipe, **place), folder("llama"))
