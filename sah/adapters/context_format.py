"""The file of a prefilled context: safetensors, written and read one tensor at a time, with all it holds verified.

The library would have every tensor contiguous in memory at once to write them, and reads through a memory map, where a
disk that fails kills the process. The format is a JSON table and plain bytes, so both are done here; the library reads
the files as well.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from math import prod
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicSlidingWindowLayer

from sah.adapters.context_cache import ContextCache
from sah.adapters.kv_cache import GrowingLayer
from sah.adapters.prompt import ContextPrompt
from sah.sparse_attention.prefill.config import PrefillConfig

CONTENT = "sah context"
_DTYPES = {torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_LONGEST_HEADER = 16 << 20
_DIGEST_ROOM = "0" * 64

_Part = tuple[str, torch.dtype, tuple[int, ...]]


class UnfitFile(Exception):
    """A file that does not hold what was asked for; the message says why."""


class UnfitLayer(Exception):
    """A cache with a layer that cannot be kept; the message names it."""


@dataclass(frozen=True)
class LayerForm:
    """What a layer of a model's cache looks like, whatever the context."""

    window: int | None
    """Tokens that a sliding-window layer attends to; None for a layer that keeps all."""

    keys: tuple[int, int]
    values: tuple[int, int]
    """(kv_heads, dim)."""

    keys_dtype: torch.dtype
    values_dtype: torch.dtype
    device: torch.device

    def tokens(self, length: int) -> int:
        """Return how many of a context's tokens the layer holds between questions."""
        return length if self.window is None else min(length, self.window - 1)

    def parts(self, number: int, length: int) -> list[_Part]:
        """Name the layer's tensors, each with its type and shape (1, kv_heads, tokens, dim)."""
        (key_heads, key_dim), (value_heads, value_dim), held = self.keys, self.values, self.tokens(length)
        return [
            (f"layer.{number}.keys", self.keys_dtype, (1, key_heads, held, key_dim)),
            (f"layer.{number}.values", self.values_dtype, (1, value_heads, held, value_dim)),
        ]


def layer_forms(past: DynamicCache, length: int) -> list[LayerForm]:
    """See what the layers of a cache look like.

    Args:
        past: A cache from `new_cache` that holds a context.
        length: Tokens of the context.

    Returns:
        A form for each layer.

    Raises:
        UnfitLayer: If a layer is none of the two kinds whose whole state is known here.
    """
    layers: list[Any] = past.layers
    return [_layer_form(number, layer, length) for number, layer in enumerate(layers)]


def _layer_form(number: int, layer: Any, length: int) -> LayerForm:
    if type(layer) not in (GrowingLayer, DynamicSlidingWindowLayer) or layer.keys is None or layer.values is None:
        raise UnfitLayer(f"layer {number} of its cache is a {type(layer).__name__}")
    keys, values = layer.keys, layer.values
    form = LayerForm(
        getattr(layer, "sliding_window", None),
        (keys.shape[1], keys.shape[-1]),
        (values.shape[1], values.shape[-1]),
        keys.dtype,
        values.dtype,
        keys.device,
    )
    for states, (_, dtype, shape) in zip((keys, values), form.parts(number, length), strict=True):
        if dtype not in _DTYPES or tuple(states.shape) != shape or layer.get_seq_length() != length:
            raise UnfitLayer(f"layer {number} of its cache holds {dtype} of shape {tuple(states.shape)}, not {shape}")
    return form


def file_bytes(key: str, cache: ContextCache, forms: list[LayerForm]) -> int:
    """Return the size of a context's file."""
    table, size = _table(_parts(forms, cache.length))
    return len(_header(table, key, _about(cache), _DIGEST_ROOM)) + size


