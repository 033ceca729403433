"""Config of StreamingLLM's pattern: sinks and a window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sah.config.values import check_size
from sah.sparse_attention.masker_config import BudgetedMaskerConfig


@dataclass
class StreamingLLMMaskerConfig(BudgetedMaskerConfig):
    """Keeps the first keys and fills the rest of the budget with the most recent ones (arXiv 2309.17453)."""

    name: ClassVar[str] = "streaming_llm"
    masker: ClassVar[str] = "sah.sparse_attention.maskers.streaming_llm.StreamingLLMMasker"
    size_field: ClassVar[str] = "window_size"

    sink_size: int | float = 4
    """First keys to keep. Under a density they count towards it and leave at least one key to the window."""

    window_size: int | float | None = None
    """Recent keys to keep; None gives the window what the density leaves beside the sinks."""

    @property
    def evicts(self) -> bool:
        """Whether a key that is not kept is never kept again: sinks that are a share grow with the sequence."""
        return isinstance(self.sink_size, int)

    def validate(self) -> None:
        """Check both sizes.

        Raises:
            ConfigError: If one is no size, or a window and a density are both given.
        """
        super().validate()
        check_size(self.key("sink_size"), self.sink_size, minimum=0)
