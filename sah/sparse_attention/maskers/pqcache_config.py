"""Config of PQCache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sah.config.values import check_count
from sah.errors import bad_value
from sah.sparse_attention.masker_config import ScoredMaskerConfig

EUCLIDEAN, INNER_PRODUCT = METRICS = ("euclidean", "inner_product")

MOST_BITS = 8
"""Most bits of a code: what one byte holds."""


@dataclass
class PQCacheConfig(ScoredMaskerConfig):
    """Keeps the keys with the largest product-quantised scores (arXiv 2407.12820)."""

    name: ClassVar[str] = "pqcache"
    masker: ClassVar[str] = "sah.sparse_attention.maskers.pqcache.PQCache"

    subvectors: int = 2
    """Equal parts that a key is cut into, each with a codebook of its own. The paper takes 2."""

    bits: int = 6
    """Bits of a part's code, 1 to 8: a codebook has 2 ** bits centroids. The paper takes 6."""

    iterations: int = 10
    """Steps of k-means at most, at least 1. The authors' code takes 3 to 10, by the time that there is."""

    metric: str = EUCLIDEAN
    """Distance by which parts are clustered: `euclidean`, or `inner_product`, which adds an entry to every part that
    makes all of one length."""

    def choosing_bytes(self, head_dim: int, itemsize: int) -> float:
        """Tell what is read to choose keys: their codes."""
        return self.subvectors * self.bits / 8

    def validate(self) -> None:
        """Check the codebooks' sizes and the metric.

        Raises:
            ConfigError: If one of them cannot be used.
        """
        super().validate()
        check_count(self.key("subvectors"), self.subvectors, minimum=1)
        check_count(self.key("iterations"), self.iterations, minimum=1)
        key = self.key("bits")
        if check_count(key, self.bits, minimum=1) > MOST_BITS:
            raise bad_value(key, self.bits, f"a whole number from 1 to {MOST_BITS}: a code is one byte", f"{key}=6")
        if self.metric not in METRICS:
            key = self.key("metric")
            raise bad_value(key, self.metric, ", ".join(METRICS), f"{key}={EUCLIDEAN}")
