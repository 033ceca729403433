"""Config of the sink masker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sah.config.values import check_size
from sah.sparse_attention.masker_config import MaskerConfig


@dataclass
class SinkMaskerConfig(MaskerConfig):
    """Keeps the first keys of the sequence, the attention sinks of StreamingLLM (arXiv 2309.17453)."""

    name: ClassVar[str] = "sink"
    masker: ClassVar[str] = "sah.sparse_attention.maskers.sink.SinkMasker"
    is_pattern: ClassVar[bool] = True

    sink_size: int | float = 4
    """Keys to keep: an int is a number of keys, a float a share of the allowed ones. The paper uses 4."""

    @property
    def evicts(self) -> bool:
        """Whether a key that is not kept is never kept again: sinks that are a share grow with the sequence."""
        return isinstance(self.sink_size, int)

    def validate(self) -> None:
        """Check the size.

        Raises:
            ConfigError: If it is no size.
        """
        super().validate()
        check_size(self.key("sink_size"), self.sink_size, minimum=0)
