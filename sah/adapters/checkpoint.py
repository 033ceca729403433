"""Tells one checkpoint from another by what its files, or the loaded weights, hold."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

from sah.adapters.sources.base import MANIFEST

_FILES = ("*.safetensors", "*.bin", "*.gguf", "*.json", "*.jinja", "*.model")
_HASHED_WHOLE = 64 << 20
_SAMPLES = 256
_SAMPLE_BYTES = 16 << 10
_WEIGHTS_OF_A_PARAMETER = 16


def checkpoint_hash(folder: Path, subfolder: str = "") -> str:
    """Hash the files of a local checkpoint: weights, configuration, tokenizer, chat template.

    Args:
        folder: The checkpoint's folder.
        subfolder: Folder inside it that holds the weights, if they do not lie beside the rest.

    Returns:
        Hexadecimal sha256, the same for every copy of the folder. Of a large file 256 evenly spaced pieces are read.
    """
    files = {path for place in (folder, folder / subfolder) for kind in _FILES for path in place.glob(kind)}
    digest = hashlib.sha256()
    for path in sorted(files):
        if path.name != MANIFEST:
            facts = path.stat()
            digest.update(_file_identity(path.absolute(), facts.st_size, facts.st_mtime_ns).encode())
    return digest.hexdigest()


def loaded_checkpoint_identity(model: Any, model_name: str) -> str:
    """Identify the weights of a loaded model, knowing only the name that it was loaded by.

    The name's part is the hash of a local folder's files, else the hub's commit, else the name itself. A sample of the
    loaded weights joins it: one folder may hold several models (`subfolder`, `gguf_file`), a quantisation changes what
    was read, and a name says no revision.

    Args:
        model: The loaded model of transformers.
        model_name: A local folder or a hub id.

    Returns:
        Hexadecimal sha256. The weights' type is part of it, the device is not.
    """
    import torch

    folder = Path(model_name).expanduser()
    if folder.is_dir():
        origin = checkpoint_hash(folder)
    else:
        origin = getattr(model.config, "_commit_hash", None) or model_name
    digest = hashlib.sha256(origin.encode())
    for name, parameter in model.named_parameters():
        weights = parameter.data
        digest.update(f"{name}:{tuple(weights.shape)}:{weights.dtype}".encode())
        # Offloaded weights have no values here, and quantised or sharded ones that are no plain tensor refuse slicing.
        if type(weights) is torch.Tensor and not weights.is_meta:
            step = max(1, weights.numel() // _WEIGHTS_OF_A_PARAMETER)
            digest.update(weights.reshape(-1)[::step].float().cpu().numpy().tobytes())
    return digest.hexdigest()


@functools.lru_cache(maxsize=256)
def _file_identity(path: Path, size: int, mtime_ns: int) -> str:
    """Hash a file whole or, where it is large, 256 evenly spaced pieces: other weights differ everywhere."""
    del mtime_ns  # part of the cache's key only: a copy of the file keeps its identity
    digest = hashlib.sha256(f"{path.name}:{size}:".encode())
    with path.open("rb") as handle:
        if size <= _HASHED_WHOLE:
            digest.update(handle.read())
        else:
            for index in range(_SAMPLES):
                handle.seek(index * (size - _SAMPLE_BYTES) // (_SAMPLES - 1))
                digest.update(handle.read(_SAMPLE_BYTES))
    return digest.hexdigest()
