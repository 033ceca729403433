"""How many of a query's best keys HashAttention's signatures find, against random planes of as many bits.

    python -m benchmarks.hash_recall [--model embedded:smollm2-135m-instruct] [--bits 32] [--weights FILE]
                                     [--length 2048] [--examples 2] [--every 16] [--planes 3] [--json FILE]

Contexts are those of dataset=niah, of which training saw nothing. The recall of a query is the share of its true top
keys (density x allowed, by exact products) among as many keys with the most equal bits, earlier keys first among
equals. Queries are every `--every`th of the second half of a prompt, all query heads; keys are all that causality
allows, from the layer's own states after the rotary embedding. Random planes are SimHash (Charikar 2002): signs of one
set of Gaussian projections, the keys' mean over the context taken away (the order of exact products is not changed by
that), averaged over `--planes` seeds. Networks come from sah's cache folder (`python -m sah.train_hash`), or a file.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from sah.adapters.factory import create_adapter
from sah.adapters.huggingface import ModelAdapterHF
from sah.adapters.learned import hash_weights
from sah.adapters.recording import record_states
from sah.data.niah.config import NiahConfig
from sah.data.niah.generate import generate_examples
from sah.sparse_attention.hash_weights import HashLayer, mapped

DENSITIES = (0.05, 0.1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hash_recall")
    parser.add_argument("--model", default="embedded:smollm2-135m-instruct")
    parser.add_argument("--bits", type=int, default=32)
    parser.add_argument("--weights", help="a safetensors file instead of sah's cache folder")
    parser.add_argument("--length", type=int, default=2048, help="tokens of a prompt")
    parser.add_argument("--examples", type=int, default=2)
    parser.add_argument("--every", type=int, default=16)
    parser.add_argument("--planes", type=int, default=3, help="seeds of the random planes")
    parser.add_argument("--json", type=Path, help="file to write all figures to")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    adapter = create_adapter(given.model)
    layers = hash_weights(adapter, given.weights, given.bits)
    prompts = needle_prompts(adapter, given.length, given.examples)
    found = recalls(adapter, layers, given.bits, prompts, given.every, given.planes)
    print(f"{given.model}, {given.bits} bits, {len(prompts)} niah prompts of {given.length} tokens at most")
    print("layer   " + "   ".join(f"density {density:<4}  learned  random" for density in DENSITIES))
    for layer, values in [*found.items(), ("all", averages(found))]:
        cells = (f"              {values[d]['learned']:8.3f}{values[d]['random']:8.3f}" for d in DENSITIES)
        print(f"{layer!s:>5}   " + "   ".join(cells))
    if given.json:
        given.json.write_text(json.dumps({"layers": found, "all": averages(found)}, indent=1), encoding="utf-8")


def needle_prompts(adapter: ModelAdapterHF, length: int, count: int) -> list[torch.Tensor]:
    """Give whole templated prompts of dataset=niah, int64 (n,)."""
    examples = generate_examples(
        NiahConfig(length=length, num_examples=count), adapter.count_prompt_tokens, adapter.window
    )
    return [
        torch.tensor(adapter.prompts.prompt_ids(e.context, e.questions[0].text, e.questions[0].answer_prefix))
        for e in examples
    ]


@torch.no_grad()
def recalls(
    adapter: ModelAdapterHF,
    layers: dict[int, HashLayer],
    bits: int,
    prompts: list[torch.Tensor],
    every: int = 16,
    seeds: int = 3,
) -> dict[int, dict[float, dict[str, float]]]:
    """Measure the recall of each layer's top keys.

    Args:
        adapter: The model.
        layers: Layer to networks; only these layers are measured.
        bits: Of the random planes.
        prompts: Tokens of each prompt.
        every: Of the second half's queries every so-manieth is measured.
        seeds: Sets of random planes, whose recalls are averaged.

    Returns:
        Layer to density to `learned` and `random`.
    """
    sums: dict[int, dict[float, dict[str, float]]] = {
        layer: {density: {"learned": 0.0, "random": 0.0} for density in DENSITIES} for layer in layers
    }
    for ids in prompts:
        for layer, (queries, keys) in record_states(adapter, ids).items():
            if layer not in layers:
                continue
            rows = torch.arange(len(ids) // 2, len(ids), every)
            chosen, keys = queries[:, rows].float(), keys.float()
            exact = products(chosen, keys)
            learned = products(
                _signs(mapped(chosen[None], layers[layer].query)[0]), _signs(mapped(keys[None], layers[layer].key)[0])
            )
            planes = []
            for seed in range(seeds):
                generator = torch.Generator().manual_seed(1_000 + seed)
                normals = torch.randn(keys.shape[-1], bits, generator=generator)
                centred = keys - keys.mean(1, keepdim=True)
                planes.append(products(_signs(chosen @ normals), _signs(centred @ normals)))
            for density in DENSITIES:
                cell = sums[layer][density]
                cell["learned"] += recall(exact, learned, rows, density) / len(prompts)
                parts = [recall(exact, scores, rows, density) for scores in planes]
                cell["random"] += sum(parts) / len(parts) / len(prompts)
    return sums


def averages(found: dict[int, dict[float, dict[str, float]]]) -> dict[float, dict[str, float]]:
    """Average over layers."""
    return {
        density: {
            name: sum(values[density][name] for values in found.values()) / len(found) for name in ("learned", "random")
        }
        for density in DENSITIES
    }


def products(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Inner products of queries (heads, n, d) with keys (heads or kv_heads, m, d): (heads, n, m)."""
    return (queries.unflatten(0, (keys.shape[0], -1)) @ keys[:, None].transpose(-1, -2)).flatten(0, 1)


def recall(exact: torch.Tensor, scores: torch.Tensor, positions: torch.Tensor, density: float) -> float:
    """Average over heads and queries the share of the best keys that scores find.

    Args:
        exact: (heads, n, keys), what decides which keys are best.
        scores: As many; the earlier key comes first among equals.
        positions: Of the queries, (n,): each reads the keys up to its own.
        density: Share of those keys that are best.
    """
    shares = []
    for row, position in enumerate(positions.tolist()):
        allowed = position + 1
        count = max(1, round(density * allowed))
        best = exact[:, row, :allowed].topk(count, dim=-1).indices
        kept = scores[:, row, :allowed].argsort(dim=-1, descending=True, stable=True)[:, :count]
        is_best = torch.zeros(exact.shape[0], allowed).scatter_(-1, best, 1.0)
        shares.append(is_best.gather(-1, kept).mean())
    return float(torch.stack(shares).mean())


def _signs(values: torch.Tensor) -> torch.Tensor:
    """1 above 0, else -1."""
    return torch.where(values > 0, 1.0, -1.0)


if __name__ == "__main__":
    main()
