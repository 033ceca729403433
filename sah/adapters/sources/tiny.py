"""Tiny models with random, seeded weights in the shapes of six architectures, for tests and smoke runs.

They answer nothing sensibly, but they are real models of `transformers`: grouped queries, rotary positions,
query and key norms, sliding-window layers. Their weights are wide enough that greedy answers vary with the
prompt.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sah.adapters.sources.base import ModelSource
from sah.adapters.sources.tiny_tokenizer import BOS_ID, EOS_ID, PAD_ID, SPECIAL_TOKENS, VOCAB_SIZE

if TYPE_CHECKING:
    from transformers import PretrainedConfig

SEED = 0
SLIDING_WINDOW = 32
RECIPE = 1
"""Raised when the code below changes what it writes, so that an old folder is not taken for a new one."""

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
    "initializer_range": 0.2,
    "bos_token_id": BOS_ID,
    "eos_token_id": EOS_ID,
    "pad_token_id": PAD_ID,
    "tie_word_embeddings": False,
}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {"num_hidden_layers": 3}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 32}),
    "mistral": ("MistralConfig", {"sliding_window": None}),
    "phi3": ("Phi3Config", {"sliding_window": None}),
    "gemma3": (
        "Gemma3TextConfig",
        {
            "num_hidden_layers": 6,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": SLIDING_WINDOW,
            "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
        },
    ),
}
"""Configuration class in `transformers` and what differs from the common shape, by family."""


def family_config(family: str) -> PretrainedConfig:
    """Build a family's configuration.

    Args:
        family: A key of `FAMILIES`.

    Returns:
        The configuration, float32.
    """
    import transformers

    class_name, changes = FAMILIES[family]
    config: PretrainedConfig = getattr(transformers, class_name)(**{**_SHAPE, **changes}, dtype="float32")
    return config


def _builder(family: str) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        """Write the family's checkpoint into `folder`."""
        import torch
        from transformers import AutoModelForCausalLM

        from sah.adapters.sources.quiet import quiet
        from sah.adapters.sources.tiny_tokenizer import build_tokenizer

        with torch.random.fork_rng(devices=[]), quiet():
            torch.manual_seed(SEED)
            model: Any = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                family_config(family)
            )
            model.save_pretrained(folder)
        build_tokenizer().save_pretrained(folder)

    return build


def _source(family: str) -> ModelSource:
    recipe = json.dumps([RECIPE, SEED, family, _SHAPE, FAMILIES[family], SPECIAL_TOKENS], sort_keys=True)
    return ModelSource(
        name=f"tiny:{family}",
        alias="tiny" if family == "llama" else None,
        label=f"tiny-{family}",
        checkpoint_hash=hashlib.sha256(recipe.encode()).hexdigest(),
        origin={"recipe": recipe},
        build=_builder(family),
    )


SOURCES = tuple(_source(family) for family in FAMILIES)
