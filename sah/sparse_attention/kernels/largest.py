"""The largest of many numbers."""

from __future__ import annotations

import numpy as np
import torch


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
    places = np.argpartition(scores.numpy(), scores.shape[-1] - count, axis=-1)[..., -count:]
    indices = torch.from_numpy(np.ascontiguousarray(places))
    return scores.gather(-1, indices), indices
