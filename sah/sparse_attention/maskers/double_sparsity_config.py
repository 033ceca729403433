"""Config of Double Sparsity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from sah.config.values import check_count
from sah.errors import bad_value
from sah.sparse_attention.channels import channels_identity
from sah.sparse_attention.masker_config import ScoredMaskerConfig, check_label_bits, label_bytes


@dataclass
class DoubleSparsityTopKMaskerConfig(ScoredMaskerConfig):
    """Keeps the keys with the largest scores over the few channels that matter most (arXiv 2408.07092)."""

    name: ClassVar[str] = "double_sparsity"
    masker: ClassVar[str] = "sah.sparse_attention.maskers.double_sparsity.DoubleSparsityTopKMasker"

    group_factor: int = 8
    """Channels of a head divided by the channels that labels hold."""

    label_bits: int | None = 4
    """Bits a label's entry is rounded to; None keeps the keys' own type."""

    channels: str | None = None
    """A safetensors file with the order of each layer's channels; None calibrates them on the model's first use."""

    def choosing_bytes(self, head_dim: int, itemsize: int) -> float:
        """Tell what is read to choose keys: their labels."""
        return (head_dim // self.group_factor) * label_bytes(self.label_bits, itemsize)

    def identity(self) -> dict[str, Any]:
        """Return the values, the channels' file by its content."""
        return {**super().identity(), "channels": channels_identity(self.channels)}

    def validate(self) -> None:
        """Check the channels and bits.

        Raises:
            ConfigError: If one of them cannot be used.
        """
        super().validate()
        check_count(self.key("group_factor"), self.group_factor, minimum=1)
        check_label_bits(self.key("label_bits"), self.label_bits)
        key = self.key("channels")
        if self.channels is not None and not (isinstance(self.channels, str) and self.channels.strip()):
            raise bad_value(key, self.channels, "the path of a .safetensors file, or null", f"{key}=null")
