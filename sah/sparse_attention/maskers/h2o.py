"""H2O: heavy hitters and recent keys.

Based on "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models" (Zhang et al. 2023,
arXiv 2306.14048). A key's score is the softmax mass that all queries so far put on it; the last `recent` keys are kept,
and of the others those with the largest scores. Once evicted, a key is gone.

Deviations: scores of the context are those of its dense prefill (the paper evicts while it reads the prompt, too), and
are averaged over the query heads of a KV head, which the paper's models do not have. A query evicts before it reads,
the paper's after it, so that no query reads more than the budget. With `query_aware` the question's tokens look at all
keys first, and their own later attention is not counted again.
State: positions and scores of the keys that are held; outside lanes a copy of their keys and values, float32 on a CPU.
Bytes read per decoded token: the keys and values kept.
"""

from __future__ import annotations

import torch

from sah.sparse_attention.budget import size_in_keys
from sah.sparse_attention.maskers.evicting import EvictingMasker
from sah.sparse_attention.maskers.h2o_config import H2OMaskerConfig
from sah.sparse_attention.observe import Last


class H2OMasker(EvictingMasker):
    """Keeps the keys that were paid most attention so far, and recent ones."""

    config: H2OMaskerConfig
    adds_attention = True

    @property
    def observed(self) -> Last:
        """All queries."""
        return None

    @property
    def observes_question(self) -> bool:
        """Always: its attention counts like that of the context."""
        return True

    @property
    def needs_context(self) -> bool:
        """Always."""
        return True

    def starting_scores(
        self, of_context: torch.Tensor, of_question: torch.Tensor | None, context_length: int
    ) -> torch.Tensor:
        """Add both observations; see `EvictingMasker.starting_scores`."""
        if of_question is None:
            return of_context
        scores = of_question.clone()
        scores[..., :context_length] += of_context
        return scores

    def recent(self, add: torch.Tensor, own: torch.Tensor, context_length: int) -> torch.Tensor:
        """Return the recent keys, half of the budget unless they are given."""
        if self.config.recent is None:
            return (add - add // 2).clamp(min=1)
        return size_in_keys(self.config.recent, own + 1).clamp(min=1)

    def keys_of_budget(self, allowed: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """Apply the density, or add the heavy hitters and the recent keys."""
        heavy = self.config.heavy_size
        if heavy is None:
            return super().keys_of_budget(allowed, kept)
        hitters = size_in_keys(heavy, allowed)
        recent = hitters if self.config.recent is None else size_in_keys(self.config.recent, allowed)
        return torch.minimum(hitters + recent, allowed - kept)
