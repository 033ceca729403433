"""What a run of sparse attention really kept: calls and density, layer by layer and phase by phase."""

from __future__ import annotations

from collections import defaultdict

import torch

QUESTION = "question"
DECODE = "decode"
STATISTICS_KEY = "statistics"
"""Key of `sparse_meta_data` under which a run puts the record that attention writes to."""


class AttentionStatistics:
    """Counts calls and sums densities. Sums stay tensors until they are read, so that recording never waits on a GPU.

    Attributes:
        phase: The phase that the next calls belong to; the generation loop sets it.
    """

    def __init__(self) -> None:
        self.phase = QUESTION
        self._sums: dict[tuple[str, int], torch.Tensor] = {}
        self._rows: dict[tuple[str, int], int] = defaultdict(int)
        self._calls: dict[tuple[str, int], int] = defaultdict(int)

    def record(self, layer_idx: int, kept: torch.Tensor, allowed: torch.Tensor) -> None:
        """Add one attention call.

        Args:
            layer_idx: The layer that was called.
            kept: Allowed keys kept, broadcastable to (batch, heads, q_len).
            allowed: Keys allowed, broadcastable to (batch, heads, q_len).
        """
        key = (self.phase, layer_idx)
        shares = kept / allowed.clamp(min=1)
        rows = shares.mean(dim=1)
        total = rows.double().sum()
        self._sums[key] = self._sums[key] + total if key in self._sums else total
        self._rows[key] += rows.numel()
        self._calls[key] += 1

    def calls(self) -> int:
        """Return the number of attention calls recorded."""
        return sum(self._calls.values())

    def layers(self) -> list[int]:
        """Return the layers that were called, in order."""
        return sorted({layer for _, layer in self._calls})

    def density(self, phase: str | None = None) -> float | None:
        """Return the measured density.

        Args:
            phase: `question` or `decode`; None takes both together.

        Returns:
            Keys kept divided by keys allowed, averaged over heads, queries and layers; None if nothing was recorded.
        """
        chosen = [key for key in self._sums if phase is None or key[0] == phase]
        rows = sum(self._rows[key] for key in chosen)
        if not rows:
            return None
        return float(torch.stack([self._sums[key].cpu() for key in chosen]).sum()) / rows
