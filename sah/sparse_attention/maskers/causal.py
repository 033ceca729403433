"""Everything that causality and padding allow.

Dense attention run through sah's own attention: the check that the machinery around a recipe changes nothing.
State: none. Bytes read per decoded token: all keys and values.
"""

from __future__ import annotations

from typing import Any

import torch

from sah.sparse_attention.mask import Mask
from sah.sparse_attention.maskers.base import ResearchMasker


class CausalMasker(ResearchMasker):
    """Keeps every allowed key."""

    works_in_lanes = True

    def add_mask(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        attention_mask: torch.Tensor,
        scaling: float,
        dropout: float,
        sparse_meta_data: dict[Any, Any],
        previous_mask: Mask,
        **kwargs: Any,
    ) -> Mask:
        """Return the full mask; which keys are allowed is applied by the attention itself."""
        return previous_mask.merge(Mask.full(previous_mask.shape, previous_mask.device))