def write_context(path: Path, key: str, cache: ContextCache, forms: list[LayerForm]) -> None:
    """Write a context's file in one step: whoever reads at the same time finds a whole file or none.

    Args:
        path: The file; its folder must exist.
        key: All that the context's keys and values depend on, as JSON.
        cache: The context, holding nothing behind it.
        forms: From `layer_forms` of it.

    Raises:
        OSError: If it cannot be written. Nothing is left of it then.
    """
    table, _ = _table(_parts(forms, cache.length))
    about = _about(cache)
    digest = _digest(key, about)
    layers: list[Any] = cache.past_key_values.layers
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(partial, "xb", buffering=0) as file:
            _write_all(file, memoryview(_header(table, key, about, _DIGEST_ROOM)))
            _write_tensor(file, torch.tensor(cache.prompt.ids, dtype=torch.int64), digest)
            for layer in layers:
                _write_tensor(file, layer.keys, digest)
                _write_tensor(file, layer.values, digest)
            # Known only now, and as long as what stands in its place.
            file.seek(0)
            _write_all(file, memoryview(_header(table, key, about, digest.hexdigest())))
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def read_context(
    path: Path,
    key: str,
    model_name: str,
    prompt: ContextPrompt,
    forms: list[LayerForm],
    past: DynamicCache,
    pattern: PrefillConfig | None = None,
) -> ContextCache:
    """Read a context's file in one pass and verify all of it.

    Args:
        path: The file.
        key: What the file must have been written with.
        model_name: For the context.
        prompt: The context's text and ids.
        forms: What the layers must look like.
        past: An empty cache of the model, to be filled.
        pattern: What the prefill kept, which `key` names as well; None for a dense one.

    Returns:
        The context as it was after its prefill; its times and its measured density are those of that prefill.

    Raises:
        UnfitFile: If the file does not hold exactly that. The cache may then be filled in part.
        OSError: If it cannot be read.
    """
    table, size = _table(_parts(forms, len(prompt.ids)))
    layers: list[Any] = past.layers
    with open(path, "rb", buffering=0) as file:
        metadata = _read_header(file, key, table, size)
        digest = _digest(key, metadata["about"])
        parts = _parts(forms, len(prompt.ids))
        if _read_tensor(file, next(parts), digest).tolist() != prompt.ids:
            raise UnfitFile("it holds other token ids")
        for layer, form in zip(layers, forms, strict=True):
            keys, values = (_read_tensor(file, next(parts), digest).to(form.device) for _ in range(2))
            _fill(layer, keys, values, len(prompt.ids))
    if digest.hexdigest() != metadata["sha256"]:
        raise UnfitFile("its content does not have the SHA-256 that it was written with")
    try:
        about = json.loads(metadata["about"])
        wall, cpu = float(about["prefill_seconds"]), float(about["prefill_cpu_seconds"])
        density = 1.0 if pattern is None else float(about["prefill_density"])
    except (KeyError, TypeError, ValueError) as error:
        raise UnfitFile("it does not say how long the prefill took, or how much it read") from error
    return ContextCache(
        model_name,
        prompt,
        past,
        prefill_seconds=wall,
        prefill_cpu_seconds=cpu,
        prefill=pattern,
        prefill_density=density,
    )


def _fill(layer: Any, keys: torch.Tensor, values: torch.Tensor, length: int) -> None:
    """Put a layer into the state that it has after prefilling `length` tokens and being cut back to them."""
    if isinstance(layer, GrowingLayer):
        layer.update(keys, values)
        return
    layer.lazy_initialization(keys, values)
    layer.keys, layer.values, layer.cumulative_length = keys, values, length


def _parts(forms: list[LayerForm], length: int) -> Iterator[_Part]:
    """Name all tensors of a file, in their order."""
    yield "ids", torch.int64, (length,)
    for number, form in enumerate(forms):
        yield from form.parts(number, length)


def _table(parts: Iterator[_Part]) -> tuple[dict[str, Any], int]:
    """Make safetensors' table of the tensors, and tell their bytes."""
    table: dict[str, Any] = {}
    end = 0
    for name, dtype, shape in parts:
        start, end = end, end + prod(shape) * dtype.itemsize
        table[name] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    return table, end


def _about(cache: ContextCache) -> str:
    told: dict[str, Any] = {
        "model_name": cache.model_name,
        "prefill_seconds": cache.prefill_seconds,
        "prefill_cpu_seconds": cache.prefill_cpu_seconds,
    }
    if cache.prefill is not None:
        told["prefill_density"] = cache.prefill_density
    return json.dumps(told)


def _digest(key: str, about: str) -> Any:
    """Begin the digest of a file: of its key, of what it says of itself, and then of all tensors."""
    return hashlib.sha256(f"{key}\n{about}\n".encode())


def _header(table: dict[str, Any], key: str, about: str, digest: str) -> bytes:
    metadata = {"content": CONTENT, "key": key, "about": about, "sha256": digest}
    text = json.dumps({"__metadata__": metadata, **table}).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _read_header(file: FileIO, key: str, table: dict[str, Any], size: int) -> dict[str, str]:
    """Read the start of a file; its metadata is returned if all of it is as expected."""
    whole = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if length > min(whole, _LONGEST_HEADER):
        raise UnfitFile("it is no safetensors file, or was cut short")
    try:
        header = json.loads(file.read(length))
        metadata = header.pop("__metadata__")
        if not all(isinstance(metadata[name], str) for name in ("content", "key", "about", "sha256")):
            raise TypeError
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UnfitFile("it is no safetensors file of a context") from error
    if metadata["content"] != CONTENT or metadata["key"] != key:
        raise UnfitFile("it was written for another context, model or version")
    if header != table:
        raise UnfitFile("its tensors have other names, types or shapes than the model's cache")
    if whole != 8 + length + size:
        raise UnfitFile(f"it has {whole} bytes instead of {8 + length + size}")
    found: dict[str, str] = metadata
    return found


def _read_tensor(file: FileIO, part: _Part, digest: Any) -> torch.Tensor:
    _, dtype, shape = part
    tensor = torch.empty(shape, dtype=dtype)
    data = _bytes_of(tensor)
    rest = data
    while rest:
        count = file.readinto(rest)
        if not count:
            raise UnfitFile("it was cut short")
        rest = rest[count:]
    digest.update(data)
    return tensor


def _write_tensor(file: FileIO, states: torch.Tensor, digest: Any) -> None:
    data = _bytes_of(states.detach().cpu().contiguous())
    digest.update(data)
    _write_all(file, data)


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """View the memory of a contiguous tensor on the CPU; numpy has no bfloat16, but bytes."""
    data: memoryview = tensor.view(-1).view(torch.uint8).numpy().data
    return data


def _write_all(file: FileIO, data: memoryview) -> None:
    while data:
        data = data[file.write(data) :]


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
