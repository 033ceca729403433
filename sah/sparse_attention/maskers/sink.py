"""Attention sinks: the first keys of the sequence.

Based on StreamingLLM (Xiao et al. 2023, arXiv 2309.17453), which keeps 4.
State: none. Bytes read per decoded token: sink_size keys and values.
"""

from __future__ import annotations

import torch

from sah.sparse_attention.budget import size_in_keys
from sah.sparse_attention.maskers.base import FixedMasker
from sah.sparse_attention.maskers.sink_config import SinkMaskerConfig


class SinkMasker(FixedMasker):
    """Keeps the first `sink_size` allowed keys of every query."""

    config: SinkMaskerConfig

    def spans(self, allowed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sinks as the first span; see `FixedMasker.spans`."""
        return size_in_keys(self.config.sink_size, allowed), torch.zeros_like(allowed)
