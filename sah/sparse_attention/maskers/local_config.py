"""Config of the local (sliding window) masker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sah.config.values import check_size
from sah.sparse_attention.masker_config import MaskerConfig


@dataclass
class LocalMaskerConfig(MaskerConfig):
    """Keeps the most recent keys of each query, the window of StreamingLLM (arXiv 2309.17453)."""

    name: ClassVar[str] = "local"
    masker: ClassVar[str] = "sah.sparse_attention.maskers.local.LocalMasker"
    is_pattern: ClassVar[bool] = True

    window_size: int | float = 64
    """Keys to keep, the query's own included: an int is a number of keys, a float a share of the allowed ones."""

    @property
    def evicts(self) -> bool:
        """Whether a key that is not kept is never kept again."""
        return True

    def validate(self) -> None:
        """Check the size.

        Raises:
            ConfigError: If it is no size.
        """
        super().validate()
        check_size(self.key("window_size"), self.window_size, minimum=0)
