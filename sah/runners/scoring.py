"""From predictions on disk to scores and `metrics.json`. Can be repeated at any time; predictions never change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sah.adapters.kv_cache import KVShape, kv_shape
from sah.config.experiment import Experiment
from sah.data.config import LOG_LIKELIHOOD
from sah.metrics.aggregate import ScoredRow, compare, scored_rows, summarise
from sah.metrics.fidelity import attention_by_head, summarise_fidelity
from sah.metrics.kv_bytes import decode_kv_bytes, held_kv_bytes
from sah.metrics.scorers import score_all
from sah.results.files import read_json
from sah.results.rows import PredictionRow, ScoreRow
from sah.results.store import TIMING_FILE
from sah.runners.group import DENSE_WAIT_SECONDS
from sah.runners.point import Arm, Point
from sah.sparse_attention.config import parse_dense_layers

RAN_DENSE = (
    "No answer of this point ran sparse: all of them ended with their first token, which the question's call gives, "
    "and phases leaves the question dense. They are dense answers and are not compared. Write "
    "'phases=[question,decode]', or let answers be longer (generation.max_new_tokens)."
)
"""Why a point whose answers made no sparse attention call is a failed one."""


def score_point(point: Point) -> dict[str, Any]:
    """Score the rows of a point and of its dense baseline, and aggregate those of the point's examples.

    Args:
        point: A point that has run.

    Returns:
        What was written to the point's `metrics.json`.

    Raises:
        StateError: If scores cannot be written; predictions are safe.
    """
    metrics = point.experiment.dataset.metrics
    dense = _score_arm(point, point.dense, metrics)
    result: dict[str, Any] = {"metrics": list(metrics), "label": point.dense.label}
    result["dense"] = _summary(point, point.dense, dense)
    stored = _write(point.dense, result)
    if point.sparse is None:
        return stored
    sparse = _score_arm(point, point.sparse, metrics)
    result |= {
        "label": point.sparse.label,
        "prefill": point.experiment.prefill_label,
        "density_requested": point.sparse.requested_density,
        "phases": point.sparse.store.identity.get("phases", []),
        "dense_layers": point.sparse.store.identity.get("dense_layers", ""),
        "dense_point": point.dense.store.id,
        "sparse": _summary(point, point.sparse, sparse),
        "comparison": compare(dense, sparse, point.experiment.margin),
    }
    answered = [entry.row for entry in sparse if isinstance(entry.row, PredictionRow) and entry.row.status == "ok"]
    if point.experiment.maskers and answered and not any(row.attention_calls for row in answered):
        # What ran dense says nothing of the recipe: it gets no comparison and no verdict.
        result |= {"comparison": compare([], []), "error": RAN_DENSE}
    return _write(point.sparse, result)


def choosing_bytes(experiment: Experiment, shape: KVShape) -> float:
    """Add up what a recipe reads to choose keys, over the full-attention layers that run sparse.

    Args:
        experiment: The point.
        shape: Of the model's keys and values.

    Returns:
        Bytes a token of the sequence, for one decoded token; 0 for the dense baseline.
    """
    dense = parse_dense_layers(experiment.dense_layers)
    total = 0.0
    for _, config in experiment.maskers:
        layers = [layer for layer in shape.layers if layer not in dense and layer in config.layer_set]
        total += len(layers) * shape.kv_heads * config.choosing_bytes(shape.head_dim, shape.itemsize)
    return total


def _summary(point: Point, arm: Arm, scored: Sequence[ScoredRow]) -> dict[str, Any]:
    """Aggregate an arm's rows, bytes (see `sah.metrics.kv_bytes`) among the figures."""
    shape = kv_shape(arm.adapter.model)
    rows = [entry.row for entry in scored if isinstance(entry.row, PredictionRow)]
    choosing = 0.0 if arm.is_dense else choosing_bytes(point.experiment, shape)
    evicts = not arm.is_dense and all(config.evicts for _, config in point.experiment.maskers)
    summary = summarise(scored) | {
        "decode_kv_bytes": decode_kv_bytes(rows, shape.token_bytes, choosing),
        "held_kv_bytes": held_kv_bytes(rows, shape.token_bytes, evicts=evicts and bool(point.experiment.maskers)),
    }
    if arm.is_dense:
        return summary
    stored = arm.store.load_fidelity()
    fidelity = [stored[key] for key in dict.fromkeys(point.row_keys) if key in stored]
    calls = [row.calls_by_layer for row in rows if row.calls_by_layer]
    return summary | {
        "calls_by_layer": {str(layer): sum(counts) for layer, counts in enumerate(zip(*calls, strict=True))},
        "fidelity": summarise_fidelity(fidelity, sparse_prefill=point.experiment.prefill is not None),
        "attention_by_head": attention_by_head(fidelity),
    }


def _write(arm: Arm, metrics: dict[str, Any]) -> dict[str, Any]:
    """Write the metrics of an arm, its timed run among them if there was one."""
    timing = read_json(arm.store.folder / TIMING_FILE)
    stored = metrics if timing is None else {**metrics, "timing": timing}
    with arm.store.writer(DENSE_WAIT_SECONDS):
        arm.store.write_metrics(stored)
    return stored


def _score_arm(point: Point, arm: Arm, metrics: Sequence[str]) -> list[ScoredRow]:
    with arm.store.writer(DENSE_WAIT_SECONDS):
        rows = arm.store.load()
        scored = [_score_row(row, metrics) for row in rows.values() if row.status == "ok"]
        arm.store.write_scores(scored)
    scores: dict[str, Mapping[str, float]] = {s.key: s.scores for s in scored if s.status == "ok"}
    wanted = [rows[key] for key in dict.fromkeys(point.row_keys) if key in rows]
    return scored_rows(wanted, scores)


def _score_row(row: PredictionRow, metrics: Sequence[str]) -> ScoreRow:
    # A scorer that fails on one text must neither become a score of zero nor stop the others.
    try:
        if row.log_likelihood is not None and row.num_answer_tokens:
            scores = {LOG_LIKELIHOOD: row.log_likelihood / row.num_answer_tokens}
        else:
            scores = score_all(metrics, row.prediction, row.answers)
    except Exception as error:
        return ScoreRow(
            example_key=row.example_key, question_index=row.question_index, status="score_failed", error=repr(error)
        )
    return ScoreRow(example_key=row.example_key, question_index=row.question_index, status="ok", scores=scores)
