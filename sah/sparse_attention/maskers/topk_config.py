"""Config of oracle top-k."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sah.sparse_attention.masker_config import ScoredMaskerConfig


@dataclass
class TopKMaskerConfig(ScoredMaskerConfig):
    """Keeps the keys with the largest true scores: the bound for every method that estimates them."""

    name: ClassVar[str] = "topk"
    masker: ClassVar[str] = "sah.sparse_attention.maskers.topk.OracleTopK"

    def choosing_bytes(self, head_dim: int, itemsize: int) -> float:
        """Tell what is read to choose keys: every key, and a kept one once more for its turn in attention."""
        return head_dim * itemsize
