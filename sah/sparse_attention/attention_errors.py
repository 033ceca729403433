"""How far sparse attention is from dense attention on the same inputs, by layer and head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sah.config.values import check_share
from sah.sparse_attention.kernels.masked import masked_attention
from sah.sparse_attention.kernels.shared import everything_weights, shared_output
from sah.sparse_attention.mask import Mask
from sah.sparse_attention.randomness import generator_for
from sah.sparse_attention.shared import SharedStates

ATTENTION_ERRORS_KEY = "attention_errors"
"""Key of `sparse_meta_data` under which a run puts its `AttentionErrors`."""


@dataclass(frozen=True)
class HeadErrors:
    """Means over the queries of one layer that were looked at, (heads,) each, one entry a query head."""

    queries: int
    """How many were looked at."""

    output_error: torch.Tensor
    """Norm of the difference of sparse and dense output over the norm of the dense one."""

    mass_recalled: torch.Tensor
    """Share of the dense softmax mass that lies on the keys read; learned sinks are part of the mass."""

    density: torch.Tensor
    """Keys read divided by keys allowed."""


class AttentionErrors:
    """Samples the queries of one question's attention calls and compares them with dense attention.

    Which queries are looked at is drawn layer by layer in the order of the queries: it depends on nothing that is
    computed, and not on the way queries are cut into calls.

    Args:
        rate: Share of queries to look at in every layer, 0 to 1.
        seed: Seed of the choice.
        lane: Identity of the question, so that questions differ in what is looked at.

    Raises:
        ConfigError: If the rate is no share.
    """

    def __init__(self, rate: float, seed: int = 0, lane: str = "") -> None:
        self.rate = check_share("attention_error", rate, or_zero=True)
        self._identity = (seed, lane)
        self._choices: dict[int, torch.Generator] = {}
        self._sums: dict[int, torch.Tensor] = {}
        """Sums of the three figures, (3, heads), double."""
        self._counts: dict[int, int] = {}

    def choose(self, layer_idx: int, queries: int) -> torch.Tensor:
        """Decide which of a layer's next queries are looked at.

        Args:
            layer_idx: The layer.
            queries: How many come.

        Returns:
            Boolean, (queries,), on the CPU.
        """
        if layer_idx not in self._choices:
            self._choices[layer_idx] = generator_for("attention_error", *self._identity, layer_idx)
        return torch.rand(queries, generator=self._choices[layer_idx]) < self.rate

    def add(self, layer_idx: int, figures: torch.Tensor) -> None:
        """Add queries of a layer.

        Args:
            layer_idx: The layer.
            figures: Output error, mass recalled and density, (3, queries, heads), of at least one query.
        """
        total = figures.double().sum(1).cpu()
        self._sums[layer_idx] = self._sums.get(layer_idx, 0.0) + total
        self._counts[layer_idx] = self._counts.get(layer_idx, 0) + figures.shape[1]

    def by_layer(self) -> dict[int, HeadErrors]:
        """Return the means of every layer that was looked at, in order."""
        return {
            layer: HeadErrors(self._counts[layer], *(self._sums[layer] / self._counts[layer]).float())
            for layer in sorted(self._sums)
        }

    def mean(self) -> float | None:
        """Return the output error, mean over layers, heads and queries; None if no query was looked at."""
        if not self._counts:
            return None
        total = sum(float(sums[0].sum()) for sums in self._sums.values())
        return total / sum(self._counts[layer] * sums.shape[1] for layer, sums in self._sums.items())


def observe_queries(
    sparse_meta_data: dict[Any, Any],
    output: torch.Tensor,
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: Mask,
    allowed: torch.Tensor,
    scaling: float,
    **kwargs: Any,
) -> None:
    """Compare queries of one call with dense attention, where the run asked for it.

    Queries that may read no key (padding) are left out.

    Args:
        sparse_meta_data: State of the question at hand.
        output: Of the sparse attention, (batch, q_len, heads, value_dim).
        queries: (batch, heads, q_len, head_dim).
        keys: (batch, kv_heads, kv_len, head_dim).
        values: (batch, kv_heads, kv_len, value_dim).
        mask: The keys that each query reads.
        allowed: Boolean, broadcastable to (batch, heads, q_len, kv_len).
        scaling: Factor of the dot products.
        **kwargs: `layer_idx`, `s_aux`, `softcap`.
    """
    errors = sparse_meta_data.get(ATTENTION_ERRORS_KEY)
    if not isinstance(errors, AttentionErrors) or not errors.rate:
        return
    layer_idx, q_len = kwargs["layer_idx"], queries.shape[2]
    chosen = errors.choose(layer_idx, q_len).nonzero().flatten().to(queries.device)
    if not len(chosen):
        return
    shape = (*queries.shape[:2], len(chosen), keys.shape[2])
    may_read = (allowed if allowed.shape[2] == 1 else allowed[:, :, chosen]).expand(shape)
    dense, weights = masked_attention(
        queries[:, :, chosen],
        keys,
        values,
        may_read.float(),
        scaling,
        sinks=kwargs.get("s_aux"),
        softcap=kwargs.get("softcap"),
    )
    inclusion = mask.kept()
    read = (inclusion if inclusion.shape[2] == 1 else inclusion[:, :, chosen]) & may_read
    figures = _figures(output[:, chosen].transpose(1, 2), dense, weights, read, may_read)
    # A padded query reads nothing in either form; it would count as one without an error.
    reads = may_read.any(-1).any(1)
    if bool(reads.any()):
        errors.add(layer_idx, figures.transpose(2, 3)[:, reads])


def chosen_rows(errors: Sequence[AttentionErrors], lanes: torch.Tensor, layer_idx: int) -> torch.Tensor:
    """Decide which rows of a call for many lanes are looked at.

    Args:
        errors: One a lane.
        lanes: Lane of each row, rows of a lane together, (rows,), int64.
        layer_idx: The layer.

    Returns:
        Their numbers, ascending, (n,), int64, on the device of `lanes`.
    """
    numbers, counts = torch.unique_consecutive(lanes, return_counts=True)
    choices = [
        errors[lane].choose(layer_idx, count) for lane, count in zip(numbers.tolist(), counts.tolist(), strict=True)
    ]
    return torch.cat(choices).nonzero().flatten().to(lanes.device)


def observe_rows(
    errors: Sequence[AttentionErrors],
    chosen: torch.Tensor,
    output: torch.Tensor,
    queries: torch.Tensor,
    keys: SharedStates,
    values: SharedStates,
    mask: Mask,
    scaling: float,
    **kwargs: Any,
) -> None:
    """Compare chosen rows of a call for many lanes with dense attention; plain twin: `observe_queries`.

    Args:
        errors: One a lane.
        chosen: Rows to look at, (n,), int64, at least one.
        output: Of the sparse attention, (rows, heads, 1, value_dim).
        queries: (rows, heads, 1, head_dim).
        keys: (rows, kv_heads, kv_len, head_dim).
        values: (rows, kv_heads, kv_len, value_dim).
        mask: The keys that each row reads.
        scaling: Factor of the dot products.
        **kwargs: `layer_idx`, `s_aux`, `softcap`.
    """
    mine, its_values = keys.of_rows(chosen), values.of_rows(chosen).deferring(None)
    allowed = mine.allowed()
    weights = everything_weights(
        queries[chosen], mine, scaling, sinks=kwargs.get("s_aux"), softcap=kwargs.get("softcap")
    )
    dense = shared_output(weights, its_values)
    read = mask.of_rows(chosen).kept() & allowed
    figures = _figures(output[chosen], dense, weights, read, allowed.expand_as(weights))
    lanes = mine.lanes.tolist()
    for lane in dict.fromkeys(lanes):
        places = [place for place, other in enumerate(lanes) if other == lane]
        errors[lane].add(kwargs["layer_idx"], figures[:, places, :, 0])


def _figures(
    sparse: torch.Tensor, dense: torch.Tensor, weights: torch.Tensor, read: torch.Tensor, allowed: torch.Tensor
) -> torch.Tensor:
    """Return output error, mass recalled and density, (3, batch, heads, q_len)."""
    dense = dense.float()
    error = (sparse.float() - dense).norm(dim=-1) / dense.norm(dim=-1).clamp(min=1e-20)
    on_sinks = 1.0 - weights.sum(-1)
    recalled = (weights * read).sum(-1) + on_sinks
    density = read.expand_as(weights).sum(-1) / allowed.expand_as(weights).sum(-1).clamp(min=1)
    return torch.stack([error, recalled, density.float()])
