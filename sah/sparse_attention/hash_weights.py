"""The small networks that turn queries and keys into bits."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class HeadwiseLinear:
    """A linear map of its own for every head."""

    weight: torch.Tensor
    """(heads, inputs, outputs), floating point; float32 in files and training."""

    bias: torch.Tensor
    """(heads, 1, outputs), of the weight's type."""


@dataclass(frozen=True)
class HashLayer:
    """The networks of one layer: linear maps with SiLU between them; the signs of what comes out are the bits."""

    query: tuple[HeadwiseLinear, ...]
    """Of the queries, with a head for each query head or each KV head."""

    key: tuple[HeadwiseLinear, ...]
    """Of the keys, with a head for each query head or each KV head."""


def mapped(states: torch.Tensor, maps: tuple[HeadwiseLinear, ...]) -> torch.Tensor:
    """Run states through the networks of their heads.

    Args:
        states: (batch, heads, n, head_dim).
        maps: Of as many heads.

    Returns:
        (batch, heads, n, bits), of the maps' type; a bit is 1 where it is above 0.
    """
    found = states.to(maps[0].weight.dtype)
    for number, linear in enumerate(maps):
        if number:
            found = torch.nn.functional.silu(found)
        found = found @ linear.weight + linear.bias
    return found
