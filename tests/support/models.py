"""Tiny models for adapter tests, each loaded once for the whole session."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from sah.adapters.factory import resolve_model
from sah.adapters.huggingface import ModelAdapterHF
from sah.sparse_attention import EfficientAttentionConfig, ResearchAttentionConfig
from tests.support.attention import DENSE_RECIPES, RECIPES

FAMILIES = ["llama", "qwen2", "qwen3", "mistral", "phi3", "gemma3"]
EXECUTION_CONFIGS = {"research": ResearchAttentionConfig, "efficient": EfficientAttentionConfig}

CONTEXT = (
    "The river bends twice before the mill, and the miller keeps 3 cats.\n"
    "One of them, called Ash, sleeps on the wheel. "
    "Nobody has ever seen it run. The number on the mill's door is 4471."
)
QUESTIONS = ["\nWhat is the number on the door?", "\nHow many cats are there?", " Who sleeps?"]


@cache
def folder(family: str) -> str:
    """Checkpoint folder of a tiny model, made on first use."""
    return resolve_model(f"tiny:{family}").path_or_id


def save_random(config: Any, path: Path) -> str:
    """Save a random model of a config, with the tokenizer of the tiny Llama."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if "sinks" in name:
            parameter.data.normal_(2.0, 2.0)
    model.save_pretrained(path)
    for file in [*Path(folder("llama")).glob("*token*"), *Path(folder("llama")).glob("*.jinja")]:
        shutil.copy(file, path)
    return str(path)


@cache
def dense_adapter(family: str = "llama") -> ModelAdapterHF:
    """The one loaded adapter of a family; take `adapter` for one of your own."""
    return ModelAdapterHF(None, folder(family))


def config_of(recipe: str | None, execution: str = "research") -> Any:
    """The attention config of a named recipe; None is dense."""
    if recipe is None:
        return None
    return EXECUTION_CONFIGS[execution](masker_configs={**RECIPES, **DENSE_RECIPES}[recipe]())


def adapter(
    family: str = "llama", recipe: str | None = "sink+local+topk", execution: str = "research"
) -> ModelAdapterHF:
    """An adapter of one's own that shares the loaded model."""
    return dense_adapter(family).with_sparse_attention(config_of(recipe, execution))


@contextmanager
def recorded_calls(model: Any) -> Iterator[list[dict[str, Any]]]:
    """Record the keyword arguments of every model call, with its number of tokens and its attention."""
    calls: list[dict[str, Any]] = []

    def record(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        calls.append(
            {
                **kwargs,
                "tokens": ids.shape[1],
                "ids": ids[0].tolist(),
                "implementation": model.config._attn_implementation,
            }
        )

    hook = model.register_forward_pre_hook(record, with_kwargs=True)
    try:
        yield calls
    finally:
        hook.remove()


@contextmanager
def fixed_logits(model: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Replace the logits of every model call."""

    def rewrite(_: Any, __: Any, output: Any) -> Any:
        output.logits = change(output.logits)
        return output

    hook = model.register_forward_hook(rewrite)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def end_tokens(model: Any, value: Any) -> Iterator[None]:
    """Run with another `generation_config.eos_token_id`."""
    before = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = value
    try:
        yield
    finally:
        model.generation_config.eos_token_id = before


def greedy_reference(adapter: ModelAdapterHF, ids: list[int], max_new_tokens: int) -> list[int]:
    """What transformers' own greedy generation appends to ids."""
    output = adapter.model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        do_sample=False,
        max_new_tokens=max_new_tokens,
    )
    return output[0, len(ids) :].tolist()


def stored_lengths(past: Any) -> list[int]:
    """Tokens that each layer of a cache stands for."""
    return [layer.get_seq_length() for layer in past.layers]


def snapshot(past: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Copies of all keys and values."""
    return [(layer.keys.clone(), layer.values.clone()) for layer in past.layers]


def same_cache(left: list[tuple[torch.Tensor, torch.Tensor]], right: list[tuple[torch.Tensor, torch.Tensor]]) -> bool:
    """Whether two snapshots are equal bit by bit."""
    return all(torch.equal(a, b) for x, y in zip(left, right, strict=True) for a, b in zip(x, y, strict=True))
