"""The interface of prefill patterns."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from sah.config.lookup import named
from sah.sparse_attention.prefill.config import PrefillConfig


class PrefillPattern(ABC):
    """Runs a context's attention over a part of the keys, chosen for each layer, head and stretch of queries.

    A call holds queries that stand at the last keys, one sequence without padding: query i of q_len may read the first
    kv_len - q_len + i + 1 keys.

    Args:
        config: The pattern's own config.
    """

    def __init__(self, config: PrefillConfig) -> None:
        self.config = config

    @classmethod
    def create_from_config(cls, config: PrefillConfig) -> PrefillPattern:
        """Build the pattern that a config describes."""
        built: type[PrefillPattern] = named(config.pattern)
        return built(config)

    @abstractmethod
    def keep(self, queries: torch.Tensor, keys: torch.Tensor, scaling: float) -> torch.Tensor:
        """Tell which keys each query reads, in the plain form.

        Args:
            queries: (batch, heads, q_len, head_dim).
            keys: (batch, kv_heads, kv_len, head_dim).
            scaling: Factor of the dot products.

        Returns:
            Boolean (batch, heads, q_len, kv_len); nothing that causality forbids, and at least one key a query.
        """

    @abstractmethod
    def attend(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        scaling: float,
        *,
        sinks: torch.Tensor | None = None,
        softcap: float | None = None,
    ) -> tuple[torch.Tensor, float]:
        """Attend over what `keep` tells, without the work for what it leaves out.

        Args:
            queries: (batch, heads, q_len, head_dim).
            keys: (batch, kv_heads, kv_len, head_dim).
            values: (batch, kv_heads, kv_len, value_dim).
            scaling: Factor of the dot products.
            sinks: Learned logits in the denominator, (heads,), or None.
            softcap: Cap on logits, or None.

        Returns:
            Output (batch, heads, q_len, value_dim), and the share of causally allowed (query, key) pairs that were
            read, averaged over heads.
        """
