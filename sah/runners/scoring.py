"""From predictions on disk to scores and `metrics.json`. Can be repeated at any time; predictions never change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sah.metrics.aggregate import ScoredRow, compare, scored_rows, summarise
from sah.metrics.scorers import score_all
from sah.results.files import read_json
from sah.results.rows import PredictionRow, ScoreRow
from sah.results.store import TIMING_FILE
from sah.runners.point import DENSE_WAIT_SECONDS, Arm, Point


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
    result: dict[str, Any] = {"metrics": list(metrics), "label": point.dense.label, "dense": summarise(dense)}
    stored = _write(point.dense, result)
    if point.sparse is None:
        return stored
    sparse = _score_arm(point, point.sparse, metrics)
    result |= {
        "label": point.sparse.label,
        "density_requested": point.sparse.requested_density,
        "phases": point.sparse.store.identity["phases"],
        "dense_layers": point.sparse.store.identity["dense_layers"],
        "dense_point": point.dense.store.id,
        "sparse": summarise(sparse),
        "comparison": compare(dense, sparse),
    }
    return _write(point.sparse, result)


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
        scores = score_all(metrics, row.prediction, row.answers)
    except Exception as error:
        return ScoreRow(
            example_key=row.example_key, question_index=row.question_index, status="score_failed", error=repr(error)
        )
    return ScoreRow(example_key=row.example_key, question_index=row.question_index, status="ok", scores=scores)
