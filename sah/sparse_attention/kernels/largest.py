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
