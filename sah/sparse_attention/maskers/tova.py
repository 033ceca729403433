"""TOVA: at every token the key that the query at hand attends to least is dropped.

Based on "Transformers are Multi-State RNNs" (Oren et al. 2024, arXiv 2401.06104). Attention is averaged over all heads,
so that a layer has one set of keys. The context is cut by the attention of its last query, or with `query_aware` by
that of the question's last one; every further query drops by its own.

Deviations: a query drops before it reads, the authors' code after it, so that no query reads more than the budget. Its
own key is kept before all others.
State: positions of the keys that are held; outside lanes a copy of their keys and values, float32 on a CPU.
Bytes read per decoded token: the keys and values kept, and the key that is dropped.
"""

from __future__ import annotations

import torch

from sah.sparse_attention.maskers.evicting import EvictingMasker
from sah.sparse_attention.maskers.evicting_fast import by_kv_head
from sah.sparse_attention.maskers.tova_config import TOVAMaskerConfig
from sah.sparse_attention.observe import Last


class TOVAMasker(EvictingMasker):
    """Keeps the keys that the latest query attends to most, all heads together."""

    config: TOVAMaskerConfig
    ranks_by_attention = True
    prefers_unobserved = True

    @property
    def observed(self) -> Last:
        """The last query."""
        return 1

    def starting_scores(
        self, of_context: torch.Tensor, of_question: torch.Tensor | None, context_length: int
    ) -> torch.Tensor:
        """Average over the KV heads; see `EvictingMasker.starting_scores`."""
        seen = of_question if self.config.query_aware and of_question is not None else of_context
        return seen.mean(1, keepdim=True).expand_as(seen)

    def ranks(self, weights: torch.Tensor, kv_heads: int, positions: torch.Tensor | None = None) -> torch.Tensor:
        """Average over all heads; see `EvictingMasker.ranks`."""
        means = by_kv_head(weights, kv_heads)
        if positions is None or bool((positions == positions[:, :1]).all()):
            return means.mean(1, keepdim=True).expand_as(means)
        # Earlier maskers kept other keys for each head, so that the same place holds different keys.
        by_key = means.new_zeros(*means.shape[:2], int(positions.max()) + 1).scatter_add_(-1, positions, means)
        return by_key.mean(1, keepdim=True).expand_as(by_key).gather(-1, positions)
