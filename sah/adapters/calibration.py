"""Finds the channels of a model that matter most to its attention scores, once for each model.

Double Sparsity (arXiv 2408.07092) scores keys by a few channels of head_dim. Here the importance of channel d of a KV
head is the mean of |q_d| over the calibration tokens times that of |k_d|, after the rotary embedding, summed over the
query heads that share the KV head. The product of the two means is the mean of |q_d k_d| over all pairs of a query and
a key.

How this differs from the authors' calibration (github.com/andy-yang-1/DoubleSparse, config/offline_calibration.py):

- Text: theirs is 256 samples of the Pile's validation set in blocks of 512 tokens, ours is the prose that comes with
  Python, in one sequence, so that nothing is downloaded.
- They write three rankings to choose from: by the mean of |q_d|, by that of |k_d|, both before the rotary embedding,
  and by the mean of |q_d k_d| after it, with each query multiplied by the key of its own token only.
- That last ranking is per query head there and folds tokens and heads together when it averages; ours is per KV head,
  so that the label cache holds each key once.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from sah import fetching
from sah.adapters.channel_files import UnfitFile, fitting, load_channel_file, read_channels, write_channels
from sah.adapters.checkpoint import loaded_checkpoint_identity
from sah.adapters.magnitudes import record_magnitudes
from sah.sparse_attention.auto import every_masker
from sah.sparse_attention.base import SparseAttention
from sah.sparse_attention.channels import (
    CALIBRATION_TOKENS,
    CALIBRATION_VERSION,
    calibration_text,
    calibration_text_digest,
)

if TYPE_CHECKING:
    from sah.adapters.huggingface import ModelAdapterHF

_log = logging.getLogger(__name__)


def give_channels(adapter: ModelAdapterHF, sparse_attention: SparseAttention) -> None:
    """Hand the channels to the maskers that need them: those with `needs_channels`, through `use_channels`.

    Args:
        adapter: The model.
        sparse_attention: The attention; the order comes from the file that a masker's config names in `channels`, else
            from the calibration.

    Raises:
        ConfigError: If a file is named that cannot be used.
    """
    orders: dict[str | None, dict[int, torch.Tensor]] = {}
    for masker in every_masker(sparse_attention):
        if not getattr(masker, "needs_channels", False):
            continue
        path = masker.config.channels
        if path not in orders:
            orders[path] = channel_order(adapter) if path is None else _given_order(adapter, path)
        masker.use_channels(orders[path])


def channel_order(adapter: ModelAdapterHF) -> dict[int, torch.Tensor]:
    """Give a model's channels by importance: from the user's cache, or calibrated now and stored there.

    The file is `channels/<model>-<dtype>-v<version>.safetensors` in sah's cache folder. One that does not fit is made
    again.

    Args:
        adapter: The model. Its weights and its attention stay as they are.

    Returns:
        Layer to channels, int64 (kv_heads, head_dim) on the CPU, most important first, for every layer that attends to
        the whole sequence.
    """
    ids = _calibration_ids(adapter)
    shapes = _layer_shapes(adapter, ids)
    if not shapes:
        return {}
    dtype = str(adapter.model.dtype).removeprefix("torch.")
    identity = loaded_checkpoint_identity(adapter.model, adapter.model_name)
    metadata = {
        "content": "sah channel order",
        "version": str(CALIBRATION_VERSION),
        "model": identity,
        "dtype": dtype,
        "tokens": str(len(ids)),
        "text_sha256": calibration_text_digest(),
    }
    path = fetching.cache_dir() / "channels" / f"{identity[:16]}-{dtype}-v{CALIBRATION_VERSION}.safetensors"
    if path.exists():
        try:
            order, stored = read_channels(path)
            if stored != metadata:
                raise UnfitFile("it was made by another calibration")
            return fitting(order, shapes)
        except UnfitFile as error:
            _log.warning("The channels in %s are not used: %s. Calibrating again.", path, error)
    order = calibrate(adapter, ids)
    try:
        write_channels(path, order, metadata)
        _log.info("Channels of %s are kept in %s.", adapter.model_name, path)
    except OSError as error:
        _log.warning("The channels cannot be kept in %s: %s. They will be calibrated again.", path, error)
    return order


def calibrate(adapter: ModelAdapterHF, ids: torch.Tensor) -> dict[int, torch.Tensor]:
    """Run a text through a model, dense, and order its channels by importance.

    Args:
        adapter: The model.
        ids: The text's tokens, int64 (length,).

    Returns:
        As `channel_order`. Equally important channels keep their order.
    """
    what = "Calibrating the channels of %s on %d tokens, once for this model."
    _log.info(what, adapter.model_name, len(ids))
    if len(ids) < CALIBRATION_TOKENS:
        _log.info("That is less than %d tokens: the model's window or the text allows no more.", CALIBRATION_TOKENS)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("tokens"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    with progress:
        task = progress.add_task("calibrating channels", total=len(ids))
        sums = record_magnitudes(adapter, ids, lambda tokens: progress.advance(task, tokens))
    return {layer: _by_importance(*both) for layer, both in sums.items()}


def _by_importance(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Order channels by the sums of |q| (heads, head_dim) and |k| (kv_heads, head_dim); (kv_heads, head_dim)."""
    grouped = queries.view(keys.shape[0], -1, keys.shape[1]).sum(1)
    return (grouped * keys).cpu().argsort(dim=-1, descending=True, stable=True)


def _calibration_ids(adapter: ModelAdapterHF) -> torch.Tensor:
    """Tokens of the calibration text as the tokenizer makes them, (length,)."""
    ids = adapter.tokenizer(calibration_text(), verbose=False)["input_ids"]
    return torch.tensor(ids[: min(CALIBRATION_TOKENS, adapter.window or CALIBRATION_TOKENS)])


def _given_order(adapter: ModelAdapterHF, path: str) -> dict[int, torch.Tensor]:
    """Read the user's file and check that it fits the model."""
    return load_channel_file(path, _layer_shapes(adapter, _calibration_ids(adapter)))


def _layer_shapes(adapter: ModelAdapterHF, ids: torch.Tensor) -> dict[int, tuple[int, int]]:
    """See from one token which layers attend to the whole sequence, and their (kv_heads, head_dim)."""
    return {layer: (keys.shape[0], keys.shape[1]) for layer, (_, keys) in record_magnitudes(adapter, ids[:1]).items()}
