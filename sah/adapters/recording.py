"""Records the queries and keys of a model while it reads a text, as its attention sees them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from sah.adapters.hash_files import LayerShape
from sah.adapters.reading import read_text

if TYPE_CHECKING:
    from sah.adapters.huggingface import ModelAdapterHF

States = dict[int, tuple[torch.Tensor, torch.Tensor]]
"""Layer to its queries, (heads, ceil(n / every), head_dim), and its keys, (kv_heads, n, head_dim).

In the model's dtype, on the CPU.
"""


def record_states(
    adapter: ModelAdapterHF,
    ids: torch.Tensor,
    advance: Callable[[int], None] = lambda tokens: None,
    every: int = 1,
) -> States:
    """Run a text through a model, dense, and keep its queries and keys after the rotary embedding.

    Args:
        adapter: The model. Whatever mode it is in, it is in again afterwards.
        ids: The text's tokens, int64 (n,).
        advance: Told the number of tokens of each chunk when it is done.
        every: Queries of the positions 0, `every`, 2 `every` and so on are kept; a divisor of `reading.CHUNK_TOKENS`.

    Returns:
        The states of every layer that attends to the whole sequence, in the order of the layers.
    """
    queries: dict[int, list[torch.Tensor]] = {}
    keys: dict[int, list[torch.Tensor]] = {}

    def see(layer: int, new_queries: torch.Tensor, new_keys: torch.Tensor) -> None:
        queries.setdefault(layer, []).append(new_queries[0, :, ::every].cpu().clone())
        keys.setdefault(layer, []).append(new_keys[0].cpu().clone())

    read_text(adapter, ids, see, advance)
    return {layer: (torch.cat(queries[layer], dim=1), torch.cat(keys[layer], dim=1)) for layer in sorted(queries)}


def layer_shapes(adapter: ModelAdapterHF) -> dict[int, LayerShape]:
    """See from one token which layers attend to the whole sequence, and the shapes of their heads.

    Args:
        adapter: The model.

    Returns:
        Layer to shape.
    """
    states = record_states(adapter, torch.zeros(1, dtype=torch.long))
    return {layer: LayerShape(q.shape[0], k.shape[0], k.shape[2]) for layer, (q, k) in states.items()}
