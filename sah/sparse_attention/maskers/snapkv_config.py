"""Config of SnapKV."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sah.config.values import check_count
from sah.errors import bad_value
from sah.sparse_attention.maskers.evicting_config import EvictingMaskerConfig


@dataclass
class SnapKVMaskerConfig(EvictingMaskerConfig):
    """Keeps the keys that the last queries of a text attend to, with their neighbours (arXiv 2404.14469)."""

    name: ClassVar[str] = "snapkv"
    masker: ClassVar[str] = "sah.sparse_attention.maskers.snapkv.SnapKVMasker"
    size_field: ClassVar[str] = "budget"
    observes: ClassVar[str] = "window"

    budget: int | float | None = None
    """Keys to keep in all: an int is a number of keys, a float a share of the allowed ones."""

    window: int = 32
    """Last queries whose attention decides. Their own keys are kept before all others, and so are those of the
    question: a budget that these fill leaves nothing to be chosen."""

    kernel: int = 5
    """Keys that attention is averaged over, an odd number; 1 averages over none."""

    def validate(self) -> None:
        """Check window and kernel.

        Raises:
            ConfigError: If one of them cannot be used.
        """
        super().validate()
        check_count(self.key("window"), self.window, minimum=1)
        key = self.key("kernel")
        if check_count(key, self.kernel, minimum=1) % 2 == 0:
            raise bad_value(key, self.kernel, "an odd number, so that a key stands in the middle", f"{key}=5")
