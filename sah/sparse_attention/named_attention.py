"""Attention classes named after a method: `EfficientAttention` over a recipe that their config makes."""

from __future__ import annotations

from sah.errors import ConfigError
from sah.sparse_attention.config import MaskedAttentionConfig
from sah.sparse_attention.efficient import EfficientAttention
from sah.sparse_attention.named_attention_config import DoubleSparsityConfig, HashAttentionConfig, NamedAttentionConfig


class NamedAttention(EfficientAttention):
    """Base: sinks, a window and one method's masker, in the fast execution.

    Args:
        config: The method's own config.

    Raises:
        ConfigError: If it is another config, or its recipe cannot be run.
    """

    config_class: type[NamedAttentionConfig] = NamedAttentionConfig

    def __init__(self, config: MaskedAttentionConfig) -> None:
        if not isinstance(config, self.config_class):
            name = type(self).__name__
            raise ConfigError(
                f"{name} is made from a {self.config_class.__name__}, but got {type(config).__name__}. Write for "
                f"example {name}({self.config_class.__name__}(density=0.1))"
            )
        super().__init__(config)


class DoubleSparsity(NamedAttention):
    """Double Sparsity (arXiv 2408.07092) with sinks and a window; see `maskers/double_sparsity.py`.

    The order of channels comes from the adapter, or by `use_channels` of the last masker.
    """

    config_class = DoubleSparsityConfig


class HashAttention(NamedAttention):
    """HashAttention (arXiv 2412.14468) with sinks and a window; see `maskers/hash_attention.py`.

    The networks come from the adapter, or by `use_hash_weights` of the last masker.
    """

    config_class = HashAttentionConfig
