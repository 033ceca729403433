"""Config of oracle top-k."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sah.sparse_attention.config import BudgetedMaskerConfig


@dataclass
class TopKMaskerConfig(BudgetedMaskerConfig):
    """Keeps the keys with the largest true scores: the bound for every method that estimates them."""

    name: ClassVar[str] = "topk"
    masker: ClassVar[str] = "sah.sparse_attention.maskers.topk.OracleTopK"
    size_field: ClassVar[str] = "heavy_size"

    heavy_size: int | float | None = None
    """Keys to add to what earlier maskers keep: an int is a number of keys, a float a share of the allowed ones."""
