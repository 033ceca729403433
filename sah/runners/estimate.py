"""A rough guess at how long prefills and answers take: arithmetic operations over the rate that this machine reaches.

It knows nothing of the time that methods spend choosing keys, of Python, or of other load on the machine.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import torch

from sah.adapters.kv_cache import KVShape, kv_shape
from sah.errors import StateError
from sah.results.files import read_json
from sah.results.store import FIDELITY_FILE, POINT_FILE, PREDICTIONS_FILE, SCORES_FILE, StoredPoint, read_point

ROW_BYTES = 1400
"""Bytes of an answer in a point's folder: 1,336 for a prediction and its scores after `python -m sah.run -m
masker=topk,quest tracker=none dataset.length=512 dataset.num_examples=4`, and two more figures of answers that are
decoded together. Long answers take more."""

POINT_BYTES = 10_000
"""Bytes of a point's other files and its job's folder in the same sweep."""

_CALIBRATION_SECONDS = 0.05
_MOST_POINTS = 16
_LARGEST_SIDE = 4096
_CACHE_BYTES = 64 << 20


@dataclass(frozen=True)
class ModelCost:
    """What the tokens of a model cost, from its shapes alone.

    Args:
        model: A model of transformers; its weights are not read.
    """

    model: Any

    @cached_property
    def _config(self) -> Any:
        return self.model.config.get_text_config()

    @cached_property
    def _kv_shape(self) -> KVShape:
        return kv_shape(self.model)

    @cached_property
    def head_parameters(self) -> int:
        """Weights of the output layer."""
        head = self.model.get_output_embeddings()
        return 0 if head is None else int(head.weight.numel())

    @cached_property
    def body_parameters(self) -> int:
        """Weights that every token meets: all but the two embeddings. Of experts all are counted."""
        total = sum(parameter.numel() for parameter in self.model.parameters())
        embeddings = {id(layer.weight): layer.weight.numel() for layer in self._embeddings()}
        return int(total - sum(embeddings.values()))

    def _embeddings(self) -> list[Any]:
        found = (self.model.get_input_embeddings(), self.model.get_output_embeddings())
        return [layer for layer in found if layer is not None]

    @cached_property
    def sides(self) -> tuple[int, int]:
        """Width of the model and of its widest inner layer."""
        width = int(self._config.hidden_size)
        return width, int(getattr(self._config, "intermediate_size", None) or 4 * width)

    def _keys(self, tokens: float) -> float:
        """Return the keys that one query reads after so many tokens, over all layers."""
        config = self._config
        window = getattr(config, "sliding_window", None)
        kinds = getattr(config, "layer_types", None) or ["full_attention"] * int(config.num_hidden_layers)
        return sum(min(tokens, window) if window and kind == "sliding_attention" else tokens for kind in kinds)

    def attended(self, tokens: float) -> float:
        """Return keys that one query reads after so many tokens, times channels, over all layers."""
        heads = int(self._config.num_attention_heads)
        return heads * int(getattr(self._config, "head_dim", None) or self.sides[0] // heads) * self._keys(tokens)

    def context_bytes(self, tokens: float) -> float:
        """Return the bytes of a prefilled context on disk: its keys, values and ids."""
        shape = self._kv_shape
        return 2 * shape.kv_heads * shape.head_dim * shape.itemsize * self._keys(tokens) + 8 * tokens

    def prefill(self, tokens: float, density: float = 1.0) -> float:
        """Return the operations of a prefill: two for each weight and token, and causal attention.

        Args:
            tokens: Of the context.
            density: Share of that attention which a sparse prefill computes; its estimates are left out.
        """
        return 2 * self.body_parameters * tokens + 4 * tokens * density * self.attended(tokens / 2)

    def answer(self, context: float, tokens: float) -> float:
        """Return the operations of the tokens of one question and its answer, attention being dense."""
        return tokens * (2 * (self.body_parameters + self.head_parameters) + 4 * self.attended(context))


@dataclass(frozen=True)
class Rates:
    """Operations a second."""

    prefill: float
    answer: float
    measured_prefill: bool
    """Whether the first comes from rows of the same model, not from matrix products."""

    row_bytes: float

    @property
    def basis(self) -> str:
        """Say what they rest on."""
        products = "matrix products timed on this machine"
        prefill = "the prefill times of rows that are there" if self.measured_prefill else products
        answer = "" if not self.measured_prefill else f", answers on {products}"
        return f"Prefills rest on {prefill}{answer}; choosing keys and early ends of answers are left out."


def find_rates(cost: ModelCost, identity: dict[str, Any], output_dir: Path, width: int) -> Rates:
    """Find the rates of a model on this machine.

    Args:
        cost: The model.
        identity: The model's part of a point's identity.
        output_dir: Where rows of earlier runs may lie.
        width: How many answers are decoded together.

    Returns:
        The rates.
    """
    speeds: list[float] = []
    stored, rows = 0, 0
    for point in _points_of(identity, output_dir):
        files = [point.folder / name for name in (PREDICTIONS_FILE, FIDELITY_FILE, SCORES_FILE)]
        stored += sum(path.stat().st_size for path in files if path.exists())
        rows += len(point.predictions) + len(point.fidelity)
        for row in point.predictions.values():
            dense = row.prefill_density in (None, 1.0)
            if dense and row.prefill_reused is False and row.prefill_seconds and row.kv_len:
                speeds.append(cost.prefill(row.kv_len) / row.prefill_seconds)
    row_bytes = stored / rows if rows else ROW_BYTES
    tall = median(speeds) if speeds else _product_rate(cost, 512)
    return Rates(tall, _product_rate(cost, width), bool(speeds), row_bytes)


def _points_of(identity: dict[str, Any], output_dir: Path) -> Iterator[StoredPoint]:
    """Read the newest points of a model, a few."""
    folders = sorted((output_dir / "points").glob(f"*/{PREDICTIONS_FILE}"), key=os.path.getmtime, reverse=True)
    for path in folders[:_MOST_POINTS]:
        try:
            stored = read_json(path.with_name(POINT_FILE))
            if isinstance(stored, dict) and stored.get("identity", {}).get("model") == identity:
                yield read_point(path.parent)
        except StateError:
            continue  # an estimate is no place to complain of damaged files


def _product_rate(cost: ModelCost, rows: int) -> float:
    """Time matrix products of the model's shape; the matrices together are larger than the processor's caches."""
    inner, outer = (min(side, _LARGEST_SIDE) for side in cost.sides)
    device = _device(cost.model)
    dtype = cost.model.dtype
    bytes_each = inner * outer * torch.finfo(dtype).bits // 8
    weights = [torch.full((inner, outer), 0.01, dtype=dtype, device=device)]
    weights += [weights[0].clone() for _ in range(min(_CACHE_BYTES // bytes_each, 15))]
    states = torch.full((max(rows, 1), inner), 0.01, dtype=dtype, device=device)
    states @ weights[0]
    done, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < _CALIBRATION_SECONDS or not done:
        result = states @ weights[done % len(weights)]
        if device.type != "cpu":
            result[0, 0].item()  # waits for the device
        done += 1
    return done * 2.0 * states.shape[0] * inner * outer / max(passed, 1e-9)


def _device(model: Any) -> torch.device:
    """Tell where the model is or would be, as far as it is a single place."""
    device: torch.device = model.device
    if device.type != "meta":
        return device
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
