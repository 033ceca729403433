"""Config of the causal masker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sah.sparse_attention.masker_config import MaskerConfig


@dataclass
class CausalMaskerConfig(MaskerConfig):
    """Keeps every allowed key: dense attention, but run through sah's own attention."""

    name: ClassVar[str] = "causal"
    masker: ClassVar[str] = "sah.sparse_attention.maskers.causal.CausalMasker"
    is_pattern: ClassVar[bool] = True
