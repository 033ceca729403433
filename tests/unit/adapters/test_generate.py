"""transformers' own `generate`, dense and sparse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from sah.adapters.base import Request
from sah.adapters.huggingface import ModelAdapterHF
from sah.adapters.prompt import ContextPrompt
from sah.errors import ConfigError, DataError
from tests.support.models import (
    CONTEXT,
    FAMILIES,
    QUESTIONS,
    adapter,
    dense_adapter,
    greedy_reference,
    recorded_calls,
    stored_lengths,
)

families = pytest.mark.parametrize("family", FAMILIES)


def prompt_ids(own: ModelAdapterHF) -> torch.Tensor:
    return torch.tensor([own.prompts.prompt_ids(CONTEXT, QUESTIONS[0])])


@families
def test_dense_is_the_model_s_own_generate(family: str) -> None:
    own = adapter(family)
    ids = prompt_ids(own)
    output = own.generate(ids, max_new_tokens=12, do_sample=False)
    assert output[0, ids.shape[1] :].tolist() == greedy_reference(own, ids[0].tolist(), 12)
    with own.enable_sparse_mode(), own.enable_dense_mode():
        assert torch.equal(own.generate(ids, max_new_tokens=12, do_sample=False), output)
    batch = own.generate(ids.repeat(2, 1), max_new_tokens=4, do_sample=False, num_beams=2)
    assert batch.shape[0] == 2


@families
@pytest.mark.parametrize("recipe", ["sink+local", "sink+local+random"])
@pytest.mark.parametrize("execution", ["research", "efficient"])
def test_sparse_equals_answer_on_the_same_ids(
    family: str, recipe: str, execution: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`generate` runs the prompt's last token sparse, so the question is that token here."""
    own = adapter(family, recipe, execution)
    ids = prompt_ids(own)
    whole = ids[0].tolist()
    monkeypatch.setattr(own.prompts, "context_prompt", lambda context: ContextPrompt(context, whole[:-1]))
    try:
        cache = own.prefill(CONTEXT)
        answer = own.answer(cache, QUESTIONS[0], max_new_tokens=12)
    finally:
        monkeypatch.undo()
    assert answer.num_question_tokens == 1
    with own.enable_sparse_mode():
        output = own.generate(ids, max_new_tokens=12, do_sample=False)
    assert output[0, ids.shape[1] :].tolist() == answer.token_ids
    assert greedy_reference(own, whole, 12) != answer.token_ids, "the recipe is hard enough to tell"


@families
def test_sparse_at_full_density_is_dense(family: str) -> None:
    own = adapter(family, "all:topk-density", "efficient")
    ids = prompt_ids(own)
    with own.enable_sparse_mode():
        output = own.generate(ids, max_new_tokens=12, do_sample=False)
    assert output[0, ids.shape[1] :].tolist() == greedy_reference(own, ids[0].tolist(), 12)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
class TestOptions:
    """Options of `generate` in both modes."""

    @staticmethod
    def run(sparse: bool, **kwargs: Any) -> Any:
        own = adapter("llama", "sink+local+topk")
        if not sparse:
            return own.generate(prompt_ids(own), **kwargs)
        with own.enable_sparse_mode():
            return own.generate(prompt_ids(own), **kwargs)

    def test_sampling_follows_the_seed(self, sparse: bool) -> None:
        outputs = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            outputs.append(self.run(sparse, do_sample=True, temperature=3.0, max_new_tokens=20).tolist())
        assert outputs[0] == outputs[1]
        assert outputs[0] != outputs[2]

    def test_stop_strings(self, sparse: bool) -> None:
        tokenizer = dense_adapter().tokenizer
        start = len(prompt_ids(dense_adapter())[0])
        free = self.run(sparse, max_new_tokens=30, do_sample=False)[0, start:]
        stop = next(
            tokenizer.decode(free[i : i + 1])
            for i in range(2, len(free))
            if tokenizer.decode(free[i : i + 1]).isascii() and tokenizer.decode(free[i : i + 1]).isalnum()
        )
        stopped = self.run(sparse, max_new_tokens=30, do_sample=False, stop_strings=[stop])[0, start:]
        assert len(stopped) < len(free)
        assert tokenizer.decode(stopped).endswith(stop)
        assert free[: len(stopped)].tolist() == stopped.tolist()

    def test_a_streamer_gets_every_token(self, sparse: bool) -> None:
        class Collector:
            def __init__(self) -> None:
                self.ids: list[int] = []
                self.ended = False

            def put(self, value: torch.Tensor) -> None:
                self.ids += value.flatten().tolist()

            def end(self) -> None:
                self.ended = True

        streamer = Collector()
        output = self.run(sparse, max_new_tokens=8, do_sample=False, streamer=streamer)
        assert streamer.ids == output[0].tolist()
        assert streamer.ended

    def test_scores_and_dicts_come_through(self, sparse: bool) -> None:
        output = self.run(sparse, max_new_tokens=4, do_sample=False, return_dict_in_generate=True, output_scores=True)
        assert len(output.scores) == 4

    def test_a_prompt_may_be_a_text(self, sparse: bool) -> None:
        own = adapter("llama", "sink+local+topk")
        ids = own.tokenizer(CONTEXT, return_tensors="pt")["input_ids"]
        if sparse:
            with own.enable_sparse_mode():
                outputs = [own.generate(x, max_new_tokens=5, do_sample=False) for x in (CONTEXT, ids)]
        else:
            outputs = [own.generate(x, max_new_tokens=5, do_sample=False) for x in (CONTEXT, ids)]
        assert torch.equal(*outputs)

    def test_an_empty_prompt_is_refused(self, sparse: bool) -> None:
        own = adapter()
        with pytest.raises(DataError, match="empty"):
            if sparse:
                with own.enable_sparse_mode():
                    own.generate(torch.zeros(1, 0, dtype=torch.long))
            else:
                own.generate(torch.zeros(1, 0, dtype=torch.long))


