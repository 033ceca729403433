"""Config of uniform random sampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sah.sparse_attention.masker_config import BudgetedMaskerConfig, SelectiveMaskerConfig


@dataclass
class RandomSamplingMaskerConfig(SelectiveMaskerConfig, BudgetedMaskerConfig):
    """Draws keys uniformly, without replacement, from those not yet kept, and weighs them by 1/p."""

    name: ClassVar[str] = "random"
    masker: ClassVar[str] = "sah.sparse_attention.maskers.random.RandomSamplingMasker"
    size_field: ClassVar[str] = "sampling_rate"
    is_sampler: ClassVar[bool] = True

    sampling_rate: int | float | None = None
    """Keys to draw: an int is a number of keys, a float a share of the allowed ones."""
