"""From rows to what a sweep says of its points in words."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from sah.metrics.aggregate import compare, scored_rows, summarise
from sah.report.summary import PointSummary, summarise_point
from sah.report.verdicts import correct_points, correction_note, sentence
from sah.results.rows import PredictionRow

METRIC = "exact_match"


def summary(scores: Sequence[float], *, label: str = "topk", questions: int = 1, metric: str = METRIC) -> PointSummary:
    """A point whose dense answers are all right."""
    rows = [
        PredictionRow(example_key=f"context {place // questions}", question_index=place % questions, status="ok")
        for place in range(len(scores))
    ]
    dense = scored_rows(rows, {row.key: {metric: 1.0} for row in rows})
    sparse = scored_rows(rows, {row.key: {metric: score} for row, score in zip(rows, scores, strict=True)})
    return summarise_point(
        {
            "metrics": [metric],
            "label": label,
            "density_requested": 0.1,
            "phases": ["decode"],
            "dense_layers": "",
            "dense": summarise(dense),
            "sparse": summarise(sparse),
            "comparison": compare(dense, sparse),
        }
    )


def test_the_summary_takes_what_the_comparison_found() -> None:
    point = summary([0.0] * 6 + [1.0] * 26)
    assert (point.verdict, point.contexts, point.margin, point.confidence) == ("worse", 32, 0.05, 0.95)
    assert point.low is not None and point.high is not None and point.low < -6 / 32 < point.high < 0
    assert point.p_value == pytest.approx(2 * 0.5**6, rel=1e-6)
    assert point.dense_range == (pytest.approx(0.025 ** (1 / 32)), 1.0)
    assert point.sparse_range[0] is not None and point.sparse_range[0] < 26 / 32


def test_sentences() -> None:
    assert sentence(summary([1.0] * 100)) == (
        "topk at density 0.1 is tied with dense: difference +0.000, 95 % interval -0.04 to +0.04 over 100 contexts, "
        "within the margin of 0.05."
    )
    assert sentence(summary([0.0] * 20 + [1.0] * 12)).startswith("topk at density 0.1 is worse than dense: ")
    assert sentence(summary([1.0] * 32)) == (
        "topk at density 0.1: not enough data: difference +0.000, 95 % interval -0.11 to +0.11 over 32 contexts; about "
        "72 contexts would settle it if they came out like these."
    )
    assert "about 72 contexts with 144 questions would" in sentence(summary([1.0] * 32, questions=2))
    assert sentence(summary([0.0, 0.0], questions=2)) == (
        "topk at density 0.1: not enough data: difference -1.000 in one context, which does not tell how others would "
        "come out."
    )
    unbounded = sentence(summary([0.5] * 4, metric="log_likelihood"))
    assert unbounded.endswith("difference -0.500 over 4 contexts, which give no interval.")


def test_a_dense_point_and_one_without_pairs() -> None:
    rows = scored_rows([PredictionRow(example_key="a", question_index=0, status="ok")], {"a:0": {METRIC: 1.0}})
    dense = summarise_point({"metrics": [METRIC], "label": "dense", "dense": summarise(rows)})
    assert sentence(dense) == "" and dense.contexts == 1
    assert "no answers in common" in sentence(summary([]))
    assert correct_points([dense, summary([])]) == [dense, summary([])]


def test_a_sweep_corrects_its_verdicts_and_says_so() -> None:
    barely = summary([0.0] * 6 + [1.0] * 26, label="quest")
    lost = summary([0.0] * 30 + [1.0] * 2, label="random")
    alone = summary([0.0] * 4, label="short", questions=4)
    points = correct_points([barely, lost, alone])
    assert [point.verdict for point in points] == ["worse", "worse", "not enough data"]
    assert [point.shown_verdict for point in points] == ["worse", "worse", "not enough data"]
    note = correction_note(points)
    assert "corrected for 2 comparisons" in note and "at most 5 %" in note
    many = correct_points([barely, lost, summary([0.0] * 5 + [1.0] * 27), summary([1.0] * 32)])
    assert [point.shown_verdict for point in many] == ["not enough data", "worse", "not enough data", "not enough data"]
    assert many[0].p_corrected == pytest.approx(3 * 2 * 0.5**6, rel=1e-6)
    assert sentence(many[0]).endswith("; alone it would be worse, but that does not survive among 4 comparisons.")
    assert correction_note([barely]) == correction_note(correct_points([barely])) == ""
