"""SnapKV: keys that the last queries of a prompt attend to, with their neighbours.

Based on "SnapKV: LLM Knows What You are Looking for Before Generation" (Li et al. 2024, arXiv 2404.14469). The
attention of the last `window` queries is averaged over them, and then over `kernel` neighbouring keys; the keys with
the largest averages are kept beside those of the window. It is chosen once: at the end of the context, or with
`query_aware` by the question's queries, of which there may be fewer than the window.

Deviations: scores are averaged over the query heads of a KV head, as kvpress does; the authors' code keeps a set for
each query head. Neighbours are averaged, which is the default of the authors' class; their runs on LongBench take the
largest. The paper's budget is the prompt's, and all keys of the answer are kept beside it; here the budget is the whole
mask's, so that every further key takes the place of the weakest one of the context. A budget below the window keeps the
window's last keys.
State: positions and scores of the keys that are held; outside lanes a copy of their keys and values, float32 on a CPU.
Bytes read per decoded token: the keys and values kept.
"""

from __future__ import annotations

import logging

import torch

from sah.sparse_attention.maskers.evicting import EvictingMasker
from sah.sparse_attention.maskers.evicting_fast import before_others
from sah.sparse_attention.maskers.snapkv_config import SnapKVMaskerConfig
from sah.sparse_attention.observe import Last

_log = logging.getLogger(__name__)


class SnapKVMasker(EvictingMasker):
    """Keeps the keys that the last queries of the context, or of the question, attend to."""

    config: SnapKVMaskerConfig
    _told = False
    prefers_unobserved = True

    @property
    def observed(self) -> Last:
        """The window."""
        return self.config.window

    def starting_scores(
        self, of_context: torch.Tensor, of_question: torch.Tensor | None, context_length: int
    ) -> torch.Tensor:
        """Average over the window and over neighbours; see `EvictingMasker.starting_scores`."""
        if self.config.query_aware and of_question is not None:
            scores = self.pooled(of_question[..., :context_length])
            behind = of_question.shape[2] - context_length
        else:
            # The window's own keys take no part in the averages, and are kept before all others.
            behind = min(self.config.window, context_length)
            scores = self.pooled(of_context[..., : context_length - behind] / max(1, behind))
        length = scores.shape[2]
        return torch.cat([scores, before_others(length, length + behind, scores)], dim=2)

    def recent(self, add: torch.Tensor, own: torch.Tensor, context_length: int) -> torch.Tensor:
        """Return the keys of the window and all behind the context."""
        window = 0 if self.config.query_aware else min(self.config.window, context_length)
        recent = (own + 1 - context_length + window).clamp(min=1)
        if not self._told and context_length and bool((recent >= add).any()) and int(own.max()) > int(add.max()):
            self._told = True
            _log.warning(
                "masker=snapkv: the last %d keys (its window and what follows the context) fill the budget of %d, so "
                "that no key is kept for its score. A larger density, or a smaller masker.snapkv.window, leaves some.",
                int(recent.max()),
                int(add.max()),
            )
        return recent

    def pooled(self, mass: torch.Tensor) -> torch.Tensor:
        """Average over neighbouring keys, those beyond an end counting 0; (rows, kv_heads, n) as given."""
        if mass.shape[2] == 0 or self.config.kernel == 1:
            return mass
        averaged: torch.Tensor = torch.nn.functional.avg_pool1d(
            mass, self.config.kernel, stride=1, padding=self.config.kernel // 2
        )
        return averaged
