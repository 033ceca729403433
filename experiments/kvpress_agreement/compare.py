"""Sets of kept keys side by side, and what of their differences is a tie."""

from __future__ import annotations

from dataclasses import dataclass

import torch

TIE = 2e-5
"""Relative difference below which two scores are equal: the two sides round differently, by up to 8e-6 as measured."""


@dataclass(frozen=True)
class SetComparison:
    """How two choices of keys differ, over all layers and KV heads."""

    sets: int
    identical: int
    keys: int
    """Keys that the other side keeps."""

    differing: int
    """Keys that the other side keeps and we do not; as many are kept by us alone."""

    unexplained: int
    """Keys kept by one side alone whose score is no tie with the last one kept."""


def compare_sets(ours: torch.Tensor, theirs: torch.Tensor, scores: torch.Tensor | None = None) -> SetComparison:
    """Compare two choices of keys.

    Args:
        ours: Boolean, (layers, kv_heads, length).
        theirs: Kept keys, (layers, kv_heads, n), int64.
        scores: What they were chosen by, (layers, kv_heads, length), where keys that are kept before all others have no
            bound; None for a pattern, in which nothing can tie.

    Returns:
        The comparison.

    Raises:
        ValueError: If the sides keep different numbers of keys.
    """
    other = torch.zeros_like(ours).scatter_(-1, theirs, True)
    if not torch.equal(ours.sum(-1), other.sum(-1)):
        raise ValueError(f"ours keeps {ours.sum(-1).unique().tolist()} keys a set, the other {theirs.shape[-1]}")
    apart = ours ^ other
    unexplained = apart if scores is None else apart & ~_ties_with_last(scores, theirs.shape[-1])
    return SetComparison(
        sets=apart[..., 0].numel(),
        identical=int((~apart.any(-1)).sum()),
        keys=theirs.numel(),
        differing=int((other & ~ours).sum()),
        unexplained=int(unexplained.sum()),
    )


def _ties_with_last(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Tell which keys' scores equal the `count`-th largest within `TIE`."""
    last = scores.topk(count, dim=-1).values[..., -1:]
    # Two unbounded scores are equal; their difference is not a number.
    return (scores == last) | ((scores - last).abs() <= TIE * last.abs())


def largest_difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return the largest relative difference of two score tensors.

    Left out are keys that one side keeps whatever they score: ours then has no bound, kvpress's is above 1.
    """
    bounded = ours.isfinite() & (theirs <= 1)
    return float(((ours - theirs) / theirs)[bounded].abs().max())


def means(sums: torch.Tensor) -> torch.Tensor:
    """Divide the attention that keys got by the number of queries that can see each, (..., length)."""
    length = sums.shape[-1]
    return sums / torch.arange(length, 0, -1, device=sums.device)
