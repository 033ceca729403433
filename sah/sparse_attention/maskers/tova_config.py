"""Config of TOVA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sah.sparse_attention.maskers.evicting_config import EvictingMaskerConfig


@dataclass
class TOVAMaskerConfig(EvictingMaskerConfig):
    """Drops at every token the key that the query at hand attends to least (arXiv 2401.06104)."""

    name: ClassVar[str] = "tova"
    masker: ClassVar[str] = "sah.sparse_attention.maskers.tova.TOVAMasker"
    size_field: ClassVar[str] = "budget"
    observes: ClassVar[str] = "window"

    budget: int | float | None = None
    """Keys to keep in all: an int is a number of keys, a float a share of the allowed ones."""
