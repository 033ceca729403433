"""The embedded checkpoints for real: fetched, converted, loaded, and answering."""

from __future__ import annotations

import time

import pytest

from sah.adapters import sources
from sah.adapters.factory import create_adapter

pytestmark = pytest.mark.e2e


def test_smollm2_answers_and_loads_fast(capsys: pytest.CaptureFixture[str]) -> None:
    source = sources.all_sources()["embedded:smollm2-135m-instruct"]
    folder = sources.fetch("llama")
    assert folder == source.folder
    assert {"config.json", "model.safetensors", "tokenizer.json", "manifest.json"} <= {
        path.name for path in folder.iterdir()
    }
    create_adapter(source.name)  # the first load also pays for lazy imports
    started = time.perf_counter()
    checked = sources.fetch("llama")
    checking = time.perf_counter() - started
    adapter = create_adapter(source.name)
    total = time.perf_counter() - started
    with capsys.disabled():
        print(f"\nSmolLM2: checked in {checking * 1000:.1f} ms, checked and loaded in {total:.2f} s")
    assert checked == folder

    tokenizer, model = adapter.tokenizer, adapter.model
    assert model.generation_config.eos_token_id == 2 == tokenizer.convert_tokens_to_ids("<|im_end|>")
    config = model.config
    assert (config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads) == (30, 9, 3)
    prompt = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True)[
        "input_ids"
    ]
    answer = model.generate(ids, do_sample=False, max_new_tokens=20)[0, ids.shape[1] :]
    assert tokenizer.decode(answer, skip_special_tokens=True) == "The capital of France is Paris."
    assert answer[-1] == 2

    pieces = [tokenizer.decode([token]) for token in tokenizer("\n\n1234567")["input_ids"]]
    assert pieces == ["\n\n", *"1234567"]


def test_gemma3_where_it_is_fetched_already() -> None:
    import torch

    source = sources.all_sources()["embedded:gemma3-270m"]
    if not source.folder.is_dir():
        pytest.skip("not fetched: run `sah fetch gemma3_270m` (240 MB)")
    adapter = create_adapter(source.name)
    assert adapter.model.config.layer_types.count("full_attention") == 3
    assert (source.folder / "GEMMA_TERMS.html").is_file()
    text = "The sun rises in the east and sets in the west. Water boils at one hundred degrees."
    ids = adapter.tokenizer(text, return_tensors="pt")["input_ids"]
    assert (ids == adapter.tokenizer.bos_token_id).sum() == 1
    with torch.no_grad():
        assert adapter.model(ids, labels=ids).loss < 4
