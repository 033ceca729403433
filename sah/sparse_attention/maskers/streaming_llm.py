"""StreamingLLM: attention sinks and a sliding window.

Based on "Efficient Streaming Language Models with Attention Sinks" (Xiao et al. 2023, arXiv 2309.17453).
Deviations: the paper evicts keys and re-numbers positions inside its cache; here the cache stays whole, positions are
the model's own, and the pattern says only which keys a query reads. A density counts sinks and window together.
State: none. Bytes read per decoded token: the keys and values of the sinks and the window.
"""

from __future__ import annotations

import torch

from sah.sparse_attention.budget import size_in_keys, target_keys
from sah.sparse_attention.maskers.base import FixedMasker
from sah.sparse_attention.maskers.streaming_llm_config import StreamingLLMMaskerConfig


class StreamingLLMMasker(FixedMasker):
    """Keeps the first `sink_size` keys and a window; under a density the window takes what the sinks leave of it.

    A density too small for both keeps the window's last key first, so that a query always reads its own.
    """

    config: StreamingLLMMaskerConfig

    def spans(self, allowed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return sinks and window; see `FixedMasker.spans`."""
        sinks = size_in_keys(self.config.sink_size, allowed)
        if self.config.density is None:
            return sinks, size_in_keys(self.config.window_size or 0, allowed)
        target = target_keys(self.config.density, allowed)
        sinks = torch.minimum(sinks, (target - 1).clamp(min=0))
        return sinks, target - sinks
