"""Fits the networks of one layer, so that the signs that they give find the keys which a query attends to most.

HashAttention (arXiv 2412.14468) sees the choice of keys as a recommendation problem: for each query, keys in its top k
are positive, all others negative. Two small networks, one of queries and one of keys, are trained on a relaxed score,
the inner product of the tanh of their outputs; when they are used, tanh becomes the sign.

How this differs from the authors' training (github.com/xAlg-ai/HashAttention-1.0), and why:

- Loss: theirs is the binary cross-entropy of every pair by itself, positives weighted 20 times. Here the scores of one
  query are a distribution over its keys, compared with the even distribution over its top k by cross-entropy (a scale
  per query head is learned). Only the order of a query's keys decides what is kept, and this loss sees it directly. The
  share that counts as the top is drawn anew at each step, so that the networks serve a range of densities.
- tanh is sharpened while training goes on, so that the relaxed score ends near the one of signs.
- Start: theirs is random. Here the networks begin as random orthogonal planes over whitened keys, with their mean taken
  away: keys share a large common part, and planes that all keys lie on the same side of say nothing. A hidden unit and
  its negative give SiLU(x) - SiLU(-x) = x, so that two maps can begin as exactly these planes; further hidden units
  begin at random with little weight.
- Size: two maps, and one network of keys for each KV head, so that a key is stored once; theirs has three maps and a
  network of keys for each query head. Queries have a network for each query head in both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from sah.sparse_attention.hash_weights import HashLayer, HeadwiseLinear, mapped

_SHARPNESS = (1.0, 8.0)
"""Of tanh, at the first and the last step."""
_PEAK_RATE = 6e-3
_SCALE_RATE = 3e-2
_FIRST_SCALE = 0.3
_SHRINKAGE = 0.05
"""Share of the mean variance that is added to each direction's, so that whitening does not blow up noise."""
_EXTRA_WEIGHT = 0.02


@dataclass(frozen=True)
class FitOptions:
    """How networks are fitted."""

    bits: int = 32
    steps: int = 300
    seed: int = 0
    hidden: int = 128
    """Hidden units of a network; at least twice the bits are taken."""
    batch: int = 32
    """Queries of each head in a step."""
    keys: int = 2048
    """Most keys of a text in a step, drawn at random: they bound its time, and spread over the whole text."""
    every: int = 1
    """Positions from one recorded query to the next."""
    least_share: float = 0.02
    most_share: float = 0.1
    """The top share of a query's keys lies between these, drawn at each step."""


_Texts = Sequence[tuple[torch.Tensor, torch.Tensor]]


def fit_layer(
    texts: _Texts, layer: int, options: FitOptions, advance: Callable[[int], None] = lambda steps: None
) -> HashLayer:
    """Fit the networks of one layer.

    Args:
        texts: For each text the queries (heads, ceil(n / every), head_dim) and keys (kv_heads, n, head_dim) of the
            layer, after the rotary embedding; query i is at the position of key i * `options.every`.
        layer: Its number, which the random choices depend on beside the seed, and on nothing else.
        options: How.
        advance: Told of each step that is done.

    Returns:
        The networks, float32.
    """
    generator = torch.Generator().manual_seed(options.seed * 100_003 + layer)
    states = [(queries.float(), keys.float()) for queries, keys in texts]
    maps = _first_maps(states, options, generator)
    parameters = [part.requires_grad_() for side in maps for linear in side for part in (linear.weight, linear.bias)]
    scale = torch.full((states[0][0].shape[0], 1, 1), _FIRST_SCALE).requires_grad_()
    groups = [{"params": parameters, "lr": _PEAK_RATE}, {"params": [scale], "lr": _SCALE_RATE}]
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [_PEAK_RATE, _SCALE_RATE], total_steps=options.steps + 1)
    for step in range(options.steps):
        sharpness = _SHARPNESS[0] + (_SHARPNESS[1] - _SHARPNESS[0]) * step / options.steps
        queries, keys = states[int(torch.randint(len(states), (), generator=generator))]
        loss = _loss(maps, scale, queries, keys, sharpness, options, generator)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        advance(1)
    query, key = (tuple(HeadwiseLinear(m.weight.detach(), m.bias.detach()) for m in side) for side in maps)
    return HashLayer(query, key)


