"""Configs of the named attention classes: sinks, a window and one method, by their own values. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from sah.errors import ConfigError
from sah.sparse_attention.config import EfficientAttentionConfig
from sah.sparse_attention.masker_config import HEAD, MaskerConfig, ScoredMaskerConfig
from sah.sparse_attention.maskers.double_sparsity_config import DoubleSparsityTopKMaskerConfig
from sah.sparse_attention.maskers.hash_attention_config import HashAttentionTopKMaskerConfig
from sah.sparse_attention.maskers.local_config import LocalMaskerConfig
from sah.sparse_attention.maskers.sink_config import SinkMaskerConfig


@dataclass(kw_only=True)
class NamedAttentionConfig(EfficientAttentionConfig):
    """Base: the recipe sink, local and one method, which follows from the values and is no value itself.

    A size of 0 leaves sinks or window out. The budget is either `density`, a target for the whole mask with sinks and
    window, or `heavy_size`, which the method adds to them.
    """

    masker_configs: list[MaskerConfig] = field(init=False, repr=False, compare=False, default_factory=list)

    sink_size: int | float = 4
    """First keys to keep; see `SinkMaskerConfig`."""

    window_size: int | float = 64
    """Most recent keys to keep; see `LocalMaskerConfig`."""

    density: float | None = None
    """Share of the allowed keys that the whole mask is filled up to."""

    heavy_size: int | float | None = None
    """Keys that the method adds: an int is a number of keys, a float a share of the allowed ones."""

    selection: str = HEAD
    """`head`: each query head its own keys. `group`: one set a KV head."""

    group_score: str = "mean"
    """How `selection: group` combines scores; see `ScoredMaskerConfig`."""

    def method(self) -> ScoredMaskerConfig:
        """Return the config of the method's masker."""
        raise NotImplementedError

    def validate(self) -> None:
        """Make the recipe of the values, and check it as a whole.

        Raises:
            ConfigError: If a value, or the recipe, cannot be used.
        """
        before = self.masker_configs
        sink, local = SinkMaskerConfig(self.sink_size), LocalMaskerConfig(self.window_size)
        ends: list[MaskerConfig] = [*([sink] if self.sink_size else []), *([local] if self.window_size else [])]
        object.__setattr__(self, "masker_configs", [*ends, self.method()])
        try:
            super().validate()
        except ConfigError:
            object.__setattr__(self, "masker_configs", before)
            raise

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "masker_configs" and getattr(self, "_built", False):
            raise ConfigError(
                f"The masker_configs of {type(self).__name__} follow from its other values and cannot be given. Set "
                "those, or write EfficientAttentionConfig(masker_configs=[...])"
            )
        super().__setattr__(name, value)

    def _common(self) -> dict[str, Any]:
        """Return the values that are fields of every method's masker as well."""
        return {name: getattr(self, name) for name in ("density", "heavy_size", "selection", "group_score")}


@dataclass(frozen=True)
class ChannelConfig:
    """The channels by which Double Sparsity scores keys; see `DoubleSparsityTopKMaskerConfig`.

    Raises:
        ConfigError: If a value cannot be used.
    """

    group_factor: int = 8
    """Channels of a head divided by the channels that labels hold."""

    label_bits: int | None = 4
    """Bits a label's entry is rounded to; None keeps the keys' own type."""

    channels: str | None = None
    """A safetensors file with the order of each layer's channels; None calibrates them on the model's first use."""

    def __post_init__(self) -> None:
        self.masker()

    def masker(self, **common: Any) -> DoubleSparsityTopKMaskerConfig:
        """Return the masker's config with these channels and further values."""
        return DoubleSparsityTopKMaskerConfig(
            group_factor=self.group_factor, label_bits=self.label_bits, channels=self.channels, **common
        )


@dataclass(kw_only=True)
class DoubleSparsityConfig(NamedAttentionConfig):
    """Sinks, a window, and the keys with the largest scores over a few channels (arXiv 2408.07092)."""

    attention: ClassVar[str] = "sah.sparse_attention.named_attention.DoubleSparsity"

    channel_config: ChannelConfig = field(default_factory=ChannelConfig)
    """Which channels, and how they are held."""

    def method(self) -> ScoredMaskerConfig:
        """Return the config of `double_sparsity`."""
        if not isinstance(self.channel_config, ChannelConfig):
            raise ConfigError(
                f"channel_config={self.channel_config!r} is not allowed. Allowed: a ChannelConfig. Write for example: "
                "channel_config=ChannelConfig(group_factor=8)"
            )
        return self.channel_config.masker(**self._common())


@dataclass(kw_only=True)
class HashAttentionConfig(NamedAttentionConfig):
    """Sinks, a window, and the keys whose learned bit signatures agree most with the query's (arXiv 2412.14468)."""

    attention: ClassVar[str] = "sah.sparse_attention.named_attention.HashAttention"

    bits: int = 32
    """Bits of a signature, a multiple of 8."""

    weights: str | None = None
    """A safetensors file with each layer's networks; None takes those that were trained for the model."""

    def method(self) -> ScoredMaskerConfig:
        """Return the config of `hash_attention`."""
        return HashAttentionTopKMaskerConfig(bits=self.bits, weights=self.weights, **self._common())
