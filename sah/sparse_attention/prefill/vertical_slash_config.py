"""Config of vertical lines and slashes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sah.config.values import check_count, check_size
from sah.errors import ConfigError
from sah.sparse_attention.prefill.budget_config import BudgetedPrefillConfig


@dataclass
class VerticalSlashConfig(BudgetedPrefillConfig):
    """Reads the keys (vertical lines) and distances (slashes) that the last queries attend to (arXiv 2407.02490)."""

    name: ClassVar[str] = "vertical_slash"
    pattern: ClassVar[str] = "sah.sparse_attention.prefill.vertical_slash.VerticalSlashPrefill"
    size_fields: ClassVar[tuple[str, ...]] = ("vertical_size", "slash_size")

    vertical_size: int | float | None = None
    """Keys that every later query reads; an int is a number of keys, a float a share of the context's. Given together
    with `slash_size`; None for both leaves the division to the density, for each head."""

    slash_size: int | float | None = None
    """Distances between query and key that are read; an int is a number of them, a float a share of the context's
    length. Rounded up to whole blocks of distances."""

    last_queries: int = 64
    """Queries at the end of the call whose attention is computed in full to find the lines."""

    block_size: int = 64
    """Distances of a block, and queries that are computed together."""

    def validate(self) -> None:
        """Check sizes and counts.

        Raises:
            ConfigError: If one cannot be used, only one of the two sizes is given, or a density beside them.
        """
        super().validate()
        check_count(self.key("last_queries"), self.last_queries, minimum=1)
        check_count(self.key("block_size"), self.block_size, minimum=1)
        sizes = {name: getattr(self, name) for name in self.size_fields}
        for name, size in sizes.items():
            if size is not None:
                check_size(self.key(name), size, minimum=0)
        missing = [name for name, size in sizes.items() if size is None]
        if len(missing) == 1:
            given = next(name for name in sizes if name not in missing)
            raise ConfigError(
                f"{self.key(given)}={sizes[given]!r} is given without {self.key(missing[0])}. Allowed: both sizes, or "
                f"a density. Write for example {self.key('vertical_size')}=1000 {self.key('slash_size')}=1024"
            )
