"""Config of Quest's pages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sah.config.values import check_count
from sah.sparse_attention.masker_config import ScoredMaskerConfig, check_label_bits, label_bytes


@dataclass
class QuestTopKMaskerConfig(ScoredMaskerConfig):
    """Keeps the pages of keys whose upper bound of the scores is largest (arXiv 2406.10774)."""

    name: ClassVar[str] = "quest"
    masker: ClassVar[str] = "sah.sparse_attention.maskers.quest.QuestTopKMasker"

    page_size: int = 16
    """Keys of a page. The paper uses 16."""

    label_bits: int | None = None
    """Bits a bound is rounded to, outwards, so that it stays one but for the last bit of the arithmetic; None keeps the
    keys' own type, as the paper does."""

    def choosing_bytes(self, head_dim: int, itemsize: int) -> float:
        """Tell what is read to choose pages: the smallest and largest entries of each."""
        return 2 * head_dim * label_bytes(self.label_bits, itemsize) / self.page_size

    def validate(self) -> None:
        """Check page and bits.

        Raises:
            ConfigError: If one of them cannot be used.
        """
        super().validate()
        check_count(self.key("page_size"), self.page_size, minimum=1)
        check_label_bits(self.key("label_bits"), self.label_bits)
