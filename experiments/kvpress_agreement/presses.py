"""What kvpress's presses keep, written to files. Runs in an environment of its own, where there is no sah.

python presses.py JOB.json, with the job that `__main__.py` writes: the model's folder, contexts as token ids, budgets
in keys, the presses' settings, and where the files go.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

import torch
from kvpress import ObservedAttentionPress, ScorerPress, SnapKVPress, StreamingLLMPress, TOVAPress
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.utils import logging

VERSIONS = ("kvpress", "transformers", "torch")


def main() -> None:
    """Run every press on every context."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    versions = {name: importlib.metadata.version(name) for name in VERSIONS}
    load = AutoModelForCausalLM.from_pretrained
    fused = load(job["model"], dtype=torch.float32, attn_implementation="sdpa").eval()
    # `ObservedAttentionPress` reads the weights that only the eager attention hands out.
    eager = load(job["model"], dtype=torch.float32, attn_implementation="eager").eval()
    for name, context in job["contexts"].items():
        tensors = {"ids": torch.tensor(context["ids"], dtype=torch.int32)}
        full = prefill(fused, None, context["ids"])
        for method, model in (("snapkv", fused), ("tova", fused), ("streaming_llm", fused), ("h2o", eager)):
            for budget, keys in context["keys"].items():
                kept, scores = run(model, method, job, context["ids"], keys, full)
                print(f"{name}: {method} keeps {keys} of {len(context['ids'])} keys", flush=True)
                if method != "h2o":
                    tensors[f"{method}.kept.{budget}"] = smallest(kept.to(torch.int16))
            if method != "streaming_llm":
                tensors[f"{method}.scores"] = smallest(scores[job["score_layers"]])
        path = Path(job["folder"]) / f"{name}.safetensors"
        save_file(tensors, path, metadata={"text": context["text"], **versions})


def press_of(method: str, ratio: float, job: dict[str, Any]) -> ScorerPress:
    """Make the press of a method."""
    if method == "snapkv":
        return SnapKVPress(compression_ratio=ratio, window_size=job["window"], kernel_size=job["kernel"])
    if method == "streaming_llm":
        return StreamingLLMPress(compression_ratio=ratio, n_sink=job["sinks"])
    return {"tova": TOVAPress, "h2o": ObservedAttentionPress}[method](compression_ratio=ratio)


def run(
    model: Any, method: str, job: dict[str, Any], ids: list[int], keys: int, full: DynamicCache
) -> tuple[torch.Tensor, torch.Tensor]:
    """Prefill under a press, listening to its scores.

    Returns:
        The kept keys of every layer and KV head in their order, (layers, kv_heads, keys), and the scores,
        (layers, kv_heads, length).
    """
    # The middle between two numbers of keys: the press rounds down what the ratio leaves.
    press = press_of(method, 1 - (keys + 0.5) / len(ids), job)
    heard: list[torch.Tensor] = []
    score = press.score

    def listening(*args: Any, **kwargs: Any) -> torch.Tensor:
        heard.append(score(*args, **kwargs))
        return heard[-1]

    press.score = listening  # type: ignore[method-assign]
    cut = prefill(model, press, ids)
    scores = torch.cat(heard)
    kept = torch.stack([layer.topk(keys, dim=-1).indices for layer in scores])
    for number, (before, after) in enumerate(zip(full.layers, cut.layers, strict=True)):
        chosen = kept[number][None, ..., None].expand(-1, -1, -1, before.keys.shape[3])
        # The eager model's keys differ from the fused one's by rounding.
        if not torch.allclose(before.keys.gather(2, chosen), after.keys, rtol=0, atol=1e-2):
            raise SystemExit(f"{method}: layer {number} of the cut cache does not hold the keys with the best scores")
    return kept.sort(-1).values, scores


@torch.no_grad()
def prefill(model: Any, press: ScorerPress | None, ids: list[int]) -> DynamicCache:
    """Run a context through the model, under a press if there is one."""
    cache = DynamicCache()
    if press is None:
        model.model(input_ids=torch.tensor([ids]), past_key_values=cache)
    else:
        with press(model):
            model.model(input_ids=torch.tensor([ids]), past_key_values=cache)
    return cache


def smallest(tensor: torch.Tensor) -> torch.Tensor:
    """Store dimensions once along which everything is equal: layers for a fixed pattern, heads that share a set."""
    for dim in range(2):
        first = tensor.narrow(dim, 0, 1)
        if torch.equal(first.expand_as(tensor), tensor):
            tensor = first
    return tensor.contiguous()


if __name__ == "__main__":
    main()
