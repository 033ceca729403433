"""Aggregates of a point's rows, and the paired comparison of two points.

Failures are counted, never scored: a question that has no answer or no score is absent from every mean, and
its absence shows in the counts beside it. The results are plain dicts for `metrics.json`.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sah.metrics.compare import MARGIN, compare_scores
from sah.metrics.interval import Bounds, mean_interval
from sah.metrics.scorers import score_bounds


class Row(Protocol):
    """What the aggregates read of a prediction row (see `sah.results.rows.PredictionRow`)."""

    @property
    def key(self) -> str:
        """The row's name inside its point."""

    @property
    def example_key(self) -> str:
        """The example (context) that the question belongs to."""

    @property
    def status(self) -> str:
        """`ok`, or why there is no prediction."""


@dataclass(frozen=True)
class ScoredRow:
    """A prediction row joined with its scores."""

    row: Row
    scores: Mapping[str, float] | None
    """Metric name to value; None where scoring failed or there was nothing to score."""

    @property
    def status(self) -> str:
        """The row's status; `score_failed` where the prediction is there and its score is not."""
        return "score_failed" if self.row.status == "ok" and self.scores is None else self.row.status


MEASURES: tuple[str, ...] = (
    "kv_len",
    "num_question_tokens",
    "num_answer_tokens",
    "density_requested",
    "density_measured",
    "attention_calls",
    "output_error",
    "state_seconds",
    "question_seconds",
    "question_cpu_seconds",
    "decode_seconds",
    "decode_cpu_seconds",
    "attention_seconds",
    "selection_seconds",
)
"""Fields of a row whose mean over the rows that have a prediction is reported. None values are left out."""


def scored_rows(rows: Iterable[Row], scores: Mapping[str, Mapping[str, float]]) -> list[ScoredRow]:
    """Join rows with their scores.

    Args:
        rows: A point's rows, one a key.
        scores: Row key to scores; rows whose scoring failed are absent.

    Returns:
        The joined rows, in the order given.
    """
    return [ScoredRow(row, scores.get(row.key) if row.status == "ok" else None) for row in rows]


def mean(values: Iterable[float | None]) -> float | None:
    """Average what was measured.

    Args:
        values: Numbers, with None for what was not measured.

    Returns:
        The mean of the numbers, or None if there are none.
    """
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if known else None


def summarise(rows: Sequence[ScoredRow], bounds: Callable[[str], Bounds | None] = score_bounds) -> dict[str, Any]:
    """Aggregate one point.

    Args:
        rows: Its rows.
        bounds: Tells a metric's least and greatest score.

    Returns:
        `rows` and `contexts` (counts); `status` (rows by status, `ok` meaning answered and scored); `scores`
        (by metric: `mean`, `count`, and the 95 % interval clustered by context, `low` and `high`, see
        `sah.metrics.interval`); `measures` (means over answered rows, see `MEASURES`);
        `density_by_phase`; `prefill` (`density`: the mean share that prefills read, `seconds` and `cpu_seconds`: means
        over the rows that did prefill, with `count` of them, and `reused`); and `decode_ms_per_token` (wall) with its
        CPU twin: all decode time divided by all decode steps.
    """
    answered = [scored.row for scored in rows if scored.row.status == "ok"]
    metrics = _in_order(metric for scored in rows for metric in scored.scores or {})
    scores = {}
    for metric in metrics:
        having = [(s.row.example_key, s.scores[metric]) for s in rows if s.scores and metric in s.scores]
        found = mean_interval([value for _, value in having], [context for context, _ in having], bounds(metric))
        scores[metric] = {"mean": found.mean, "count": found.values, "low": found.low, "high": found.high}
    prefilled = [row for row in answered if _get(row, "prefill_reused") is False]
    phases = _in_order(phase for row in answered for phase in _get(row, "density_by_phase") or {})
    return {
        "rows": len(rows),
        "contexts": len({scored.row.example_key for scored in rows}),
        "status": dict(collections.Counter(scored.status for scored in rows)),
        "scores": scores,
        "measures": {name: mean(_get(row, name) for row in answered) for name in MEASURES},
        "density_by_phase": {
            phase: mean((_get(row, "density_by_phase") or {}).get(phase) for row in answered) for phase in phases
        },
        "prefill": {
            "density": mean(_get(row, "prefill_density") for row in answered),
            "seconds": mean(_get(row, "prefill_seconds") for row in prefilled),
            "cpu_seconds": mean(_get(row, "prefill_cpu_seconds") for row in prefilled),
            "count": len(prefilled),
            "reused": sum(_get(row, "prefill_reused") is True for row in answered),
        },
        "decode_ms_per_token": _milliseconds_a_step(answered, "decode_seconds"),
        "decode_cpu_ms_per_token": _milliseconds_a_step(answered, "decode_cpu_seconds"),
    }


def compare(
    dense: Sequence[ScoredRow],
    sparse: Sequence[ScoredRow],
    margin: float = MARGIN,
    bounds: Callable[[str], Bounds | None] = score_bounds,
) -> dict[str, Any]:
    """Compare two points on the questions that both answered and scored.

    Args:
        dense: Rows of the dense baseline.
        sparse: Rows of the sparse point.
        margin: Difference of scores within which the two count as tied.
        bounds: Tells a metric's least and greatest score.

    Returns:
        `scores`: by metric the fields of `sah.metrics.compare.Comparison`, among them `dense` and `sparse` (means over
        the pairs), `difference` (sparse minus dense), its interval `low` to `high` clustered by context, `verdict` and
        `pairs` (count); `contexts` (distinct contexts among the pairs); `unpaired`: how many rows of `dense`
        and `sparse` have no partner, whatever the reason; `timed_together`: whether each pair's rows were made by
        one run, so that their times may be compared.
    """
    dense_scores, sparse_scores = _scores_by_key(dense), _scores_by_key(sparse)
    shared = [key for key in dense_scores if key in sparse_scores]
    scores: dict[str, dict[str, Any]] = {}
    contexts = {scored.row.key: scored.row.example_key for scored in dense}
    for metric in _in_order(metric for key in shared for metric in dense_scores[key]):
        keys = [key for key in shared if metric in dense_scores[key] and metric in sparse_scores[key]]
        if keys:
            compared = compare_scores(
                [dense_scores[key][metric] for key in keys],
                [sparse_scores[key][metric] for key in keys],
                [contexts[key] for key in keys],
                bounds=bounds(metric),
                margin=margin,
            )
            scores[metric] = compared.to_json()
    runs = [{s.row.key: _get(s.row, "run") for s in rows} for rows in (dense, sparse)]
    return {
        "scores": scores,
        "contexts": len({contexts[key] for key in shared}),
        "timed_together": bool(shared) and all(None is not runs[0][key] == runs[1][key] for key in shared),
        "unpaired": {"dense": len(dense) - len(shared), "sparse": len(sparse) - len(shared)},
    }


def _scores_by_key(rows: Sequence[ScoredRow]) -> dict[str, Mapping[str, float]]:
    return {scored.row.key: scored.scores for scored in rows if scored.scores is not None}


def _get(row: Row, name: str) -> Any:
    return getattr(row, name, None)


def _in_order(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _milliseconds_a_step(rows: Sequence[Row], field: str) -> float | None:
    timed = [(_get(row, field), _get(row, "decode_steps")) for row in rows]
    known = [(seconds, steps) for seconds, steps in timed if seconds is not None and steps]
    total = sum(steps for _, steps in known)
    return 1000.0 * sum(seconds for seconds, _ in known) / total if total else None
