"""Files of hash weights: the networks of HashAttention, as safetensors. Never pickle.

For each layer `i` that attends to the whole sequence, and each linear map `n` of its networks, counted from 0:
`layer.<i>.query.<n>.weight` (heads, inputs, outputs), `layer.<i>.query.<n>.bias` (heads, 1, outputs), and the same with
`key`. SiLU stands between the maps; the signs of the last one's outputs are the bits.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sah.errors import ConfigError
from sah.sparse_attention.hash_identity import WEIGHTS_KEY
from sah.sparse_attention.hash_weights import HashLayer, HeadwiseLinear

_NAME = re.compile(r"layer\.([0-9]+)\.(query|key)\.([0-9]+)\.(weight|bias)")
_Parts = dict[tuple[str, int], dict[str, torch.Tensor]]
"""Tensors of one layer: (query or key, number of the map) to its weight and bias."""


class UnfitWeights(Exception):
    """A file that holds no hash weights, or those of another model; the message says why."""


@dataclass(frozen=True)
class LayerShape:
    """What the networks of a layer must fit."""

    heads: int
    kv_heads: int
    head_dim: int


def unusable_weights(path: str | Path, problem: str) -> ConfigError:
    """Build the error for a file of hash weights that cannot be used.

    Args:
        path: The file as it was given.
        problem: What is wrong with it.

    Returns:
        The error, to be raised by the caller.
    """
    return ConfigError(
        f"{WEIGHTS_KEY}={str(path)!r} cannot be used: {problem}. Allowed: a safetensors file with layer.<i>.query.<n> "
        "and layer.<i>.key.<n>, .weight and .bias, for every full-attention layer i, as python -m sah.train_hash and "
        f"python -m sah.convert_hash write it. Or write {WEIGHTS_KEY}=null: sah then takes what was trained for this "
        "model"
    )


def read_weights(path: Path) -> tuple[dict[int, HashLayer], dict[str, str]]:
    """Read a file of hash weights, and check that its networks can be run.

    Args:
        path: The file.

    Returns:
        Layer to networks, float32 on the CPU; and the file's metadata.

    Raises:
        UnfitWeights: If it cannot be read, or holds something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except FileNotFoundError as error:
        raise UnfitWeights("there is no such file") from error
    except (OSError, SafetensorError) as error:
        raise UnfitWeights(f"it is no safetensors file that can be read ({error})") from error
    if not tensors:
        raise UnfitWeights("it holds no layer")
    found: dict[int, _Parts] = {}
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(name)
        if match is None:
            raise UnfitWeights(f"it holds a tensor {name!r}, which is no part of a hash network")
        layer, side, number, part = int(match[1]), match[2], int(match[3]), match[4]
        if not tensor.is_floating_point() or tensor.dim() != 3:
            raise UnfitWeights(f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}, not floats in 3 dimensions")
        if not tensor.isfinite().all():
            raise UnfitWeights(f"{name} holds values that are not finite")
        found.setdefault(layer, {}).setdefault((side, number), {})[part] = tensor.float()
    return {layer: _networks(layer, found[layer]) for layer in sorted(found)}, metadata


def write_weights(path: Path, layers: Mapping[int, HashLayer], metadata: dict[str, str]) -> None:
    """Write a file of hash weights in one step: whoever reads at the same time finds a whole file, old or new.

    Args:
        path: The file; its folder is made where it is missing.
        layers: Layer to networks.
        metadata: What the file says of itself.

    Raises:
        OSError: If it cannot be written.
    """
    tensors = {}
    for layer, networks in layers.items():
        for side, maps in (("query", networks.query), ("key", networks.key)):
            for number, linear in enumerate(maps):
                name = f"layer.{layer}.{side}.{number}"
                tensors[f"{name}.weight"] = linear.weight.float().cpu().contiguous()
                tensors[f"{name}.bias"] = linear.bias.float().cpu().contiguous()
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, partial, metadata)
        os.replace(partial, path)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    finally:
        partial.unlink(missing_ok=True)


def bits_of(layers: Mapping[int, HashLayer]) -> int:
    """Tell how many bits the networks give; the same in all layers.

    Raises:
        UnfitWeights: If layers differ.
    """
    bits = {layer.key[-1].weight.shape[-1] for layer in layers.values()}
    if len(bits) != 1:
        raise UnfitWeights(f"its layers have different numbers of bits: {sorted(bits)}")
    return int(bits.pop())


def fitting_weights(
    layers: Mapping[int, HashLayer], shapes: Mapping[int, LayerShape], bits: int
) -> dict[int, HashLayer]:
    """Take the layers that a model has from a file's.

    Args:
        layers: Layer to networks.
        shapes: Of every full-attention layer of the model.
        bits: That the masker was told of.

    Returns:
        The networks of those layers; further layers are left out.

    Raises:
        UnfitWeights: If a layer is missing, or is for other heads, another head_dim or another number of bits.
    """
    missing = [str(layer) for layer in shapes if layer not in layers]
    if missing:
        raise UnfitWeights(f"it lacks the full-attention layers {', '.join(missing)} of the model")
    found = {layer: layers[layer] for layer in shapes}
    for layer, shape in shapes.items():
        for side, maps in (("query", found[layer].query), ("key", found[layer].key)):
            heads, inputs = maps[0].weight.shape[:2]
            if heads not in (shape.heads, shape.kv_heads) or inputs != shape.head_dim:
                raise UnfitWeights(
                    f"layer.{layer}.{side} is for {heads} heads of head_dim {inputs}, but that layer has {shape.heads} "
                    f"query heads and {shape.kv_heads} KV heads of head_dim {shape.head_dim}"
                )
    if shapes and bits_of(found) != bits:
        raise UnfitWeights(f"it gives {bits_of(found)} bits, but masker.hash_attention.bits is {bits}")
    return found


def _networks(layer: int, parts: _Parts) -> HashLayer:
    query, key = _maps(layer, "query", parts), _maps(layer, "key", parts)
    outputs = (query[-1].weight.shape[-1], key[-1].weight.shape[-1])
    if outputs[0] != outputs[1]:
        raise UnfitWeights(f"layer.{layer} gives queries {outputs[0]} bits and keys {outputs[1]}")
    return HashLayer(query, key)


def _maps(layer: int, side: str, parts: _Parts) -> tuple[HeadwiseLinear, ...]:
    numbers = sorted(number for name, number in parts if name == side)
    if not numbers or numbers != list(range(len(numbers))):
        raise UnfitWeights(f"layer.{layer}.{side} has the maps {numbers}, not 0, 1 and so on")
    maps: list[HeadwiseLinear] = []
    for number in numbers:
        tensors = parts[side, number]
        if set(tensors) != {"weight", "bias"}:
            raise UnfitWeights(f"layer.{layer}.{side}.{number} has no {'bias' if 'weight' in tensors else 'weight'}")
        weight, bias = tensors["weight"], tensors["bias"]
        if 0 in weight.shape or bias.shape != (weight.shape[0], 1, weight.shape[2]):
            raise UnfitWeights(
                f"layer.{layer}.{side}.{number} has a weight of shape {tuple(weight.shape)} and a bias of shape "
                f"{tuple(bias.shape)}, not (heads, inputs, outputs) and (heads, 1, outputs)"
            )
        if maps and weight.shape[:2] != (maps[-1].weight.shape[0], maps[-1].weight.shape[2]):
            raise UnfitWeights(f"layer.{layer}.{side}.{number} does not take what map {number - 1} gives")
        maps.append(HeadwiseLinear(weight, bias))
    return tuple(maps)
