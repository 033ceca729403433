"""Files of channel orders: one safetensors tensor `layer.<i>` of shape (kv_heads, head_dim) a layer. Never pickle."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sah.sparse_attention.channels import unusable_file

_PREFIX = "layer."


class UnfitFile(Exception):
    """A file that holds no channel order, or one of another model; the message says why."""


def load_channel_file(path: str | Path, shapes: Mapping[int, tuple[int, int]] | None = None) -> dict[int, torch.Tensor]:
    """Read a channel file that the user gives.

    Args:
        path: The file.
        shapes: (kv_heads, head_dim) of every full-attention layer of the model that it must fit; None to read the file
            by itself.

    Returns:
        Layer to channels, int64 (kv_heads, head_dim), most important first; with `shapes` for just those layers.

    Raises:
        ConfigError: If the file is missing, is no safetensors file, lacks a layer, or holds something else than the
            channels of that model.
    """
    try:
        order, _ = read_channels(Path(path).expanduser())
        return order if shapes is None else fitting(order, shapes)
    except UnfitFile as error:
        raise unusable_file(path, str(error)) from error


def read_channels(path: Path) -> tuple[dict[int, torch.Tensor], dict[str, str]]:
    """Read a channel file and check that each row is an order of channels.

    Args:
        path: The file.

    Returns:
        Layer to channels, int64 (kv_heads, head_dim); and the file's metadata.

    Raises:
        UnfitFile: If it cannot be read, or holds something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except FileNotFoundError as error:
        raise UnfitFile("there is no such file") from error
    except (OSError, SafetensorError) as error:
        raise UnfitFile(f"it is no safetensors file that can be read ({error})") from error
    if not tensors:
        raise UnfitFile("it holds no layer")
    return {_layer(name): _order(name, tensor) for name, tensor in tensors.items()}, metadata


def write_channels(path: Path, order: Mapping[int, torch.Tensor], metadata: dict[str, str]) -> None:
    """Write a channel file in one step: whoever reads at the same time finds a whole file, old or new.

    Args:
        path: The file; its folder is made where it is missing.
        order: Layer to channels, int64 (kv_heads, head_dim).
        metadata: What the file says of itself.

    Raises:
        OSError: If it cannot be written.
    """
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({f"{_PREFIX}{layer}": channels.contiguous() for layer, channels in order.items()}, partial, metadata)
        os.replace(partial, path)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    finally:
        partial.unlink(missing_ok=True)


def fitting(order: Mapping[int, torch.Tensor], shapes: Mapping[int, tuple[int, int]]) -> dict[int, torch.Tensor]:
    """Take the layers that a model has from a channel order.

    Args:
        order: Layer to channels, (kv_heads, head_dim).
        shapes: (kv_heads, head_dim) of every full-attention layer of the model.

    Returns:
        The channels of those layers; further layers in `order` are left out.

    Raises:
        UnfitFile: If a layer is missing or has another shape.
    """
    missing = [str(layer) for layer in shapes if layer not in order]
    if missing:
        raise UnfitFile(f"it lacks the full-attention layers {', '.join(missing)} of the model")
    for layer, shape in shapes.items():
        if order[layer].shape != shape:
            given = tuple(order[layer].shape)
            raise UnfitFile(f"{_PREFIX}{layer} has shape {given}, but (kv_heads, head_dim) of that layer is {shape}")
    return {layer: order[layer] for layer in shapes}


def _layer(name: str) -> int:
    number = name.removeprefix(_PREFIX)
    if number == name or not number.isascii() or not number.isdecimal():
        raise UnfitFile(f"it holds a tensor {name!r}, which names no layer")
    return int(number)


def _order(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dim() != 2 or tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise UnfitFile(f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}, not integers in two dimensions")
    channels = tensor.long()
    if not torch.equal(channels.sort(-1).values, torch.arange(channels.shape[1]).expand_as(channels)):
        raise UnfitFile(f"a row of {name} does not hold each channel from 0 to {channels.shape[1] - 1} once")
    return channels
