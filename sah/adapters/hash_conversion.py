"""Reads the checkpoints that the authors of HashAttention publish, and writes them as safetensors.

Their files (github.com/xAlg-ai/HashAttention-1.0, artifacts/*.pt) are what `torch.save` makes of the state dict of one
module a layer. A layer has two lists of small networks, one network for each query head (keys are repeated for the
query heads before they are mapped): `<layer>.learning_to_hash_transformation_<q or k>.<head>.<place>.<weight or bias>`,
with linear maps at the even places and SiLU between them, as `nn.Sequential` counts.

Such a file is a pickle. It is read with `torch.load(weights_only=True)`, torch's own restricted reader, which builds
tensors and plain containers and refuses to call anything else: no code of the file runs. Files that are pickled without
torch (`*.hat_weights.pkl` beside them) hold the same numbers and are not read at all.
"""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sah.adapters.hash_files import write_weights
from sah.errors import DataError
from sah.sparse_attention.hash_weights import HashLayer, HeadwiseLinear
from sah.sparse_attention.maskers.hash_attention_config import MOST_BITS

_NAME = re.compile(
    r"(0|[1-9][0-9]{0,4})\.learning_to_hash_transformation_([qk])\.(0|[1-9][0-9]{0,4})\.(0|[1-9][0-9]?)\."
    "(weight|bias)"
)
_LFS = b"version https://git-lfs"
_SIDES = {"q": "query", "k": "key"}
_Linears = dict[tuple[int, int], dict[str, torch.Tensor]]
"""(place in the network, head) to weight and bias."""


def convert_checkpoint(checkpoint: Path, output: Path) -> dict[int, HashLayer]:
    """Convert a published checkpoint to a file that `masker.hash_attention.weights` takes.

    Args:
        checkpoint: The authors' file.
        output: The file to write, `.safetensors`; one that is there is replaced.

    Returns:
        What was written.

    Raises:
        DataError: If the checkpoint cannot be read, holds anything but such networks, or they cannot be used; or if
            the output cannot be written.
    """
    if output.suffix != ".safetensors":
        raise DataError(
            f"The output {str(output)!r} is no safetensors file. Allowed: a name that ends in .safetensors. Write for "
            "example: hash.safetensors"
        )
    layers = read_checkpoint(checkpoint)
    with checkpoint.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    metadata = {"content": "sah hash weights", "converted_from": checkpoint.name, "source_sha256": digest}
    try:
        write_weights(output, layers, metadata)
    except OSError as error:
        raise DataError(
            f"{str(output)!r} cannot be written: {error.strerror or error}. Allowed: a file in a folder that may be "
            "written to"
        ) from error
    return layers


def read_checkpoint(path: Path) -> dict[int, HashLayer]:
    """Read a published checkpoint without running anything in it.

    Args:
        path: The file.

    Returns:
        Layer to networks, with a head for each query head, float32 on the CPU.

    Raises:
        DataError: If it cannot be read, or holds anything but such networks.
    """
    found: dict[int, dict[str, _Linears]] = {}
    for name, tensor in _tensors(path).items():
        match = _NAME.fullmatch(name)
        if match is None:
            raise _unusable(path, f"it holds {name!r}, which is no part of a network")
        layer, side, head, place = int(match[1]), _SIDES[match[2]], int(match[3]), int(match[4])
        if place % 2:
            raise _unusable(path, f"{name} stands where SiLU should")
        linears = found.setdefault(layer, {"query": {}, "key": {}})[side]
        linears.setdefault((place, head), {})[match[5]] = _checked(path, name, tensor)
    if sorted(found) != list(range(len(found))):
        raise _unusable(path, f"it has the layers {sorted(found)}, not 0, 1 and so on")
    layers = {
        number: HashLayer(
            _stacked(path, f"layer {number}, queries", found[number]["query"]),
            _stacked(path, f"layer {number}, keys", found[number]["key"]),
        )
        for number in sorted(found)
    }
    _check_together(path, layers)
    return layers


