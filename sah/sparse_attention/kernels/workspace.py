"""Buffers that are used again at every step: fresh large temporaries cost page faults."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


class Workspace:
    """Named buffers that grow to the largest size asked for. Not for use by two threads at once."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype, torch.device], torch.Tensor] = {}

    def take(self, name: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Give a buffer of a shape; what it held before is lost.

        Args:
            name: Two buffers in use at the same time need two names.
            shape: The shape.
            dtype: The type.
            device: Where it lies.

        Returns:
            A contiguous tensor of any content.
        """
        size = math.prod(shape)
        key = (name, dtype, device)
        buffer = self._buffers.get(key)
        if buffer is None or buffer.numel() < size:
            # Made in inference mode it could not be written to outside it.
            with torch.inference_mode(False):
                # Some room to grow, since kv_len grows by one at every step.
                buffer = self._buffers[key] = torch.empty(size + size // 8, dtype=dtype, device=device)
        return buffer[:size].view(*shape)

    def nbytes(self) -> int:
        """Return the bytes of all buffers."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self._buffers.values())
