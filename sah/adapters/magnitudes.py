"""Adds up the magnitudes of a model's queries and keys while it reads a text."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from sah.adapters.reading import read_text

if TYPE_CHECKING:
    from sah.adapters.huggingface import ModelAdapterHF

Magnitudes = dict[int, tuple[torch.Tensor, torch.Tensor]]
"""Layer to the sums over tokens of |q|, (heads, head_dim), and of |k|, (kv_heads, head_dim), float32."""


def record_magnitudes(
    adapter: ModelAdapterHF, ids: torch.Tensor, advance: Callable[[int], None] = lambda tokens: None
) -> Magnitudes:
    """Run a text through a model, dense, and add up |q| and |k| as attention sees them.

    The keys and queries are those after the rotary embedding. Attention is our own plain form, which every loaded
    implementation equals within rounding, so that eager, SDPA and flash attention are recorded alike.

    Args:
        adapter: The model. Whatever mode it is in, it is in again afterwards.
        ids: The text's tokens, int64 (length,).
        advance: Told the number of tokens of each chunk when it is done.

    Returns:
        The sums of every layer that attends to the whole sequence.
    """
    sums: Magnitudes = {}

    def see(layer: int, queries: torch.Tensor, keys: torch.Tensor) -> None:
        of_queries, of_keys = (states.float().abs().sum(dim=(0, 2)) for states in (queries, keys))
        if layer in sums:
            of_queries, of_keys = sums[layer][0] + of_queries, sums[layer][1] + of_keys
        sums[layer] = (of_queries, of_keys)

    read_text(adapter, ids, see, advance)
    return sums
