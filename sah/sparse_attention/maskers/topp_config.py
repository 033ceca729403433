"""Config of oracle top-p."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sah.config.values import check_share
from sah.sparse_attention.masker_config import SelectiveMaskerConfig


@dataclass
class TopPMaskerConfig(SelectiveMaskerConfig):
    """Keeps the fewest keys whose true softmax mass, with that of the keys kept before, reaches `top_p`."""

    name: ClassVar[str] = "topp"
    masker: ClassVar[str] = "sah.sparse_attention.maskers.topp.TopPMasker"

    top_p: float = 0.9
    """Softmax mass that the whole mask must hold, above 0 and at most 1; 1 keeps every key."""

    def choosing_bytes(self, head_dim: int, itemsize: int) -> float:
        """Tell what is read to choose keys: every key, and a kept one once more for its turn in attention."""
        return head_dim * itemsize

    def validate(self) -> None:
        """Check the mass.

        Raises:
            ConfigError: If it is not a share.
        """
        super().validate()
        check_share(self.key("top_p"), self.top_p)
