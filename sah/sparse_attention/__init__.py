"""Sparse attention: masks, maskers, and the two executions of a recipe.

Names are loaded on first use, so that configs can be imported without torch.
"""

from __future__ import annotations

from typing import Any

from sah.config.lookup import named
from sah.sparse_attention.discovery import public_names
from sah.sparse_attention.prefill.discovery import prefill_names

_CORE = {
    "SparseAttention": "sah.sparse_attention.base.SparseAttention",
    "SparseAttentionConfig": "sah.sparse_attention.config.SparseAttentionConfig",
    "MaskerConfig": "sah.sparse_attention.masker_config.MaskerConfig",
    "ResearchAttention": "sah.sparse_attention.research.ResearchAttention",
    "ResearchAttentionConfig": "sah.sparse_attention.config.ResearchAttentionConfig",
    "EfficientAttention": "sah.sparse_attention.efficient.EfficientAttention",
    "EfficientAttentionConfig": "sah.sparse_attention.config.EfficientAttentionConfig",
    "DoubleSparsity": "sah.sparse_attention.named_attention.DoubleSparsity",
    "DoubleSparsityConfig": "sah.sparse_attention.named_attention_config.DoubleSparsityConfig",
    "ChannelConfig": "sah.sparse_attention.named_attention_config.ChannelConfig",
    "HashAttention": "sah.sparse_attention.named_attention.HashAttention",
    "HashAttentionConfig": "sah.sparse_attention.named_attention_config.HashAttentionConfig",
    "AutoAttention": "sah.sparse_attention.auto.AutoAttention",
    "AutoAttentionConfig": "sah.sparse_attention.config.AutoAttentionConfig",
    "Mask": "sah.sparse_attention.mask.Mask",
    "ResearchMasker": "sah.sparse_attention.maskers.base.ResearchMasker",
    "FixedMasker": "sah.sparse_attention.maskers.base.FixedMasker",
    "TopKMasker": "sah.sparse_attention.maskers.base.TopKMasker",
    "KeyScoreMasker": "sah.sparse_attention.maskers.base.KeyScoreMasker",
    "SamplingMasker": "sah.sparse_attention.maskers.base.SamplingMasker",
    "PrefillConfig": "sah.sparse_attention.prefill.config.PrefillConfig",
    "PrefillPattern": "sah.sparse_attention.prefill.base.PrefillPattern",
    "OracleTopKConfig": "sah.sparse_attention.maskers.topk_config.TopKMaskerConfig",
}


def __getattr__(name: str) -> Any:
    path = _CORE.get(name) or public_names().get(name) or prefill_names().get(name)
    if path is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return named(path)


def __dir__() -> list[str]:
    return sorted({*_CORE, *public_names(), *prefill_names()})
