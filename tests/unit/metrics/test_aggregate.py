from __future__ import annotations

import json
from typing import Any

import pytest

from sah.metrics.aggregate import compare, mean, scored_rows, summarise
from sah.results.rows import PredictionRow


def _row(key: str, index: int = 0, status: str = "ok", **fields: Any) -> PredictionRow:
    return PredictionRow(example_key=key, question_index=index, status=status, **fields)  # type: ignore[arg-type]


def test_failures_are_counted_apart_and_never_scored_zero() -> None:
    rows = [
        _row("a"),
        _row("a", 1),
        _row("b", status="model_failed"),
        _row("c", status="invalid_input"),
        _row("d"),
    ]
    scores = {"a:0": {"f1": 1.0}, "a:1": {"f1": 0.5}, "b:0": {"f1": 0.0}}
    summary = summarise(scored_rows(rows, scores))
    assert summary["scores"] == {"f1": {"mean": 0.75, "count": 2, "low": None, "high": None}}
    assert summary["status"] == {"ok": 2, "model_failed": 1, "invalid_input": 1, "score_failed": 1}
    assert (summary["rows"], summary["contexts"]) == (5, 4)
    assert json.loads(json.dumps(summary)) == summary


def test_measures_are_means_of_what_was_measured() -> None:
    first: dict[str, Any] = {
        "density_measured": 0.1,
        "state_seconds": 0.5,
        "density_by_phase": {"question": 0.1, "decode": None},
    }
    second: dict[str, Any] = {"density_measured": 0.3, "state_seconds": 0.0, "density_by_phase": {"question": 0.3}}
    rows = [
        _row(
            "a",
            prefill_seconds=4.0,
            prefill_density=0.3,
            prefill_reused=False,
            decode_seconds=1.0,
            decode_steps=9,
            **first,
        ),
        _row("a", 1, prefill_seconds=0.0, prefill_reused=True, decode_seconds=0.2, decode_steps=1, **second),
        _row("b", decode_seconds=None, decode_steps=3),
        _row("c", decode_seconds=0.0, decode_steps=0),
        _row("d", status="model_failed", density_measured=1.0, prefill_seconds=99.0, prefill_reused=False),
    ]
    summary = summarise(scored_rows(rows, {}))
    assert summary["measures"]["density_measured"] == pytest.approx(0.2)
    assert summary["measures"]["question_seconds"] is None
    assert summary["measures"]["state_seconds"] == 0.25
    assert summary["density_by_phase"] == {"question": pytest.approx(0.2), "decode": None}
    assert summary["prefill"] == {"density": 0.3, "seconds": 4.0, "cpu_seconds": None, "count": 1, "reused": 1}
    assert summary["decode_ms_per_token"] == pytest.approx(120.0)
    assert summary["decode_cpu_ms_per_token"] is None
    assert summary["scores"] == {}


def test_comparison_pairs_the_same_questions_only() -> None:
    dense = scored_rows(
        [_row("a"), _row("b"), _row("c"), _row("only dense")],
        {"a:0": {"f1": 1.0, "em": 1.0}, "b:0": {"f1": 0.8}, "c:0": {"f1": 1.0}, "only dense:0": {"f1": 0.0}},
    )
    sparse = scored_rows(
        [_row("b"), _row("a"), _row("c", status="model_failed"), _row("extra")],
        {"a:0": {"f1": 0.5, "em": 0.0}, "b:0": {"f1": 0.9}},
    )
    comparison = compare(dense, sparse)
    f1 = comparison["scores"]["f1"]
    wanted = {"dense": 0.9, "sparse": 0.7, "difference": pytest.approx(-0.2), "pairs": 2, "contexts": 2}
    assert {name: f1[name] for name in wanted} == wanted
    em = comparison["scores"]["em"]
    wanted = {"dense": 1.0, "sparse": 0.0, "difference": -1.0, "pairs": 1, "low": None, "verdict": "not enough data"}
    assert {name: em[name] for name in wanted} == wanted
    assert comparison["contexts"] == 2
    assert comparison["unpaired"] == {"dense": 2, "sparse": 2}
    assert json.loads(json.dumps(comparison))["unpaired"] == comparison["unpaired"]


def _all(count: int, value: float) -> Any:
    rows = [_row(f"context {place // 2}", place % 2) for place in range(count)]
    return scored_rows(rows, {row.key: {"exact_match": value, "log_likelihood": -value} for row in rows})


def test_scores_and_their_difference_have_intervals_by_context() -> None:
    dense, sparse = _all(40, 1.0), _all(40, 0.5)
    assert summarise(dense)["scores"]["exact_match"] == {
        "mean": 1.0,
        "count": 40,
        "low": pytest.approx(0.025 ** (1 / 20)),
        "high": 1.0,
    }
    comparison = compare(dense, sparse, margin=0.1)
    match = comparison["scores"]["exact_match"]
    assert set(match) >= {"low", "high", "confidence", "p_value", "p_tied", "contexts", "margin", "verdict"}
    assert (match["contexts"], match["pairs"], match["margin"], match["verdict"]) == (20, 40, 0.1, "worse")
    assert match["low"] < match["difference"] == -0.5 < match["high"] < 0
    # Nothing is known of the bounds of this one, and equal values then give no interval.
    assert comparison["scores"]["log_likelihood"]["low"] is None
    bounded = compare(dense, sparse, bounds=lambda name: (-1.0, 0.0) if name == "log_likelihood" else (0.0, 1.0))
    assert bounded["scores"]["log_likelihood"]["verdict"] == "better"
    assert json.loads(json.dumps(comparison)) == comparison


def test_nothing_in_common_gives_no_number() -> None:
    dense = scored_rows([_row("a")], {"a:0": {"f1": 1.0}})
    sparse = scored_rows([_row("b")], {"b:0": {"f1": 1.0}})
    comparison = compare(dense, sparse)
    assert (comparison["scores"], comparison["contexts"]) == ({}, 0)
    assert comparison["unpaired"] == {"dense": 1, "sparse": 1}
    assert comparison["timed_together"] is False
    assert mean([]) is None and mean([None]) is None and mean([None, 2]) == 2.0
    assert summarise([])["rows"] == 0


def test_times_are_comparable_within_a_run_only() -> None:
    def rows(run: str | None) -> Any:
        return scored_rows([_row("a", run=run)], {"a:0": {"f1": 1.0}})

    assert compare(rows("one"), rows("one"))["timed_together"] is True
    assert compare(rows("one"), rows("two"))["timed_together"] is False
    assert compare(rows(None), rows(None))["timed_together"] is False
