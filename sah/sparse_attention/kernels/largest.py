"""The largest of many numbers."""

from __future__ import annotations

import numpy as np
import torch

BLOCK_NUMBERS = 1 << 18
"""Scores that are partitioned at once: numpy returns a place of 8 bytes for each of them."""


def largest(scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the largest scores of every row, in any order. Plain twin: `torch.topk`.

    On a CPU numpy's partition is several times faster than `torch.topk`.

    Args:
        scores: (..., n), floating point.
        count: How many, at most n.

    Returns:
        Their values and places, (..., count); places are int64.
    """
    if scores.device.type != "cpu" or scores.requires_grad or count == scores.shape[-1]:
        return scores.topk(count, dim=-1, sorted=False)
    rows = scores.reshape(-1, scores.shape[-1]).numpy()
    places = np.empty((len(rows), count), dtype=np.int64)
    step = max(1, BLOCK_NUMBERS // scores.shape[-1])
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        places[start : start + step] = np.argpartition(block, scores.shape[-1] - count, axis=-1)[:, -count:]
    indices = torch.from_numpy(places).view(*scores.shape[:-1], count)
    return scores.gather(-1, indices), indices


def earliest(scores: torch.Tensor, count: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the largest scores of every row, as many as each row wants, of equal scores the earlier ones.

    Args:
        scores: (..., n), floating point without NaN.
        count: How many, int64, (...), 0 to n.

    Returns:
        Their places, (..., longest), int64, where longest is the largest count; and boolean, which of them are used.
    """
    longest = int(count.max())
    used = torch.arange(longest, device=scores.device) < count.unsqueeze(-1)
    if scores.device.type != "cpu" or scores.requires_grad:
        return scores.argsort(dim=-1, descending=True, stable=True)[..., :longest], used
    places = torch.zeros(*scores.shape[:-1], longest, dtype=torch.int64)
    rows = zip(scores.flatten(0, -2).numpy(), count.flatten().tolist(), places.flatten(0, -2).numpy(), strict=True)
    for row, wanted, found in rows:
        if wanted == 0:
            continue
        least = np.partition(row, len(row) - wanted)[len(row) - wanted]
        above = np.flatnonzero(row > least)
        found[: len(above)] = above
        found[len(above) : wanted] = np.flatnonzero(row == least)[: wanted - len(above)]
    return places, used


def ascending(scores: torch.Tensor) -> torch.Tensor:
    """Sort the scores of every row, smallest first. Plain twin: `torch.sort`, which on a CPU is many times slower.

    Args:
        scores: (..., n), floating point.

    Returns:
        The sorted scores, same shape.
    """
    if scores.device.type != "cpu" or scores.requires_grad or scores.dtype not in (torch.float32, torch.float64):
        return scores.sort(dim=-1).values
    return torch.from_numpy(np.sort(scores.numpy(), axis=-1))


def strongest(values: torch.Tensor, count: torch.Tensor, ordered: torch.Tensor | None = None) -> torch.Tensor:
    """Tell which values are among the largest of their row, as many as each row wants.

    Args:
        values: (..., n), floating point.
        count: How many, int64, (...), 0 to n.
        ordered: The values, smallest first, if they are at hand; what is not among the wanted ones may differ.

    Returns:
        Boolean (..., n); of equal values some may be left out.
    """
    ordered = ascending(values) if ordered is None else ordered
    cut = ordered.gather(-1, (values.shape[-1] - count).clamp(max=values.shape[-1] - 1).unsqueeze(-1))
    chosen = (values >= cut) & (count > 0).unsqueeze(-1)
    if bool((chosen.sum(-1) == count).all()):
        return chosen
    order = values.argsort(dim=-1, descending=True)
    first = torch.arange(values.shape[-1], device=values.device) < count.unsqueeze(-1)
    return torch.zeros_like(chosen).scatter_(-1, order, first)
