"""Random numbers that depend on what is drawn for, never on what else is computed beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch

LANES_KEY = "lanes"
"""Key of `sparse_meta_data` that holds one identity (any string) a batch row."""


def generator_for(*identity: object) -> torch.Generator:
    """Make a CPU generator seeded from an identity.

    Args:
        *identity: Values with a stable `repr`, e.g. seed, masker key, layer, position, lane.

    Returns:
        A generator; equal identities give equal streams, on every machine.
    """
    digest = hashlib.blake2b(repr(identity).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def uniform_noise(
    seed: int,
    key: str,
    layer_idx: int,
    sparse_meta_data: dict[Any, Any],
    allowed: torch.Tensor,
    query_shape: Sequence[int],
) -> torch.Tensor:
    """Draw one uniform number a head and allowed key, for every query row on its own.

    The stream of a row is seeded by the seed, the masker, the layer, the query's position among its allowed keys and
    the lane, and runs over its allowed keys alone: padding, batch company and the way questions are cut into chunks
    change nothing.

    Args:
        seed: Seed of the recipe.
        key: The masker's key in its recipe.
        layer_idx: The layer.
        sparse_meta_data: May hold one lane identity a batch row under `LANES_KEY`.
        allowed: Boolean, (batch or 1, heads or 1, q_len, kv_len).
        query_shape: (batch, heads, q_len, ...).

    Returns:
        (batch, heads, q_len, kv_len), float32 in [0, 1), and 1 where a key is not allowed.
    """
    batch, heads, q_len = query_shape[:3]
    lanes: Sequence[str] = sparse_meta_data.get(LANES_KEY) or [""] * batch
    readable = allowed.any(dim=1).expand(batch, q_len, -1).cpu()
    noise = torch.ones(batch, heads, q_len, allowed.shape[-1])
    for row in range(batch):
        for query in range(q_len):
            columns = readable[row, query].nonzero().squeeze(-1)
            generator = generator_for(seed, key, layer_idx, len(columns), lanes[row])
            noise[row, :, query, columns] = torch.rand(heads, len(columns), generator=generator)
    return noise.to(allowed.device)
