"""Trains HashAttention's networks for a model, once, on the model's own queries and keys.

The model reads prose, dense; queries and keys after the rotary embedding are kept in memory, and each layer's networks
are fitted to them by themselves (see `hash_fit`). A finished layer is on disk at once, so a run that was stopped goes
on behind it, and ends with the same networks as a run that was not: a layer's random choices depend on the seed and its
number alone.

The authors train on OpenWebText, 64,000 tokens at a time. Here it is the prose that comes with Python, in two pieces
of 4,096 tokens, so that nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
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

from sah.adapters.hash_files import UnfitWeights, fitting_weights, read_weights, write_weights
from sah.adapters.hash_fit import FitOptions, fit_layer
from sah.adapters.learned import weights_file, weights_metadata
from sah.adapters.recording import States, layer_shapes, record_states
from sah.sparse_attention.hash_weights import HashLayer

if TYPE_CHECKING:
    from sah.adapters.huggingface import ModelAdapterHF

_log = logging.getLogger(__name__)

TEXTS = 2
TEXT_TOKENS = 4096
"""Tokens of one text; fewer where the model's window is shorter. Networks know only distances that they have seen."""
QUERY_EVERY = 2
"""Of the queries every second is kept, which nearly halves the memory."""


@dataclass(frozen=True)
class TrainingOptions:
    """What the user chooses."""

    bits: int = 32
    steps: int = 300
    seed: int = 0
    output: Path | None = None
    """A file for the networks; None for sah's cache folder, where `masker=hash_attention` looks for them."""


@cache
def training_text() -> str:
    """Give the text that is trained on: prose paragraphs of the Python language reference.

    Returns:
        The paragraphs in `pydoc_data.topics` that are neither code nor grammar, in the topics' alphabetical order, each
        once. They are part of every Python, and may change with Python's version.
    """
    from pydoc_data.topics import topics

    blocks = (block for name in sorted(topics) for block in topics[name].split("\n\n"))
    prose = (" ".join(block.split()) for block in blocks if block[:1].isupper() and block.endswith("."))
    return "\n\n".join(dict.fromkeys(prose))


def train_model(adapter: ModelAdapterHF, options: TrainingOptions) -> Path:
    """Train networks for every layer that attends to the whole sequence, and store them.

    What is finished is not done again: neither layers that an earlier, stopped run with the same options left behind,
    nor all of it where the file is there already.

    Args:
        adapter: The model. Its weights and its attention stay as they are.
        options: What to train, and where to.

    Returns:
        The file.

    Raises:
        OSError: If a file cannot be written.
    """
    shapes = layer_shapes(adapter)
    metadata = {
        **weights_metadata(adapter, options.bits),
        "steps": str(options.steps),
        "seed": str(options.seed),
        "texts": f"{TEXTS} of {TEXT_TOKENS}, every {QUERY_EVERY}",
        "text_sha256": hashlib.sha256(training_text().encode()).hexdigest(),
    }
    path = options.output or weights_file(metadata)
    if stored_layers(path, metadata).keys() >= shapes.keys():
        _log.info("The networks of %s are there already: %s.", adapter.model_name, path)
        return path
    parts = path.with_name(f"{path.name}.layers")
    done: dict[int, HashLayer] = {}
    for layer in shapes:
        done |= {
            found: networks
            for found, networks in stored_layers(_part(parts, layer), metadata).items()
            if found == layer
        }
    todo = [layer for layer in shapes if layer not in done]
    if done:
        _log.info("%d of %d layers are trained already and are taken from %s.", len(done), len(shapes), parts)
    with _bar() as bar:
        if todo:
            ids = training_ids(adapter)
            reading = bar.add_task("reading prose, tokens", total=sum(len(text) for text in ids))
            texts = [
                record_states(adapter, text, lambda tokens: bar.advance(reading, tokens), QUERY_EVERY) for text in ids
            ]
            task = bar.add_task("training, steps of all layers", total=len(todo) * options.steps)
            for layer in todo:
                done[layer] = _fit(texts, layer, options, lambda steps: bar.advance(task, steps))
                write_weights(_part(parts, layer), {layer: done[layer]}, metadata)
    write_weights(path, fitting_weights(done, shapes, options.bits), metadata)
    shutil.rmtree(parts, ignore_errors=True)
    return path


def training_ids(adapter: ModelAdapterHF) -> list[torch.Tensor]:
    """Cut the training text into pieces, spread evenly over it.

    Args:
        adapter: The model whose tokenizer and window count.

    Returns:
        `TEXTS` pieces of at most `TEXT_TOKENS` tokens, int64.
    """
    ids = torch.tensor(adapter.tokenizer(training_text(), verbose=False)["input_ids"])
    length = min(TEXT_TOKENS, adapter.window or TEXT_TOKENS, len(ids))
    step = max(1, (len(ids) - length) // max(1, TEXTS - 1))
    return [ids[start : start + length] for start in range(0, len(ids) - length + 1, step)][:TEXTS]


def stored_layers(path: Path, metadata: dict[str, str]) -> dict[int, HashLayer]:
    """Read networks that were trained in just this way.

    Args:
        path: A file, which need not be there.
        metadata: What it must say of itself.

    Returns:
        Layer to networks; nothing if there is no such file, or it is damaged, or from another training.
    """
    if not path.exists():
        return {}
    try:
        layers, stored = read_weights(path)
        if stored != metadata:
            raise UnfitWeights("it comes from another training")
    except UnfitWeights as error:
        _log.info("%s is not used: %s.", path, error)
        return {}
    return layers


def _fit(texts: list[States], layer: int, options: TrainingOptions, advance: Callable[[int], None]) -> HashLayer:
    fit = FitOptions(options.bits, options.steps, options.seed, every=QUERY_EVERY)
    return fit_layer([states[layer] for states in texts], layer, fit, advance)


def _part(folder: Path, layer: int) -> Path:
    return folder / f"layer.{layer}.safetensors"


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
