"""Config of SOCKET."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sah.config.values import check_count
from sah.errors import bad_value
from sah.sparse_attention.masker_config import ScoredMaskerConfig

MOST_PLANES = 14
"""Most planes of a table: every query has a probability for each of its 2 ** planes buckets."""

BYTES_OF_NORM = 4


@dataclass
class SocketMaskerConfig(ScoredMaskerConfig):
    """Keeps the keys with the largest soft collision scores times the norms of their values (arXiv 2602.06283)."""

    name: ClassVar[str] = "socket"
    masker: ClassVar[str] = "sah.sparse_attention.maskers.socket.SocketMasker"

    planes: int = 8
    """Random planes of a table (P), 1 to 14: the sides that a key lies on name its bucket, one of 2 ** planes."""

    tables: int = 60
    """Hash tables (L). 8 planes and 60 tables are what the authors' code runs with by default."""

    tau: float = 0.3
    """Temperature of a query's softmax over buckets: the smaller, the more it is its own bucket that counts."""

    def choosing_bytes(self, head_dim: int, itemsize: int) -> float:
        """Tell what is read to choose keys: their buckets, and the norms of their values."""
        return self.tables * self.planes / 8 + BYTES_OF_NORM

    def validate(self) -> None:
        """Check planes, tables and temperature.

        Raises:
            ConfigError: If one of them cannot be used.
        """
        super().validate()
        key = self.key("planes")
        if check_count(key, self.planes, minimum=1) > MOST_PLANES:
            raise bad_value(key, self.planes, f"a whole number from 1 to {MOST_PLANES}", f"{key}=8")
        check_count(self.key("tables"), self.tables, minimum=1)
        is_number = isinstance(self.tau, int | float) and not isinstance(self.tau, bool)
        if not (is_number and 0 < self.tau < float("inf")):
            raise bad_value(self.key("tau"), self.tau, "a number above 0", f"{self.key('tau')}=0.3")
