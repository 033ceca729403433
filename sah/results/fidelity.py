"""The schema of one row of `fidelity.jsonl`: how near a sparse setting stays to dense attention on a given text."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from sah.errors import StateError
from sah.results.rows import SCHEMA_VERSION, checked_fields, plain_json, row_key

FidelityStatus = Literal["ok", "failed"]

_DIGITS = 4
"""Significant digits of the figures of single heads, of which there are many."""


@dataclass(frozen=True)
class LayerErrors:
    """Means over the queries of one layer that were compared with dense attention, a figure a query head."""

    queries: int
    output_error: tuple[float, ...]
    """Norm of the difference of sparse and dense output over the norm of the dense one."""
    mass_recalled: tuple[float, ...]
    """Share of the dense softmax mass that lies on the keys read."""
    density: tuple[float, ...]
    """Keys read divided by keys allowed."""


@dataclass(frozen=True, kw_only=True)
class FidelityRow:
    """One question's dense answer, or the text that a data set gives, as a sparse setting reads it. In nats."""

    example_key: str
    question_index: int
    status: FidelityStatus
    """`failed` where it could not be measured; that says nothing of the answer."""
    tokens: int | None = None
    """Tokens of the text."""
    kl: float | None = None
    """KL(dense, sparse) of the distributions of the next token, mean over the tokens."""
    top1_agreement: float | None = None
    """Share of the tokens at which both would choose the same one."""
    log_likelihood: float | None = None
    """Of the whole text under the sparse setting."""
    dense_log_likelihood: float | None = None
    attention_error: float | None = None
    """Share of the queries that were compared with dense attention in every layer."""
    layers: Mapping[int, LayerErrors] = field(default_factory=dict)
    """What was found, by layer."""
    calls_by_layer: Sequence[int] = ()
    """Sparse attention calls of each layer of the model, 0 for one that stayed dense."""
    error: str | None = None
    schema_version: int = SCHEMA_VERSION

    @property
    def key(self) -> str:
        """The key of the prediction row it belongs to."""
        return row_key(self.example_key, self.question_index)

    def to_json(self) -> dict[str, Any]:
        """Give the row as plain JSON data.

        Returns:
            A dict with every field by name.
        """
        data = {entry.name: plain_json(getattr(self, entry.name)) for entry in dataclasses.fields(self)}
        data["layers"] = {str(layer): _layer_json(errors) for layer, errors in self.layers.items()}
        return data

    @classmethod
    def from_json(cls, data: object) -> FidelityRow:
        """Build a row from what `to_json` gave.

        Args:
            data: A parsed line of `fidelity.jsonl`.

        Returns:
            The row.

        Raises:
            StateError: If the data are of another schema version, or are no such row.
        """
        values = checked_fields(cls, data, get_args(FidelityStatus))
        try:
            layers = {int(layer): _layer(errors) for layer, errors in values.get("layers", {}).items()}
        except (TypeError, ValueError, AttributeError) as error:
            raise StateError(f"the row's layers cannot be read: {error}") from error
        return cls(**{**values, "layers": layers, "calls_by_layer": tuple(values.get("calls_by_layer", ()))})


def rounded(value: float) -> float:
    """Round a figure of a head; there are thousands of them in a point."""
    return float(f"{value:.{_DIGITS}g}")


def _layer_json(errors: LayerErrors) -> list[Any]:
    figures = (errors.output_error, errors.mass_recalled, errors.density)
    return [errors.queries, *(plain_json([rounded(value) for value in heads]) for heads in figures)]


def _layer(data: Sequence[Any]) -> LayerErrors:
    queries, *figures = data
    error, mass, density = (tuple(map(float, heads)) for heads in figures)
    return LayerErrors(queries, error, mass, density)
