"""Aggregates of fidelity: how near a sparse setting stays to dense attention on the same texts, and where not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from sah.metrics.interval import Bounds, mean_interval

HEAD_FIGURES = ("output_error", "mass_recalled", "density")
"""What is known of every head of a layer, see `sah.results.fidelity.LayerErrors`."""


class LayerRow(Protocol):
    """What is read of one layer (see `sah.results.fidelity.LayerErrors`)."""

    @property
    def queries(self) -> int:
        """Queries that were looked at."""


class TextRow(Protocol):
    """What is read of a row (see `sah.results.fidelity.FidelityRow`)."""

    @property
    def example_key(self) -> str:
        """The context."""

    @property
    def status(self) -> str:
        """`ok` or `failed`."""

    @property
    def tokens(self) -> int | None:
        """Tokens of the text."""

    @property
    def kl(self) -> float | None:
        """Mean over the tokens, in nats."""

    @property
    def top1_agreement(self) -> float | None:
        """Share of the tokens."""

    @property
    def log_likelihood(self) -> float | None:
        """Sum over the tokens, in nats."""

    @property
    def dense_log_likelihood(self) -> float | None:
        """The same of dense attention."""

    @property
    def attention_error(self) -> float | None:
        """Share of queries that were compared with dense attention."""

    @property
    def calls_by_layer(self) -> Sequence[int]:
        """Sparse attention calls of each layer."""

    @property
    def layers(self) -> Mapping[int, LayerRow]:
        """What was found, by layer."""


def summarise_fidelity(rows: Sequence[TextRow], *, sparse_prefill: bool = False) -> dict[str, Any] | None:
    """Average over texts, each counting the same.

    Args:
        rows: The rows of a sparse point.
        sparse_prefill: Whether its contexts were prefilled sparse, so that also what ran dense over them has something
            to compare.

    Returns:
        `questions`, `tokens`, `failed` and `without_sparse_calls` (counts; the last two are in no mean); `kl` (nats a
        token), `top1_agreement` (share of tokens) and `log_likelihood_difference` (sparse minus dense, nats a token),
        each with `mean` and its 95 % interval clustered by context, `low` and `high`. None where there is no row.
    """
    if not rows:
        return None
    known: list[tuple[str, int, float, float, float]] = []
    dense = 0
    for row in rows:
        figures = (row.kl, row.top1_agreement, row.log_likelihood, row.dense_log_likelihood)
        if row.status == "ok" and not any(row.calls_by_layer) and not sparse_prefill:
            dense += 1  # an answer of one token whose question ran dense: there is nothing to compare
            continue
        if row.status != "ok" or not row.tokens or None in figures:
            continue  # counted as failed: what is not known is never a perfect zero
        kl, agreement, likelihood, reference = (float(value) for value in figures if value is not None)
        known.append((row.example_key, row.tokens, kl, agreement, (likelihood - reference) / row.tokens))

    def entry(place: int, bounds: Bounds | None) -> dict[str, float | None]:
        if not known:
            return {"mean": None, "low": None, "high": None}
        values = [float(figures[place]) for figures in known]
        found = mean_interval(values, [context for context, *_ in known], bounds)
        return {"mean": found.mean, "low": found.low, "high": found.high}

    return {
        "questions": len(known),
        "tokens": sum(tokens for _, tokens, *_ in known),
        "failed": len(rows) - len(known) - dense,
        "without_sparse_calls": dense,
        "kl": entry(2, (0.0, math.inf)),
        "top1_agreement": entry(3, (0.0, 1.0)),
        "log_likelihood_difference": entry(4, None),
    }


def attention_by_head(rows: Sequence[TextRow]) -> dict[str, Any] | None:
    """Average the comparisons with dense attention over the queries of every layer and head.

    Args:
        rows: The rows of a sparse point.

    Returns:
        `rate` (share of queries looked at), `layers` (their numbers), `rows` (queries looked at in each), and
        `output_error`, `mass_recalled` and `density`: a list of heads for each layer. None where nothing was compared.
    """
    totals: dict[int, np.ndarray[Any, Any]] = {}
    counts: dict[int, int] = {}
    for row in rows:
        for layer, found in row.layers.items():
            figures = found.queries * np.array([getattr(found, name) for name in HEAD_FIGURES], dtype=float)
            totals[layer] = totals[layer] + figures if layer in totals else figures
            counts[layer] = counts.get(layer, 0) + found.queries
    if not totals:
        return None
    layers = sorted(totals)
    means = {layer: totals[layer] / counts[layer] for layer in layers}
    by_name = {name: [means[layer][place].tolist() for layer in layers] for place, name in enumerate(HEAD_FIGURES)}
    rates = {row.attention_error for row in rows if row.attention_error is not None}
    rate = rates.pop() if len(rates) == 1 else None
    return {"rate": rate, "layers": layers, "rows": [counts[layer] for layer in layers], **by_name}


def mean_output_error(by_head: Mapping[str, Any] | None) -> float | None:
    """Average the output error of `attention_by_head` over queries, layers and heads; None if there is none."""
    if by_head is None:
        return None
    return float(np.average(np.mean(by_head["output_error"], axis=1), weights=by_head["rows"]))
