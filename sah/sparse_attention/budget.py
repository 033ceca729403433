"""The budget rule: the one place where densities and sizes become numbers of keys."""

from __future__ import annotations

import torch


def target_keys(density: float, allowed: torch.Tensor) -> torch.Tensor:
    """Number of keys that a whole mask of this density holds.

    Args:
        density: Share of the allowed keys, above 0 and at most 1.
        allowed: Number of allowed keys of each query row, any shape, integer.

    Returns:
        max(1, round(density x allowed)) with ties to even, int64, shape of `allowed`; 0 where nothing is allowed.
    """
    target = torch.round(density * allowed.double()).long()
    return torch.minimum(target.clamp(min=1), allowed.long())


def size_in_keys(size: int | float, allowed: torch.Tensor) -> torch.Tensor:
    """Number of keys that an own size stands for.

    Args:
        size: An int is a number of keys, a float a share of the allowed keys (1 is one key, 1.0 is all).
        allowed: Number of allowed keys of each query row, any shape, integer.

    Returns:
        int64, shape of `allowed`, never above it.
    """
    if isinstance(size, int):
        return allowed.long().clamp(max=size)
    if size == 0:
        return torch.zeros_like(allowed, dtype=torch.long)
    return target_keys(size, allowed)


def keys_to_add(
    density: float | None, size: int | float | None, allowed: torch.Tensor, kept: torch.Tensor
) -> torch.Tensor:
    """Number of keys that a budgeted masker adds.

    Args:
        density: Target for the whole mask, or None.
        size: The masker's own size, read when there is no density.
        allowed: Number of allowed keys of each query row.
        kept: Number of keys kept so far, broadcastable with `allowed`.

    Returns:
        int64: under a density max(0, target - kept), else the own size; never more than are left.

    Raises:
        ValueError: If neither is given.
    """
    if density is not None:
        wanted = target_keys(density, allowed) - kept
    elif size is not None:
        wanted = size_in_keys(size, allowed)
    else:
        raise ValueError("neither a density nor a size is given")
    return torch.minimum(wanted, allowed - kept).clamp(min=0)