BEAMS: dict[str, dict[str, Any]] = {
    "num_beams": {"num_beams": 2},
    "num_return_sequences": {"num_return_sequences": 2, "do_sample": True},
    "generation_config with beams": {"generation_config": GenerationConfig(num_beams=2)},
    "generation_config with sequences": {"generation_config": GenerationConfig(num_return_sequences=2, do_sample=True)},
}


@pytest.mark.parametrize("case", BEAMS)
def test_beams_are_refused_however_they_are_asked_for(case: str) -> None:
    own = adapter()
    with own.enable_sparse_mode(), pytest.raises(ConfigError, match="num_beams=1"):
        own.generate(prompt_ids(own), max_new_tokens=3, **BEAMS[case])


def test_beams_of_the_model_s_own_generation_config_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    own = adapter()
    monkeypatch.setattr(own.model.generation_config, "num_beams", 2)
    with own.enable_sparse_mode(), pytest.raises(ConfigError, match="num_beams=1"):
        own.generate(prompt_ids(own), max_new_tokens=3)


def test_a_batch_is_refused() -> None:
    own = adapter()
    with own.enable_sparse_mode(), pytest.raises(ConfigError, match="batch"):
        own.generate(prompt_ids(own).repeat(2, 1), max_new_tokens=3)


def test_all_but_the_last_token_is_prefilled_dense() -> None:
    own = adapter()
    ids = prompt_ids(own)
    with own.enable_sparse_mode(), recorded_calls(own.model.model) as calls:
        own.generate(ids, max_new_tokens=4, do_sample=False)
        assert own.model.config._attn_implementation.startswith("sah")
    assert [call["tokens"] for call in calls] == [ids.shape[1] - 1, 1, 1, 1, 1]
    assert [call["implementation"].startswith("sah") for call in calls] == [False, True, True, True, True]
    assert calls[0].get("sparse_meta_data") is None
    assert len({id(call["sparse_meta_data"]) for call in calls[1:]}) == 1


def test_a_prompt_of_one_token() -> None:
    own = adapter("llama", "all:topk-density")
    ids = torch.tensor([[1]])
    with own.enable_sparse_mode():
        output = own.generate(ids, max_new_tokens=5, do_sample=False)
    assert torch.equal(output, own.generate(ids, max_new_tokens=5, do_sample=False))


def test_generate_leaves_no_hook_and_no_trace() -> None:
    own = adapter()
    before = own.process_request(Request(CONTEXT, QUESTIONS, max_new_tokens=5)).responses
    cache = own.prefill(CONTEXT)
    with own.enable_sparse_mode():
        own.generate(prompt_ids(own), max_new_tokens=3)
        with pytest.raises(TypeError):
            own.generate(prompt_ids(own), max_new_tokens=3, streamer=object(), past_key_values=cache.past_key_values)
    assert not own.model._forward_pre_hooks
    assert stored_lengths(cache.past_key_values) == [cache.length] * 3
    assert own.process_request(Request(CONTEXT, QUESTIONS, max_new_tokens=5)).responses == before


def test_a_bare_generate_refuses_meta_data() -> None:
    """Why `adapter.generate` exists."""
    own = adapter()
    with own.enable_sparse_mode(), pytest.raises(ValueError, match="sparse_meta_data"):
        own.model.generate(prompt_ids(own), max_new_tokens=3, sparse_meta_data={})