def _tensors(path: Path) -> Mapping[str, torch.Tensor]:
    try:
        with path.open("rb") as handle:
            if handle.read(len(_LFS)) == _LFS:
                raise _unusable(path, "it is the pointer that Git LFS left in its place; run git lfs pull beside it")
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        first = str(error).strip().splitlines()[0]
        raise _unusable(path, f"torch's restricted reader refuses it, and no other one is used ({first})") from error
    except DataError:
        raise
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        # A damaged file fails wherever the reader stumbles first.
        detail = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        raise _unusable(path, f"it cannot be read ({detail.strip().splitlines()[0]})") from error
    if not isinstance(state, Mapping) or not state:
        raise _unusable(path, f"it holds {type(state).__name__} and not the tensors of networks")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise _unusable(path, f"its entry {name!r} is {type(value).__name__} and not a tensor")
    return state


def _checked(path: Path, name: str, tensor: torch.Tensor) -> torch.Tensor:
    dimensions = 2 if name.endswith("weight") else 1
    plain = tensor.layout == torch.strided and tensor.is_floating_point()
    if not plain or tensor.dim() != dimensions or 0 in tensor.shape:
        what = f"{tensor.dtype} of shape {tuple(tensor.shape)}"
        raise _unusable(path, f"{name} is {what}, not floats in {dimensions} dimensions")
    numbers = tensor.detach().float()
    if not numbers.isfinite().all():
        raise _unusable(path, f"{name} holds values that are not finite")
    return numbers


def _stacked(path: Path, what: str, linears: _Linears) -> tuple[HeadwiseLinear, ...]:
    """Put the maps of all heads of one side of a layer together, in order."""
    heads = sorted({head for _, head in linears})
    places = sorted({place for place, _ in linears})
    complete = heads == list(range(len(heads))) and places == list(range(0, 2 * len(places), 2))
    if not linears or not complete or len(linears) != len(heads) * len(places):
        raise _unusable(path, f"{what}: it lacks networks, or maps of them")
    maps: list[HeadwiseLinear] = []
    for place in places:
        weights, biases = [], []
        for head in heads:
            parts = linears[place, head]
            if set(parts) != {"weight", "bias"}:
                raise _unusable(
                    path, f"{what}: map {place} of head {head} has no {'bias' if 'weight' in parts else 'weight'}"
                )
            weights.append(parts["weight"].T)
            biases.append(parts["bias"][None])
        inputs = {tuple(weight.shape) for weight in weights}
        outputs = {bias.shape[1] for bias in biases} | {shape[1] for shape in inputs}
        if len(inputs) != 1 or len(outputs) != 1 or (maps and weights[0].shape[0] != maps[-1].weight.shape[2]):
            raise _unusable(path, f"{what}: the sizes of map {place} do not fit together")
        maps.append(HeadwiseLinear(torch.stack(weights), torch.stack(biases)))
    return tuple(maps)


def _check_together(path: Path, layers: Mapping[int, HashLayer]) -> None:
    """Check that all networks read the same heads and give the same bits."""
    sides = [maps for layer in layers.values() for maps in (layer.query, layer.key)]
    if len({maps[0].weight.shape[:2] for maps in sides}) != 1:
        raise _unusable(path, "its networks are for different heads")
    bits = {maps[-1].weight.shape[2] for maps in sides}
    if len(bits) != 1:
        raise _unusable(path, f"its networks give different numbers of bits: {sorted(bits)}")
    (given,) = bits
    if given % 8 or given > MOST_BITS:
        raise _unusable(path, f"its networks give {given} bits; allowed is a multiple of 8 up to {MOST_BITS}")


def _unusable(path: Path, problem: str) -> DataError:
    return DataError(
        f"The checkpoint {str(path)!r} cannot be converted: {problem}. Allowed: a .pt file as the authors of "
        "HashAttention publish it (github.com/xAlg-ai/HashAttention-1.0, artifacts/), whole and with nothing else in it"
    )
