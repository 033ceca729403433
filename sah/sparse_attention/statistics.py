"""What a run of sparse attention really kept: calls and density, layer by layer and phase by phase."""

from __future__ import annotations

from collections import defaultdict

import torch

from sah.sparse_attention.config import QUESTION

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
        """Sum of the rows' densities and number of rows."""
        self._sparse_calls: dict[tuple[str, int], int] = defaultdict(int)

    def record(self, layer_idx: int, kept: torch.Tensor, allowed: torch.Tensor, *, dense: bool = False) -> None:
        """Add one attention call. Queries that may read no key (padding) do not count.

        Args:
            layer_idx: The layer that was called.
            kept: Allowed keys kept, broadcastable to (batch, heads, q_len).
            allowed: Keys allowed, broadcastable to (batch, heads, q_len).
            dense: Whether the layer is one of `dense_layers`: it counts in the density and is no sparse call.
        """
        key = (self.phase, layer_idx)
        shares = kept.double() / allowed.clamp(min=1)
        densities = shares.mean(dim=1)
        counts = (allowed.amax(dim=1) > 0).expand_as(densities)
        total = torch.stack([(densities * counts).sum(), counts.sum()])
        self._sums[key] = self._sums[key] + total if key in self._sums else total
        if not dense:
            # Where a given answer is read in one call, each of its tokens counts as the call that it would be.
            self._sparse_calls[key] += 1 if self.phase == QUESTION else densities.shape[1]

    def add(self, phase: str, layer_idx: int, total: torch.Tensor, sparse_calls: int) -> None:
        """Add what was summed elsewhere.

        Args:
            phase: `question` or `decode`.
            layer_idx: The layer.
            total: Sum of the rows' densities and number of rows, (2,), double.
            sparse_calls: Calls that ran sparse.
        """
        key = (phase, layer_idx)
        if not bool(total[1]):
            return
        self._sums[key] = self._sums[key] + total if key in self._sums else total
        if sparse_calls:
            self._sparse_calls[key] += sparse_calls

    def merge(self, other: AttentionStatistics) -> None:
        """Add what another record holds."""
        for (phase, layer_idx), total in other._sums.items():
            self.add(phase, layer_idx, total, other._sparse_calls.get((phase, layer_idx), 0))

    def calls(self) -> int:
        """Return the number of sparse attention calls."""
        return sum(self._sparse_calls.values())

    def calls_by_layer(self, phase: str) -> dict[int, int]:
        """Return the sparse attention calls of each layer that had any in a phase."""
        return {layer: calls for (own, layer), calls in sorted(self._sparse_calls.items()) if own == phase and calls}

    def layers(self) -> list[int]:
        """Return the layers that ran sparse, in order."""
        return sorted({layer for _, layer in self._sparse_calls})

    def density(self, phase: str | None = None) -> float | None:
        """Return the measured density.

        Args:
            phase: `question` or `decode`; None takes both together.

        Returns:
            Keys kept divided by keys allowed, averaged over heads, queries and layers; None if nothing was recorded.
        """
        chosen = [total.cpu() for (key_phase, _), total in self._sums.items() if phase in (None, key_phase)]
        if not chosen:
            return None
        density, rows = torch.stack(chosen).sum(0).tolist()
        # Sums of many rows differ in their last bits by the order of the rows.
        return round(density / rows, 12) if rows else None
