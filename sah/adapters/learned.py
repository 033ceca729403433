"""Gives maskers what was learned about the model: Double Sparsity's channels, HashAttention's networks."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from sah import fetching
from sah.adapters.calibration import give_channels
from sah.adapters.checkpoint import loaded_checkpoint_identity
from sah.adapters.hash_files import LayerShape, UnfitWeights, fitting_weights, read_weights, unusable_weights
from sah.adapters.recording import layer_shapes
from sah.adapters.sources import all_sources
from sah.errors import ConfigError
from sah.sparse_attention.auto import every_masker
from sah.sparse_attention.base import SparseAttention
from sah.sparse_attention.hash_identity import HASH_VERSION, WEIGHTS_KEY
from sah.sparse_attention.hash_weights import HashLayer

if TYPE_CHECKING:
    from sah.adapters.huggingface import ModelAdapterHF


def give_learned(adapter: ModelAdapterHF, sparse_attention: SparseAttention) -> None:
    """Hand channels and hash networks to the maskers that need them.

    Those with `needs_channels` get channels (see `give_channels`); those with `needs_hash_weights` get networks through
    `use_hash_weights`.

    Args:
        adapter: The model.
        sparse_attention: The attention. The networks come from the file that a masker's config names in `weights`, else
            from those trained for this model.

    Raises:
        ConfigError: If a file is named that cannot be used, or nothing was trained for this model yet: training takes
            minutes, so it is a command of its own, and the message gives it.
    """
    give_channels(adapter, sparse_attention)
    found: dict[tuple[str | None, int], dict[int, HashLayer]] = {}
    for masker in every_masker(sparse_attention):
        if not getattr(masker, "needs_hash_weights", False):
            continue
        wanted = (masker.config.weights, masker.config.bits)
        if wanted not in found:
            found[wanted] = hash_weights(adapter, *wanted)
        masker.use_hash_weights(found[wanted])


def hash_weights(adapter: ModelAdapterHF, path: str | None, bits: int) -> dict[int, HashLayer]:
    """Read the networks of a model's layers.

    Args:
        adapter: The model.
        path: A file, or None for those trained for this model.
        bits: Of a signature.

    Returns:
        Layer to networks, for every layer that attends to the whole sequence.

    Raises:
        ConfigError: As `give_learned`.
    """
    shapes = layer_shapes(adapter)
    if path is not None:
        try:
            layers, _ = read_weights(Path(path).expanduser())
            return fitting_weights(layers, shapes, bits)
        except UnfitWeights as error:
            raise unusable_weights(path, str(error)) from error
    return _trained(adapter, shapes, bits)


def weights_metadata(adapter: ModelAdapterHF, bits: int) -> dict[str, str]:
    """Say what networks are for: the model by its checkpoint and dtype, the bits, and the training's version."""
    return {
        "content": "sah hash weights",
        "version": str(HASH_VERSION),
        "model": loaded_checkpoint_identity(adapter.model, adapter.model_name),
        "dtype": str(adapter.model.dtype).removeprefix("torch."),
        "bits": str(bits),
    }


def weights_file(metadata: dict[str, str]) -> Path:
    """Tell where networks are kept: `hash/<model>-<dtype>-b<bits>-v<version>.safetensors` in sah's cache folder."""
    name = f"{metadata['model'][:16]}-{metadata['dtype']}-b{metadata['bits']}-v{metadata['version']}"
    return fetching.cache_dir() / "hash" / f"{name}.safetensors"


def _trained(adapter: ModelAdapterHF, shapes: dict[int, LayerShape], bits: int) -> dict[int, HashLayer]:
    if not shapes:
        return {}
    wanted = weights_metadata(adapter, bits)
    path = weights_file(wanted)
    problem = f"hash_attention has no networks of {bits} bits for this model yet"
    if path.exists():
        try:
            layers, stored = read_weights(path)
            if any(stored.get(name) != value for name, value in wanted.items()):
                raise UnfitWeights("it was trained for another model")
            return fitting_weights(layers, shapes, bits)
        except UnfitWeights as error:
            problem = f"what was trained for this model, {path}, cannot be used: {error}"
    raise ConfigError(
        f"{WEIGHTS_KEY}=null: {problem}. They are trained once for a model, on its own queries and keys. Run: "
        f"{train_command(adapter, bits)}  Or give a file: {WEIGHTS_KEY}=<file.safetensors>"
    )


def train_command(adapter: ModelAdapterHF, bits: int) -> str:
    """Write the command that trains networks for a model as it is loaded.

    Args:
        adapter: The model.
        bits: Of a signature.

    Returns:
        A line for a shell.
    """
    folders = {str(source.folder): name for name, source in all_sources().items()}
    name = folders.get(adapter.model_name, adapter.model_name)
    dtype = str(adapter.model.dtype).removeprefix("torch.")
    loading = [] if dtype == "float32" else [f"+model.model_kwargs.dtype={dtype}"]
    return shlex.join(["python", "-m", "sah.train_hash", f"model.name={name}", *loading, f"bits={bits}"])
