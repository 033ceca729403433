"""Rows of a worker that say something else than an answer."""

from __future__ import annotations

from collections.abc import Mapping

from sah.data.example import Example
from sah.results.fidelity import FidelityRow
from sah.results.rows import PredictionRow, PredictionStatus
from sah.runners.tasks import Setting


def failed_row(setting: Setting, example: Example, index: int, status: PredictionStatus, error: str) -> PredictionRow:
    """Make the row of a question that has no answer.

    Args:
        setting: The setting.
        example: The context.
        index: Number of the question.
        status: What kind of failure it was.
        error: What went wrong.

    Returns:
        The row.
    """
    question = example.questions[index]
    return PredictionRow(
        example_key=example.key,
        question_index=index,
        status=status,
        answers=question.answers,
        answer_prefix=question.answer_prefix,
        density_requested=setting.requested_density,
        error=error,
        metadata=row_metadata(example, index),
    )


def measured_density(setting: Setting, density: float | None) -> float | None:
    """Give the density of a row: dense decoding behind a sparse prefill reads every key, and measures none of it."""
    return 1.0 if density is None and not setting.dense and not setting.experiment.maskers else density


def failed_fidelity(example: Example, index: int, error: str) -> FidelityRow:
    """Make the row of a question whose fidelity could not be measured."""
    return FidelityRow(example_key=example.key, question_index=index, status="failed", error=error)


def row_metadata(example: Example, index: int) -> Mapping[str, object]:
    """Return what the data set says of a question."""
    return {**example.metadata, **example.questions[index].metadata}


def calls_of_layers(calls: Mapping[str, Mapping[int, int]], num_layers: int) -> tuple[int, ...]:
    """Add up sparse attention calls of all phases, one number a layer; empty where there was none."""
    if not any(calls.values()):
        return ()
    return tuple(sum(by_layer.get(layer, 0) for by_layer in calls.values()) for layer in range(num_layers))
