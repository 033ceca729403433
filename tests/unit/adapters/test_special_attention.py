"""Models whose attention is more than a softmax: learned sinks, soft caps, windows on every layer, vision towers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from sah.adapters.huggingface import ModelAdapterHF
from sah.adapters.kv_cache import new_cache
from sah.adapters.prefill import run_context
from sah.errors import ModelError
from tests.support.models import (
    CONTEXT,
    EXECUTION_CONFIGS,
    QUESTIONS,
    config_of,
    folder,
    greedy_reference,
    save_random,
)

SMALL = {
    "vocab_size": 261,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 4096,
    "initializer_range": 0.3,
    "eos_token_id": 2,
    "bos_token_id": 1,
    "pad_token_id": 0,
}
ALTERNATING = ["sliding_attention", "full_attention"] * 2
CONFIGS: dict[str, Callable[[], Any]] = {
    "gpt_oss": lambda: transformers.GptOssConfig(
        **SMALL, num_hidden_layers=4, layer_types=ALTERNATING, sliding_window=16, num_local_experts=2,
        num_experts_per_tok=1,
    ),
    "gemma2": lambda: transformers.Gemma2Config(
        **SMALL, num_hidden_layers=4, layer_types=ALTERNATING, sliding_window=16, attn_logit_softcapping=2.0,
        query_pre_attn_scalar=8,
    ),
    "mistral with windows": lambda: transformers.MistralConfig(**SMALL, num_hidden_layers=2, sliding_window=16),
    "mistral with one huge window": lambda: transformers.MistralConfig(
        **SMALL, num_hidden_layers=2, sliding_window=4096
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """A function from a name of CONFIGS to a folder with a random model of it."""
    root = tmp_path_factory.mktemp("models")

    def save(name: str) -> str:
        path = root / name.replace(" ", "-")
        return str(path) if path.exists() else save_random(CONFIGS[name](), path)

    return save


def teacher_forced(own: ModelAdapterHF, recipe_on: bool) -> torch.Tensor:
    """Logits of a dense context, then a chunk and single tokens in the adapter's own attention."""
    ids = own.prompts.prompt_ids(CONTEXT, QUESTIONS[0])
    past, logits = new_cache(own.model.config), []
    run_context(own, ids[:60], past)
    mode = own.enable_sparse_mode() if recipe_on else own.enable_dense_mode()
    with torch.no_grad(), mode:
        for a, b in [(60, 90), (90, 91), (91, 92), (92, 93)]:
            extra = {"sparse_meta_data": {}} if recipe_on else {}
            positions = torch.arange(a, b)[None]
            output = own.model(
                input_ids=torch.tensor([ids[a:b]]), position_ids=positions, past_key_values=past, **extra
            )
            logits.append(output.logits)
    return torch.cat(logits, 1)


@pytest.mark.parametrize("name", ["gpt_oss", "gemma2", "mistral with one huge window"])
@pytest.mark.parametrize("execution", EXECUTION_CONFIGS)
@pytest.mark.parametrize("recipe", ["all:causal", "all:topk-density", "all:sink+local+random"])
def test_full_density_equals_the_model_s_own_eager_attention(
    name: str, execution: str, recipe: str, saved: Callable[[str], str]
) -> None:
    own = ModelAdapterHF(config_of(recipe, execution), saved(name), model_kwargs={"attn_implementation": "eager"})
    assert (teacher_forced(own, True) - teacher_forced(own, False)).abs().max() <= 1e-4
    cache = own.prefill(CONTEXT)
    answer = own.answer(cache, QUESTIONS[0], max_new_tokens=8)
    assert answer.token_ids == greedy_reference(own, own.prompts.prompt_ids(CONTEXT, QUESTIONS[0]), 8)
    own.close()


@pytest.mark.parametrize("name", ["gpt_oss", "gemma2"])
def test_both_executions_agree(name: str, saved: Callable[[str], str]) -> None:
    outputs = []
    for execution in EXECUTION_CONFIGS:
        own = ModelAdapterHF(
            config_of("sink+local+topk", execution), saved(name), model_kwargs={"attn_implementation": "eager"}
        )
        outputs.append(teacher_forced(own, True))
    assert (outputs[0] - outputs[1]).abs().max() <= 1e-4


def test_a_model_of_windows_only_is_refused_not_run_dense(saved: Callable[[str], str]) -> None:
    own = ModelAdapterHF(config_of("topk-easy"), saved("mistral with windows"))
    with pytest.raises(ModelError, match="no full-attention layer"):
        own.answer(own.prefill(CONTEXT), QUESTIONS[0], max_new_tokens=2)


def test_a_vision_tower_keeps_its_attention(tmp_path: Path) -> None:
    """A multi-modal model: ours goes to the language model only, and all is restored."""
    text = SMALL | {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 28, "patch_size": 14}  # fmt: skip
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    config.image_token_id = 260
    transformers.Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path)
    for file in [*Path(folder("llama")).glob("*token*"), *Path(folder("llama")).glob("*.jinja")]:
        shutil.copy(file, tmp_path)
    own = ModelAdapterHF(
        config_of("topk-easy"), str(tmp_path), model_kwargs={"attn_implementation": {"vision_config": "eager"}}
    )
    configs = [own.model.config, own.model.config.text_config, own.model.config.vision_config]
    before = [c._attn_implementation for c in configs]
    assert before[2] == "eager"
    with own.enable_sparse_mode():
        assert own.model.config.text_config._attn_implementation.startswith("sah")
        assert own.model.config.vision_config._attn_implementation == "eager"
        with own.enable_dense_mode():
            assert [c._attn_implementation for c in configs] == before
    assert [c._attn_implementation for c in configs] == before
    assert own.answer(own.prefill(CONTEXT), QUESTIONS[0], max_new_tokens=3).attention_calls > 0
