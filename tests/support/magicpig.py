"""Calling MagicPIG's masker by itself, and its definition written out."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from typing import Any

import torch

from sah.sparse_attention import MagicPigConfig, Mask
from sah.sparse_attention.maskers.magicpig import MagicPig
from sah.sparse_attention.randomness import generator_for
from tests.support.attention import Inputs, causal


def add(
    masker: MagicPig, inputs: Inputs, previous: Mask | None = None, meta: Any = None, fast: bool = False, layer: int = 0
) -> Mask:
    shape = (*inputs.queries.shape[:3], inputs.keys.shape[2])
    previous = Mask.empty(shape) if previous is None else previous
    form = masker.add_indices if fast else masker.add_mask
    meta = {} if meta is None else meta
    return form(*inputs.tensors(), inputs.scaling, 0.0, meta, previous, layer_idx=layer)


def dense(mask: Mask) -> torch.Tensor:
    return mask.to_dense().expand(mask.shape)


def exact_chance(collision: float, tables: int, least: int) -> float:
    """P(Binomial(tables, collision) >= least), summed with 150 digits."""
    if collision in (0.0, 1.0):
        return collision
    with localcontext() as context:
        context.prec = 150
        c = Decimal(collision)
        return float(sum(math.comb(tables, j) * c**j * (1 - c) ** (tables - j) for j in range(least, tables + 1)))


def naive_inclusion(config: MagicPigConfig, inputs: Inputs, seed: int = 0) -> torch.Tensor:
    """Row by row, bit by bit, straight from the definition; for recipes in which nothing else keeps a key."""
    batch, heads, q_len, head_dim = inputs.queries.shape
    kv_heads, kv_len = inputs.keys.shape[1:3]
    generator = generator_for(seed, "0.magicpig", 0)
    planes = torch.randn(config.lsh_k, config.lsh_l, head_dim, generator=generator, dtype=torch.float64)
    result = torch.zeros(batch, heads, q_len, kv_len)
    allowed = inputs.allowed.expand(batch, -1, -1, -1)[:, 0]
    for b in range(batch):
        for h in range(heads):
            keys = inputs.keys[b, h // (heads // kv_heads)].double()
            context = keys[: kv_len - q_len][allowed[b, -1, : kv_len - q_len]]
            mean = context.mean(0) if config.center and len(context) else torch.zeros(head_dim).double()
            for q in range(q_len):
                query = inputs.queries[b, h, q].double()
                positions = allowed[b, q].nonzero().squeeze(-1).tolist()
                for k in positions:
                    same = (planes @ query > 0) == (planes @ (keys[k] - mean) > 0)
                    if int(same.all(0).sum()) >= config.min_matches:
                        angle = torch.acos(torch.cosine_similarity(query, keys[k] - mean, dim=0))
                        collision = (1 - float(angle) / math.pi) ** config.lsh_k
                        result[b, h, q, k] = exact_chance(collision, config.lsh_l, config.min_matches)
                if not result[b, h, q].any():
                    result[b, h, q, positions[:4] + positions[-64:]] = 1.0
    return result


def grown(inputs: Inputs, length: int, q_len: int = 1) -> Inputs:
    """The call at which the last of `length` keys has just been added."""
    return Inputs(
        inputs.queries[:, :, length - q_len : length],
        inputs.keys[:, :, :length],
        inputs.values[:, :, :length],
        causal(q_len, length),
        inputs.scaling,
    )
