"""Config of the A-shape: sinks and a window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sah.config.values import check_size
from sah.sparse_attention.prefill.budget_config import BudgetedPrefillConfig


@dataclass
class AShapeConfig(BudgetedPrefillConfig):
    """Every query reads the first keys and those just before it (arXiv 2309.17453; "A-shape" in arXiv 2407.02490)."""

    name: ClassVar[str] = "a_shape"
    pattern: ClassVar[str] = "sah.sparse_attention.prefill.a_shape.AShapePrefill"
    size_fields: ClassVar[tuple[str, ...]] = ("window_size",)

    sink_size: int | float = 4
    """First keys that every query reads. Under a density they count towards it, and take at most half of what a query
    reads."""

    window_size: int | float | None = None
    """Recent keys that every query reads, its own included; None gives the window what the density leaves."""

    def validate(self) -> None:
        """Check both sizes.

        Raises:
            ConfigError: If one is no size, or a window and a density are both given.
        """
        super().validate()
        check_size(self.key("sink_size"), self.sink_size, minimum=0)
        if self.window_size is not None:
            check_size(self.key("window_size"), self.window_size)
