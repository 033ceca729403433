"""Oracle top-k: the keys with the largest true scores.

No method can estimate the scores better than knowing them, so this bounds every method that picks a fixed number of
keys by score. It reads all keys to do so: an oracle, not a way to save time.
State: none. Bytes read per decoded token: all keys once, and the keys and values kept.
"""

from __future__ import annotations

from typing import Any

import torch

from sah.sparse_attention.kernels.scores import attention_logits
from sah.sparse_attention.maskers.base import TopKMasker
from sah.sparse_attention.maskers.topk_config import TopKMaskerConfig


class OracleTopK(TopKMasker):
    """Adds the residual keys with the largest scaled dot products."""

    config: TopKMaskerConfig

    def budget(self) -> tuple[float | None, int | float | None]:
        """Return the density or the heavy size; see `TopKMasker.budget`."""
        return self.config.density, self.config.heavy_size

    def scores(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        scaling: float,
        sparse_meta_data: dict[Any, Any],
        **kwargs: Any,
    ) -> torch.Tensor:
        """Return the true logits; see `TopKMasker.scores`. A soft cap keeps their order and is left out."""
        return attention_logits(queries, keys, scaling)
