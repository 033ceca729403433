"""What kvpress keeps of a context, as small files: data alone, made by `presses.py`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

FOLDER = Path(__file__).parents[2] / "tests" / "data" / "kvpress"
BUDGETS = (0.1, 0.3)
"""Shares of the context that are kept."""

WINDOW, KERNEL, SINKS = 64, 5, 4
"""SnapKV's observation window and pooling kernel, and StreamingLLM's first keys, on both sides."""

SCORE_LAYERS = (0, 14, 29)
"""Layers of which the scores themselves are in the files."""


def keys_of(budget: float, length: int) -> int:
    """Return the keys that a budget keeps of a context."""
    return max(1, round(budget * length))


@dataclass(frozen=True)
class Golden:
    """What kvpress found for one context."""

    text: str
    ids: list[int]
    versions: dict[str, str]
    tensors: dict[str, torch.Tensor]

    def kept(self, method: str, budget: float, layers: int, kv_heads: int) -> torch.Tensor:
        """Return the kept keys in their order, (layers, kv_heads, n), int64."""
        stored = self.tensors[f"{method}.kept.{budget:g}"].long()
        return stored.expand(layers, kv_heads, stored.shape[-1])

    def scores(self, method: str, kv_heads: int) -> torch.Tensor:
        """Return the press's own scores in `SCORE_LAYERS`, (layers, kv_heads, length), float32."""
        stored = self.tensors[f"{method}.scores"]
        return stored.expand(len(SCORE_LAYERS), kv_heads, stored.shape[-1])


def load(name: str, folder: Path = FOLDER) -> Golden:
    """Read the file of a context.

    Args:
        name: A name of `texts.TEXTS`.
        folder: Where the files lie.

    Returns:
        Its content.
    """
    with safe_open(folder / f"{name}.safetensors", framework="pt") as file:
        facts = dict(file.metadata())
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # no mapping
    text = facts.pop("text")
    return Golden(text, tensors.pop("ids").tolist(), facts, tensors)
