"""Oracle top-k: the keys with the largest true scores.

No method can estimate the scores better than knowing them, so this bounds every method that picks a fixed number of
keys by score. It reads all keys to do so: an oracle, not a way to save time. `selection: group` combines the logits of
a KV head's query heads by `group_score`.
State: none. Bytes read per decoded token: all keys once, and the values kept (by group: also the keys kept).
"""

from __future__ import annotations

from typing import Any

import torch

from sah.sparse_attention.kernels.scores import attention_logits
from sah.sparse_attention.kernels.shared import call_logits
from sah.sparse_attention.maskers.base import KeyScoreMasker
from sah.sparse_attention.shared import SharedStates, States


class OracleTopK(KeyScoreMasker):
    """Adds the residual keys with the largest scaled dot products."""

    works_in_lanes = True
    is_linear = True
    gives_logits = True

    def scores(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        scaling: float,
        sparse_meta_data: dict[Any, Any],
        **kwargs: Any,
    ) -> torch.Tensor:
        """Return the true logits; see `KeyScoreMasker.scores`. A soft cap keeps their order and is left out."""
        return attention_logits(queries, keys, scaling)

    def fast_scores(
        self,
        queries: torch.Tensor,
        keys: States,
        scaling: float,
        sparse_meta_data: dict[Any, Any],
        **kwargs: Any,
    ) -> torch.Tensor:
        """Return the true logits, which attention itself needs as well; plain twin: `scores`."""
        if isinstance(keys, SharedStates) and not self.by_group:
            return call_logits(queries, keys, scaling).clone()
        return attention_logits(queries, keys, scaling)
