"""How often a sampler breaks the promise of an error, over many independent draws."""

from __future__ import annotations

import math
from typing import Any

import torch

from tests.support.attention import Inputs, efficient

DRAWS = 2000
EPSILON = DELTA = 0.05


def lower_bound(failures: int, draws: int, confidence: float = 0.99) -> float:
    """One-sided Clopper-Pearson lower bound of a probability: where so many failures are just likely enough."""
    if failures == 0:
        return 0.0

    def tail(p: float) -> float:
        """Probability of at least that many failures."""
        return 1 - math.fsum(
            math.exp(
                math.lgamma(draws + 1)
                - math.lgamma(k + 1)
                - math.lgamma(draws - k + 1)
                + k * math.log(p)
                + (draws - k) * math.log1p(-p)
            )
            for k in range(failures)
        )

    low, high = 0.0, failures / draws
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if tail(middle) < 1 - confidence else (low, middle)
    return low


def failure_rates(inputs: Inputs, recipe: list[Any], *, layer: int = 0, at_once: int = 100) -> dict[str, list[float]]:
    """Lower bounds of the probability that each promise is broken, for every head.

    Args:
        inputs: One query with batch 1.
        recipe: Ends with the sampler.
        layer: The layer, for the seed.
        at_once: Draws in one batch; each is a lane.

    Returns:
        What the promise is about, to one bound a head; and under `kept` the mean number of keys.
    """
    heads, kv_heads, kv_len = inputs.queries.shape[1], inputs.keys.shape[1], inputs.keys.shape[2]
    group = heads // kv_heads
    logits = inputs.queries.view(kv_heads, group, -1).double() @ inputs.keys[0].double().mT * inputs.scaling
    exponentials = (logits - logits.amax(-1, keepdim=True)).exp()
    values = inputs.values[0].double()

    def sums(weights: torch.Tensor) -> dict[str, torch.Tensor]:
        numerator, denominator = weights @ values, weights.sum(-1, keepdim=True)
        whole = {"denominator": denominator, "numerator": numerator, "output": numerator / denominator}
        return {name: tensor.flatten(-3, -2) for name, tensor in whole.items()}

    attention = efficient(recipe)
    truth = sums(exponentials)
    broken = {name: torch.zeros(heads, dtype=torch.long) for name in truth}
    kept = torch.zeros(heads)
    for start in range(0, DRAWS, at_once):
        lanes = [f"draw {i}" for i in range(start, start + at_once)]
        tensors = (t.expand(at_once, -1, -1, -1) for t in inputs.tensors())
        mask = attention.build_mask(*tensors, inputs.scaling, 0.0, {"lanes": lanes}, layer_idx=layer)
        inclusion = mask.to_dense().expand(at_once, heads, 1, -1).view(at_once, kv_heads, group, kv_len)
        kept += (inclusion > 0).sum((0, 3)).flatten()
        for name, estimate in sums(torch.where(inclusion > 0, exponentials / inclusion, 0.0)).items():
            error = (estimate - truth[name]).norm(dim=-1)
            broken[name] += (error > EPSILON * truth[name].norm(dim=-1)).sum(0)
    bounds = {name: [lower_bound(n, DRAWS) for n in counts.tolist()] for name, counts in broken.items()}
    return bounds | {"kept": (kept / DRAWS).tolist()}
