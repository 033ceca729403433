"""Rough times: operations as torch counts them, rates of this machine, and those of rows that are there."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from sah.adapters.factory import load_adapter_cached
from sah.adapters.sources.tiny import FAMILIES, SLIDING_WINDOW, family_config
from sah.config.model import ModelConfig
from sah.results.rows import PredictionRow
from sah.results.store import PointStore
from sah.runners.estimate import ROW_BYTES, ModelCost, find_rates

MODEL = {"checkpoint": "c", "dtype": "float32"}


def counted(cost: ModelCost, tokens: int) -> int:
    """Count the operations of a dense forward over a prompt with torch's own counter."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        cost.model(input_ids=torch.zeros((1, tokens), dtype=torch.long), logits_to_keep=1)
    return int(counter.get_total_flops())


@pytest.mark.parametrize("family", FAMILIES)
def test_operations_of_a_prefill_are_those_that_torch_counts(family: str) -> None:
    # Torch does not count its own fused attention on a CPU.
    cost = ModelCost(AutoModelForCausalLM.from_config(family_config(family), attn_implementation="eager").eval())
    tokens = SLIDING_WINDOW // 2  # within the window every layer attends to all
    # Torch counts whole squares of attention, of which a causal model needs half, and the output of the last token.
    whole = cost.prefill(tokens) + 2 * tokens * cost.attended(tokens) + 2 * cost.head_parameters
    assert counted(cost, tokens) == pytest.approx(whole, rel=0.01)
    assert cost.prefill(2 * tokens) > 2 * cost.prefill(tokens)


def test_a_token_over_a_context_costs_its_weights_and_the_keys_it_reads() -> None:
    cost = ModelCost(AutoModelForCausalLM.from_config(family_config("llama")).eval())
    parameters = sum(parameter.numel() for parameter in cost.model.parameters())
    embedding = cost.model.get_input_embeddings().weight.numel()
    assert cost.answer(0, 1) == 2 * (parameters - embedding)
    assert cost.answer(100, 3) - cost.answer(0, 3) == 3 * 4 * 100 * 64 * 3  # tokens, operations, keys, channels, layers


def test_layers_with_a_window_read_no_more_than_it() -> None:
    cost = ModelCost(AutoModelForCausalLM.from_config(family_config("gemma3")).eval())
    assert cost.attended(1000) == 64 * (5 * SLIDING_WINDOW + 1000)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_context_takes_what_its_cache_takes(family: str) -> None:
    adapter = load_adapter_cached(ModelConfig(name=f"tiny:{family}"))
    cache = adapter.prefill("The grass is green. " * 60)
    assert cache.length > SLIDING_WINDOW
    states = [states for layer in cache.past_key_values.layers for states in (layer.keys, layer.values)]
    expected = sum(part.numel() * part.element_size() for part in states if part is not None) + 8 * cache.length
    assert ModelCost(adapter.model).context_bytes(cache.length) == pytest.approx(expected, rel=0.02)


def test_an_outline_costs_what_the_model_costs() -> None:
    whole = ModelCost(AutoModelForCausalLM.from_config(family_config("qwen3")))
    with torch.device("meta"):
        outline = ModelCost(AutoModelForCausalLM.from_config(family_config("qwen3")))
    assert outline.prefill(100) == whole.prefill(100)
    assert outline.answer(100, 5) == whole.answer(100, 5)


def test_rates_come_from_matrix_products_where_there_are_no_rows(tmp_path: Path) -> None:
    rates = find_rates(ModelCost(AutoModelForCausalLM.from_config(family_config("llama"))), MODEL, tmp_path, 8)
    assert not rates.measured_prefill and rates.row_bytes == ROW_BYTES
    # From a processor of the last century to the fastest accelerators.
    assert 1e7 < rates.prefill < 1e16 and 1e6 < rates.answer < 1e16
    assert "matrix products" in rates.basis


def test_rates_come_from_rows_of_the_same_model(tmp_path: Path) -> None:
    cost = ModelCost(AutoModelForCausalLM.from_config(family_config("llama")))
    row = PredictionRow(example_key="a", question_index=0, status="ok", kv_len=100, prefill_reused=True)
    measured = dataclasses.replace(row, prefill_seconds=2.0, prefill_reused=False)
    others = [dataclasses.replace(measured, question_index=n, prefill_seconds=s) for n, s in ((1, 1.0), (2, 3.0))]
    store = PointStore(tmp_path, {"model": MODEL, "recipe": "dense"}, "dense")
    with store.writer():
        for made in (row, measured, *others):
            store.append(dataclasses.replace(made, question_index=made.question_index + 5 * (made is row)))
    stranger = PointStore(tmp_path, {"model": {**MODEL, "dtype": "bfloat16"}}, "dense")
    with stranger.writer():
        stranger.append(dataclasses.replace(measured, prefill_seconds=1e-9))
    rates = find_rates(cost, MODEL, tmp_path, 8)
    assert rates.measured_prefill
    assert rates.prefill == pytest.approx(cost.prefill(100) / 2.0), "the median of what did a prefill"
    assert rates.row_bytes == os.path.getsize(store.folder / "predictions.jsonl") / 4
    assert "rows that are there" in rates.basis


def test_a_damaged_folder_stops_no_plan(tmp_path: Path) -> None:
    store = PointStore(tmp_path, {"model": MODEL}, "dense")
    with store.writer():
        pass
    (store.folder / "predictions.jsonl").write_text("{}\n{}\n", encoding="utf-8")
    broken = tmp_path / "points" / "broken"
    broken.mkdir()
    (broken / "predictions.jsonl").write_text("", encoding="utf-8")
    (broken / "point.json").write_text(json.dumps([1]), encoding="utf-8")
    cost = ModelCost(AutoModelForCausalLM.from_config(family_config("llama")))
    assert not find_rates(cost, MODEL, tmp_path, 1).measured_prefill
