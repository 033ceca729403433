"""How many keys must be drawn until an estimated sum is as exact as promised."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from statistics import NormalDist

import torch

from sah.sparse_attention.key_lists import to_heads
from sah.sparse_attention.maskers.adaptive_config import DENOMINATOR, OUTPUT, AdaptiveSamplingMaskerConfig


@dataclass(frozen=True)
class KeysRead:
    """Some keys of every query row, with what is known of them."""

    logits: torch.Tensor
    """(batch, heads, q_len, n), float32, capped."""

    weights: torch.Tensor
    """What a key counts for, broadcastable to `logits`, float32: 1 / p where it is kept with probability p, 0 where it
    is not kept."""

    values: torch.Tensor | None
    """(batch, lists, n, value_dim), lists being heads or kv_heads; None where only the denominator matters."""


def keys_needed(
    kept: list[KeysRead],
    sample: KeysRead,
    size: torch.Tensor,
    drawn: torch.Tensor,
    sinks: torch.Tensor | None,
    promise: AdaptiveSamplingMaskerConfig,
) -> torch.Tensor:
    """Estimate how many residual keys a sample without replacement needs, from the part of it that is drawn.

    With N residual keys, n of them drawn, and T the trace of the covariance of what a residual key adds to the sum, the
    estimated sum has the variance N^2 T (1/n - 1/N). The answer is the smallest n for which the quantile times its root
    is at most epsilon times the norm of the sum. What a key adds is exp(l) for the denominator, exp(l) v for the
    numerator, and exp(l) (v - o) for the output o, whose error is that of the sum of these over the denominator as
    long as both are small.

    Two estimates are taken with care, since a sample that happens to miss the heavy keys sees a small variance and asks
    for little: T is taken one standard error above its estimate, and the variance of the estimated sum is taken off
    its squared norm, which noise makes larger.

    Args:
        kept: Keys that count in full: those kept before.
        sample: The keys drawn so far, weight 1; their values where the promise needs them.
        size: Residual keys, (batch, heads, q_len), int64.
        drawn: Those drawn, same shape; at least 2 where size is.
        sinks: Learned logit of each head that joins the denominator only, (heads,), or None.
        promise: The error promised, and how surely.

    Returns:
        Keys to draw in all, int64, (batch, heads, q_len), from 0 to size.
    """
    maximum = reduce(torch.maximum, [_largest(part) for part in (*kept, sample)])
    if sinks is not None:
        sinks = sinks.float().view(1, -1, 1)
        maximum = torch.maximum(maximum, sinks)
    # A padded query reads nothing.
    maximum = maximum.masked_fill(maximum == float("-inf"), 0.0)
    total, number = size.double(), drawn.double().clamp(min=1)
    used = (sample.weights > 0).double()
    added = _exponentials(sample, maximum)
    denominator = added.sum(-1) * total / number
    for part in kept:
        denominator = denominator + _exponentials(part, maximum).sum(-1)
    if sinks is not None:
        denominator = denominator + (sinks - maximum).exp()
    if promise.guarantee == DENOMINATOR:
        deviations = (added - (added.sum(-1) / number).unsqueeze(-1)).square() * used
        squared_norm = denominator.square()
    else:
        mine = _by_list(added, _values(sample))
        numerator = mine * (total / number).unsqueeze(-1)
        for part in kept:
            numerator = numerator + _by_list(_exponentials(part, maximum), _values(part))
        centre = numerator / denominator.unsqueeze(-1) if promise.guarantee == OUTPUT else torch.zeros_like(numerator)
        mean = (mine - centre * added.sum(-1, keepdim=True)) / number.unsqueeze(-1)
        deviations = _squared_distances(added, _values(sample), centre, mean) * used
        squared_norm = numerator.square().sum(-1)
    trace = deviations.sum(-1) / (number - 1).clamp(min=1)
    spread = deviations.square().sum(-1) / number - (deviations.sum(-1) / number).square()
    careful = trace + (spread.clamp(min=0) / number).sqrt()
    squared_norm = squared_norm - total.square() * trace * (1 / number - 1 / total.clamp(min=1))
    # The error has no sign, so the quantile is two-sided.
    quantile = NormalDist().inv_cdf(1 - promise.delta / 2)
    tolerated = promise.epsilon**2 * squared_norm.clamp(min=0)
    needed = total / (1 + tolerated / (quantile**2 * total * careful).clamp(min=torch.finfo(torch.double).tiny))
    return torch.where(careful > 0, needed.ceil(), 0.0).long().clamp(max=size)


def _largest(part: KeysRead) -> torch.Tensor:
    return part.logits.masked_fill(part.weights == 0, float("-inf")).amax(-1)


def _exponentials(part: KeysRead, maximum: torch.Tensor) -> torch.Tensor:
    """Return exp(logit - maximum) times the weight, (batch, heads, q_len, n), double; 0 for keys that do not count."""
    logits = part.logits.masked_fill(part.weights == 0, float("-inf"))
    return ((logits - maximum.unsqueeze(-1)).exp() * part.weights).double()


def _values(part: KeysRead) -> torch.Tensor:
    if part.values is None:
        raise ValueError("the values of the keys read are not given, but the guarantee asks for them")
    return part.values.float()


def _by_list(rows: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """Multiply rows (batch, heads, q_len, a) with the matrices (batch, lists, a, b) of their heads; double."""
    batch, heads, q_len, width = rows.shape
    lists = matrices.shape[1]
    grouped = rows.float().reshape(batch, lists, heads // lists * q_len, width)
    return (grouped @ matrices).double().view(batch, heads, q_len, matrices.shape[-1])


def _squared_distances(
    added: torch.Tensor, values: torch.Tensor, centre: torch.Tensor, mean: torch.Tensor
) -> torch.Tensor:
    """Squared distance of each key's exp(l) (v - centre) from the mean of these.

    Args:
        added: exp(l), (batch, heads, q_len, n), double.
        values: (batch, lists, n, value_dim), float32.
        centre: (batch, heads, q_len, value_dim), double.
        mean: Same shape as centre.

    Returns:
        (batch, heads, q_len, n), double.
    """
    norms = to_heads(torch.linalg.vector_norm(values, dim=-1).square().unsqueeze(2), added.shape[1])
    along_centre, along_mean = (_by_list(vector, values.mT) for vector in (centre, mean))
    constant = (
        added.square() * centre.square().sum(-1, keepdim=True)
        + 2 * added * (centre * mean).sum(-1, keepdim=True)
        + mean.square().sum(-1, keepdim=True)
    )
    distances: torch.Tensor = added.square() * (norms - 2 * along_centre) - 2 * added * along_mean + constant
    return distances.clamp(min=0)
