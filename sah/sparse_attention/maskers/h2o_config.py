"""Config of H2O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sah.config.values import check_size
from sah.sparse_attention.maskers.evicting_config import EvictingMaskerConfig


@dataclass
class H2OMaskerConfig(EvictingMaskerConfig):
    """Keeps the keys that were paid most attention so far, and recent ones (arXiv 2306.14048)."""

    name: ClassVar[str] = "h2o"
    masker: ClassVar[str] = "sah.sparse_attention.maskers.h2o.H2OMasker"
    size_field: ClassVar[str] = "heavy_size"
    observes: ClassVar[str] = "mass"

    heavy_size: int | float | None = None
    """Heavy hitters to keep beside the recent keys: an int is a number of keys, a float a share of the allowed ones."""

    recent: int | float | None = None
    """Most recent keys, which are never evicted; None makes them as many as the heavy hitters, as the paper does. Under
    a density they count towards it."""

    def validate(self) -> None:
        """Check the sizes.

        Raises:
            ConfigError: If one of them cannot be used.
        """
        super().validate()
        if self.recent is not None:
            check_size(self.key("recent"), self.recent, minimum=0)
