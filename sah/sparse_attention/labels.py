"""Rounding of labels (page bounds, channel labels) to a few bits."""

from __future__ import annotations

import torch


def rounded_labels(labels: torch.Tensor, bits: int, direction: int = 0) -> torch.Tensor:
    """Round each label vector to 2^bits evenly spaced values between its own smallest and largest entry.

    Args:
        labels: (..., width).
        bits: Bits a value, 1 to 16.
        direction: 0 rounds to the nearest value, 1 up and -1 down.

    Returns:
        The rounded labels in the labels' own type and shape, as a packed store of `bits` bits a value would give them
        back. A bfloat16 result is rounded once more to bfloat16. The arithmetic itself may be off by its
        last bit, also against the direction.
    """
    values = labels.float()
    low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
    levels = 2**bits - 1
    # Divided by the whole range first, the largest entry is its last place exactly and is not rounded down from it.
    place = (values - low) / (high - low).clamp(min=1e-30) * levels
    codes = place.round() if direction == 0 else place.ceil() if direction > 0 else place.floor()
    rounded: torch.Tensor = low + codes * ((high - low) / levels)
    return rounded.to(labels.dtype)
