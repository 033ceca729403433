"""Config of HashAttention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from sah.errors import bad_value
from sah.sparse_attention.hash_identity import weights_identity
from sah.sparse_attention.masker_config import ScoredMaskerConfig

MOST_BITS = 256


@dataclass
class HashAttentionTopKMaskerConfig(ScoredMaskerConfig):
    """Keeps the keys whose learned bit signatures agree most with the query's (arXiv 2412.14468)."""

    name: ClassVar[str] = "hash_attention"
    masker: ClassVar[str] = "sah.sparse_attention.maskers.hash_attention.HashAttentionTopKMasker"

    bits: int = 32
    """Bits of a signature, a multiple of 8."""

    weights: str | None = None
    """A safetensors file with each layer's networks; None takes those that were trained for the model."""

    def choosing_bytes(self, head_dim: int, itemsize: int) -> float:
        """Tell what is read to choose keys: their signatures, with one network of keys a KV head."""
        return self.bits / 8

    def identity(self) -> dict[str, Any]:
        """Return the values, the networks' file by its content."""
        return {**super().identity(), "weights": weights_identity(self.weights)}

    def validate(self) -> None:
        """Check the bits and the file's name.

        Raises:
            ConfigError: If one of them cannot be used.
        """
        super().validate()
        key, bits = self.key("bits"), self.bits
        whole = isinstance(bits, int) and not isinstance(bits, bool)
        if not whole or bits % 8 or not 8 <= bits <= MOST_BITS:
            raise bad_value(key, bits, f"a multiple of 8 from 8 to {MOST_BITS}", f"{key}=32")
        key = self.key("weights")
        if self.weights is not None and not (isinstance(self.weights, str) and self.weights.strip()):
            raise bad_value(key, self.weights, "the path of a .safetensors file, or null", f"{key}=null")
