"""A sliding window: for a query at position p the keys p-w+1 to p.

Based on StreamingLLM (Xiao et al. 2023, arXiv 2309.17453).
State: none. Bytes read per decoded token: window_size keys and values.
"""

from __future__ import annotations

import torch

from sah.sparse_attention.budget import size_in_keys
from sah.sparse_attention.maskers.base import FixedMasker
from sah.sparse_attention.maskers.local_config import LocalMaskerConfig


class LocalMasker(FixedMasker):
    """Keeps the last `window_size` allowed keys of every query, its own included."""

    config: LocalMaskerConfig

    def spans(self, allowed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the window as the last span; see `FixedMasker.spans`."""
        return torch.zeros_like(allowed), size_in_keys(self.config.window_size, allowed)
