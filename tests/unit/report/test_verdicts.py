"""From rows to what a sweep says of its points in words."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import pytest

from sah.metrics.aggregate import compare, scored_rows, summarise
from sah.report.summary import PointSummary, summarise_point
from sah.report.table import error_note, fidelity_note
from sah.report.verdicts import correct_points, correction_note, sentence
from sah.results.rows import PredictionRow

METRIC = "exact_match"


def summary(
    scores: Sequence[float],
    *,
    label: str = "topk",
    questions: int = 1,
    metric: str = METRIC,
    margin: float = 0.05,
    lost: int = 0,
    fidelity: object = None,
    by_head: object = None,
) -> PointSummary:
    """A point whose dense answers are all right, read as it is stored. `lost` sparse answers failed."""
    metrics = point_metrics(scores, label, questions, metric, margin, lost)
    metrics["sparse"] |= {"fidelity": fidelity, "attention_by_head": by_head}
    return summarise_point(json.loads(json.dumps(metrics)))


def point_metrics(
    scores: Sequence[float], label: str, questions: int, metric: str, margin: float, lost: int
) -> dict[str, Any]:
    """What `metrics.json` holds."""
    rows = [
        PredictionRow(example_key=f"context {place // questions}", question_index=place % questions, status="ok")
        for place in range(len(scores))
    ]
    dense = scored_rows(rows, {row.key: {metric: 1.0} for row in rows})
    known = list(zip(rows, scores, strict=True))[lost:]
    sparse = scored_rows(rows, {row.key: {metric: score} for row, score in known})
    return {
        "metrics": [metric],
        "label": label,
        "density_requested": 0.1,
        "phases": ["decode"],
        "dense_layers": "",
        "dense": summarise(dense),
        "sparse": summarise(sparse),
        "comparison": compare(dense, sparse, margin),
    }


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
    assert sentence(many[0]).endswith(
        "; alone it would be worse, but that does not survive among 4 comparisons; about 40 contexts would settle it "
        "if they came out like these."
    )
    assert "Holm" not in correction_note(correct_points([barely]))


def test_what_would_settle_it_holds_among_all_that_are_compared() -> None:
    """72 contexts settle a tie alone, and do not as one of six."""
    losses = [summary([0.0] * 28 + [1.0] * 4) for _ in range(5)]
    open_one = correct_points([*losses, summary([1.0] * 32)])[-1]
    assert (open_one.contexts_needed, open_one.contexts_needed_corrected) == (72, 107)
    assert sentence(open_one).endswith(
        "; about 107 contexts would settle it if they came out like these, as one of 6 comparisons."
    )
    shown = {count: correct_points([*losses, summary([1.0] * count)])[-1].shown_verdict for count in (72, 106, 107)}
    assert shown == {72: "not enough data", 106: "not enough data", 107: "tied"}
    several = correct_points([*losses, summary([1.0] * 64, questions=2)])[-1]
    assert "about 107 contexts with 214 questions would" in sentence(several)


def test_a_point_of_an_older_version_says_what_its_number_is_of() -> None:
    old = [dataclasses.replace(summary([1.0] * 32), spread=None) for _ in range(3)]
    assert sentence(correct_points(old)[0]).endswith(
        "about 72 contexts would settle it if they came out like these, alone; among 3 comparisons it takes more."
    )
    hopeless = dataclasses.replace(old[0], contexts_needed=None)
    assert sentence(correct_points([hopeless, *old])[0]).endswith("more contexts like these would not settle it.")


def test_the_margin_is_said_with_its_unit_and_where_it_is_mixed() -> None:
    told = "Tied means that the interval lies within the margin of"
    one = summary([1.0] * 32)
    assert correction_note([one]) == f"{told} 0.05 around 0."
    assert correction_note(correct_points([one, one])).endswith(f"of each point alone. {told} 0.05 around 0.")
    prose = summary([1.0, 0.999, 1.001] * 10, metric="log_likelihood", label="quest")
    assert correction_note([prose]) == f"{told} 0.05 nats a token around 0."
    assert sentence(prose).endswith("over 30 contexts, within the margin of 0.05 nats a token.")
    assert correction_note([one, prose]) == f"{told} 0.05 ({METRIC}) and 0.05 nats a token (log_likelihood) around 0."
    wide = summary([1.0] * 32, margin=0.1, label="random")
    assert correction_note([one, wide]) == (
        "Margins are mixed, so that verdicts of different ones do not compare: 0.05 for topk 0.1; 0.1 for random 0.1."
    )


def test_scores_lie_in_their_own_intervals_where_answers_failed() -> None:
    """Dense is shown on the questions that both answered, and so is its interval."""
    scores = [1.0] * 40 + [0.0] * 8
    metrics = point_metrics(scores, "topk", 1, METRIC, 0.05, lost=40)
    found = summarise_point(metrics)
    assert (found.questions, found.failed, found.sparse, found.dense) == (8, 40, 0.0, 1.0)
    dense_low, sparse_high = found.dense_range[0], found.sparse_range[1]
    assert dense_low == pytest.approx(0.025 ** (1 / 8)), "that of 8 questions and not of 48"
    assert sparse_high == pytest.approx(1 - 0.025 ** (1 / 8))
    for name in ("dense_low", "dense_high", "sparse_low", "sparse_high"):
        del metrics["comparison"]["scores"][METRIC][name]
    old = summarise_point(metrics)
    assert old.dense_range == (None, None), "an older version knows the interval of other questions alone"
    assert old.sparse_range == found.sparse_range


def test_what_fidelity_and_output_error_were_measured_over() -> None:
    whole = summary(
        [1.0] * 4, fidelity={"questions": 4, "failed": 0}, by_head={"rows": [8, 8], "output_error": [[0], [0]]}
    )
    assert fidelity_note([whole]) == ""
    assert error_note([whole]) == "Output error is a mean over 8 queries a layer, sampled in each point."
    part = summary(
        [1.0] * 4,
        label="quest",
        fidelity={"questions": 1, "failed": 3},
        by_head={"rows": [2, 5], "output_error": [[0], [0]]},
    )
    assert fidelity_note([whole, part]).endswith("which its figures leave out: quest 0.1 3 of 4.")
    assert error_note([whole, part]) == "Output error is a mean over 2 to 8 queries a layer, sampled in each point."
    assert fidelity_note([summary([1.0])]) == error_note([summary([1.0])]) == ""