def _loss(
    maps: tuple[tuple[HeadwiseLinear, ...], tuple[HeadwiseLinear, ...]],
    scale: torch.Tensor,
    queries: torch.Tensor,
    keys: torch.Tensor,
    sharpness: float,
    options: FitOptions,
    generator: torch.Generator,
) -> torch.Tensor:
    """Cross-entropy between a query's scores and its top keys, for a batch of positions, all heads."""
    heads, recorded, _ = queries.shape
    rows = torch.randint(recorded // 8, recorded, (options.batch,), generator=generator)
    drawn = torch.randperm(keys.shape[1], generator=generator)[: options.keys].sort().values
    share = options.least_share + (options.most_share - options.least_share) * float(
        torch.rand((), generator=generator)
    )
    chosen, keys = queries[:, rows], keys[:, drawn]
    later = drawn > (rows * options.every)[:, None]
    # A row without a drawn key at or before its position has nothing to learn from: it reads all keys.
    later &= ~later.all(-1, keepdim=True)
    with torch.no_grad():
        exact = _products(chosen, keys).masked_fill(later, -math.inf)
        count = (share * (~later).sum(-1)).round().clamp_min(1).long()
        best = exact.topk(int(count.max()), dim=-1).values
        least = best.gather(-1, (count - 1)[None, :, None].expand(heads, -1, 1))
        top = (exact >= least).float()
        top /= top.sum(-1, keepdim=True)
    query_side, key_side = maps
    signs = (torch.tanh(sharpness * mapped(x[None], side)[0]) for x, side in ((chosen, query_side), (keys, key_side)))
    scores = (scale * _products(*signs)).masked_fill(later, torch.finfo(torch.float32).min)
    return -(top * torch.log_softmax(scores, dim=-1)).sum(-1).mean()


def _products(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Inner products of queries (heads, n, d) with the keys of their groups (kv_heads, m, d): (heads, n, m)."""
    grouped = queries.reshape(keys.shape[0], -1, *queries.shape[1:])
    found = grouped @ keys[:, None].transpose(-1, -2)
    return found.reshape(queries.shape[0], queries.shape[1], keys.shape[1])


def _first_maps(
    states: _Texts, options: FitOptions, generator: torch.Generator
) -> tuple[tuple[HeadwiseLinear, ...], tuple[HeadwiseLinear, ...]]:
    """Networks that give the signs of random planes over whitened keys: (of queries, of keys)."""
    queries, keys = (torch.cat(side, dim=1) for side in zip(*states, strict=True))
    heads, kv_heads, head_dim = queries.shape[0], keys.shape[0], keys.shape[-1]
    mean = keys.mean(1, keepdim=True)
    centred = keys - mean
    values, vectors = torch.linalg.eigh(centred.transpose(1, 2) @ centred / keys.shape[1])
    spread = (values.clamp_min(0) + _SHRINKAGE * values.mean(-1, keepdim=True) + 1e-12).sqrt()[:, None]
    planes = _planes(head_dim, options.bits, generator)
    key_planes = (vectors / spread) @ vectors.transpose(1, 2) @ planes
    query_planes = ((vectors * spread) @ vectors.transpose(1, 2) @ planes).repeat_interleave(heads // kv_heads, dim=0)
    key_planes = key_planes / _spread(centred @ key_planes)
    query_planes = query_planes / _spread(queries @ query_planes)
    return (
        _two_maps(query_planes, torch.zeros(heads, 1, options.bits), queries, options, generator),
        _two_maps(key_planes, -mean @ key_planes, keys, options, generator),
    )


def _planes(head_dim: int, bits: int, generator: torch.Generator) -> torch.Tensor:
    """Random planes, orthogonal within each head_dim of them, (head_dim, bits)."""
    blocks = [
        torch.linalg.qr(torch.randn(head_dim, head_dim, generator=generator))[0] for _ in range(-(-bits // head_dim))
    ]
    return torch.cat(blocks, dim=1)[:, :bits]


def _two_maps(
    planes: torch.Tensor, bias: torch.Tensor, inputs: torch.Tensor, options: FitOptions, generator: torch.Generator
) -> tuple[HeadwiseLinear, ...]:
    """Write planes (heads, head_dim, bits) as two maps with SiLU between them."""
    heads, head_dim, bits = planes.shape
    extra = max(0, options.hidden - 2 * bits)
    random = torch.randn(heads, head_dim, extra, generator=generator) / math.sqrt(head_dim) / _spread(inputs)
    both = torch.eye(bits).repeat(heads, 1, 1)
    tail = _EXTRA_WEIGHT * torch.randn(heads, extra, bits, generator=generator)
    return (
        HeadwiseLinear(
            torch.cat([planes, -planes, random], -1), torch.cat([bias, -bias, bias.new_zeros(heads, 1, extra)], -1)
        ),
        HeadwiseLinear(torch.cat([both, -both, tail], 1), torch.zeros(heads, 1, bits)),
    )


def _spread(values: torch.Tensor) -> torch.Tensor:
    """Standard deviation of each head's values, (heads, 1, 1); 1 where they are all alike."""
    spread = values.std(dim=(1, 2), keepdim=True)
    return torch.where(spread > 0, spread, torch.ones_like(spread))
