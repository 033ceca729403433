"""Files of hash weights: what is read, and what is refused."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sah.adapters.hash_files import LayerShape, UnfitWeights, fitting_weights, read_weights, write_weights
from sah.sparse_attention.hash_weights import HashLayer, HeadwiseLinear, mapped

HEADS, DIM, HIDDEN, BITS = 3, 5, 7, 8
SHAPES = {0: LayerShape(HEADS, 1, DIM), 2: LayerShape(HEADS, 1, DIM)}


def maps(heads: int, seed: int) -> tuple[HeadwiseLinear, ...]:
    generator = torch.Generator().manual_seed(seed)
    sizes = [(DIM, HIDDEN), (HIDDEN, BITS)]
    return tuple(
        HeadwiseLinear(
            torch.randn(heads, *size, generator=generator), torch.randn(heads, 1, size[1], generator=generator)
        )
        for size in sizes
    )


def networks() -> dict[int, HashLayer]:
    return {layer: HashLayer(maps(HEADS, layer), maps(1, layer + 9)) for layer in (0, 2)}


def tensors() -> dict[str, torch.Tensor]:
    return {
        f"layer.{layer}.{side}.{number}.{part}": getattr(linear, part)
        for layer, both in networks().items()
        for side in ("query", "key")
        for number, linear in enumerate(getattr(both, side))
        for part in ("weight", "bias")
    }


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "hash.safetensors"
    write_weights(path, networks(), {"bits": "8"})
    layers, metadata = read_weights(path)
    assert metadata == {"bits": "8"}
    assert os.listdir(path.parent) == [path.name]
    x = torch.randn(1, HEADS, 4, DIM)
    for layer, both in fitting_weights(layers, SHAPES, BITS).items():
        assert torch.equal(mapped(x, both.query), mapped(x, networks()[layer].query))
        assert torch.equal(mapped(x[:, :1], both.key), mapped(x[:, :1], networks()[layer].key))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layer.0.query.1.bias": None}, "layer.0.query.1 has no bias"),
        ({"layer.0.key.0.weight": None, "layer.0.key.0.bias": None}, r"layer.0.key has the maps \[1\]"),
        ({"layer.0.value.0.weight": torch.ones(1, 1, 1)}, "no part of a hash network"),
        ({"layer.0.query.0.weight": torch.ones(HEADS, DIM, HIDDEN, dtype=torch.int64)}, "not floats in 3 dimensions"),
        ({"layer.0.query.0.weight": torch.full((HEADS, DIM, HIDDEN), torch.nan)}, "not finite"),
        ({"layer.0.query.1.weight": torch.ones(HEADS, HIDDEN + 1, BITS)}, "does not take what map 0 gives"),
        ({"layer.0.key.1.weight": torch.ones(1, HIDDEN, 4), "layer.0.key.1.bias": torch.ones(1, 1, 4)}, "keys 4"),
        ({"layer.0.key.1.bias": torch.ones(1, BITS, 1)}, "and a bias of shape"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    save_file({n: t for n, t in {**tensors(), **change}.items() if t is not None}, tmp_path / "hash.safetensors")
    with pytest.raises(UnfitWeights, match=words):
        read_weights(tmp_path / "hash.safetensors")


def test_files_that_are_no_safetensors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnfitWeights, match="no such file"):
        read_weights(tmp_path / "none.safetensors")
    (tmp_path / "pickle.safetensors").write_bytes(pickle.dumps(tensors()))
    with pytest.raises(UnfitWeights, match="no safetensors file"):
        read_weights(tmp_path / "pickle.safetensors")


@pytest.mark.parametrize(
    ("shapes", "bits", "words"),
    [
        ({**SHAPES, 1: SHAPES[0]}, BITS, "lacks the full-attention layers 1"),
        ({0: LayerShape(6, 2, DIM)}, BITS, "3 heads of head_dim 5, but that layer has 6 query heads and 2 KV heads"),
        ({0: LayerShape(HEADS, 1, 64)}, BITS, "of head_dim 64"),
        (SHAPES, 32, "gives 8 bits, but masker.hash_attention.bits is 32"),
    ],
)
def test_networks_of_another_model_are_refused(shapes: dict[int, LayerShape], bits: int, words: str) -> None:
    with pytest.raises(UnfitWeights, match=words):
        fitting_weights(networks(), shapes, bits)
