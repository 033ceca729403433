"""What a model call may ask of `execution=auto`: attention weights and gradients, which the fast form does not give."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sah.adapters.huggingface import ModelAdapterHF
from sah.sparse_attention import AutoAttentionConfig, LocalMaskerConfig, SinkMaskerConfig
from tests.support.models import (
    CONTEXT,
    EXECUTION_CONFIGS,
    FAMILIES,
    QUESTIONS,
    dense_adapter,
    folder,
)

RECIPE = [SinkMaskerConfig(sink_size=2), LocalMaskerConfig(window_size=4)]
IDS = torch.arange(5, 45)[None]


def auto(family: str = "llama") -> ModelAdapterHF:
    return dense_adapter(family).with_sparse_attention(AutoAttentionConfig(RECIPE))


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_those_of_the_efficient_form(family: str) -> None:
    cache = dense_adapter(family).prefill(CONTEXT)
    efficient = dense_adapter(family).with_sparse_attention(EXECUTION_CONFIGS["efficient"](RECIPE))
    answers = [own.answer(cache, QUESTIONS[0], max_new_tokens=8) for own in (auto(family), efficient)]
    assert answers[0].token_ids == answers[1].token_ids
    assert answers[0].density == answers[1].density


def decoded(own: ModelAdapterHF, **options: Any) -> Any:
    """The output of a sparse model call with one token, behind others."""
    with torch.no_grad(), own.enable_sparse_mode():
        meta: dict[Any, Any] = {}
        past = own.model(IDS, sparse_meta_data=meta, use_cache=True).past_key_values
        return own.model(torch.tensor([[7]]), past_key_values=past, sparse_meta_data=meta, **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_weights_at_decode(family: str) -> None:
    """All layers give theirs, Gemma's with windows too."""
    plain, asked = decoded(auto(family)), decoded(auto(family), output_attentions=True)
    assert plain.attentions is None
    assert len(asked.attentions) == dense_adapter(family).num_layers
    assert torch.allclose(asked.logits, plain.logits, atol=1e-5)
    weights = asked.attentions[-1]
    assert weights.shape[2:] == (1, 41)
    kept = (weights > 0).nonzero()[:, -1].unique().tolist()
    assert kept == [0, 1, 37, 38, 39, 40]


def test_weights_asked_for_in_the_model_s_config() -> None:
    """The call then carries no `output_attentions`; transformers reads the config."""
    own = ModelAdapterHF(
        AutoAttentionConfig(RECIPE),
        folder("llama"),
        model_kwargs={"attn_implementation": "eager", "output_attentions": True},
    )
    assert len(decoded(own).attentions) == 3


def test_weights_from_generate() -> None:
    own = auto()
    with own.enable_sparse_mode():
        output = own.generate(
            IDS, max_new_tokens=3, do_sample=False, return_dict_in_generate=True, output_attentions=True
        )
    assert [len(step) for step in output.attentions] == [3, 3, 3]
    assert all(int((weights > 0).sum(-1).max()) == 6 for step in output.attentions for weights in step)


def test_gradients_flow_and_equal_those_of_the_plain_form() -> None:
    gradients = []
    for own in (auto(), dense_adapter().with_sparse_attention(EXECUTION_CONFIGS["research"](RECIPE))):
        embedded = own.model.get_input_embeddings()(IDS).detach().requires_grad_(True)
        with own.enable_sparse_mode():
            own.model(inputs_embeds=embedded, sparse_meta_data={}).logits.square().mean().backward()
        gradients.append(embedded.grad)
    own.model.zero_grad()
    assert gradients[0].abs().max() > 0
    assert torch.equal(*gradients)
