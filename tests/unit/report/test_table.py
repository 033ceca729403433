"""What the point table says, and what it must not say."""

from __future__ import annotations

import dataclasses

import pytest

from sah.report.summary import PointSummary, summarise_point
from sah.report.table import COLUMNS, OUTPUT_ERROR, cells, markdown_table, speed_note
from sah.report.verdicts import correct_points, correction_note, sentence

POINT = PointSummary(
    label="topk",
    sparse_in="question+decode",
    metric="string_match_all",
    questions=8,
    failed=0,
    dense=1.0,
    sparse=0.75,
    difference=-0.25,
    density_requested=0.1,
    density_measured=0.10004,
    prefill_seconds=4.2,
    question_ms=(200.0, 400.0),
    decode_ms=(60.0, 75.0),
    timed_together=True,
)


def test_every_demanded_figure_has_a_cell() -> None:
    shown = dict(zip(COLUMNS, cells(POINT), strict=True))
    assert shown["dense"] == "1.000" and shown["sparse"] == "0.750" and shown["difference"] == "-0.250"
    assert shown["density requested"] == "0.100" and shown["density measured"] == "0.1000"
    assert shown["prefill s"] == "4.20"
    assert shown["sparse in"] == "question+decode"
    assert shown["question ms dense / sparse"] == "200 / 400"
    assert shown["decode ms a token dense / sparse"] == "60.0 / 75.0"


def test_what_was_not_measured_is_a_dash() -> None:
    dense = dataclasses.replace(
        POINT, sparse_in=None, sparse=None, difference=None, density_requested=None, decode_ms=(60.0, None)
    )
    shown = dict(zip(COLUMNS, cells(dense), strict=True))
    assert shown["sparse in"] == shown["sparse"] == shown["difference"] == shown["density requested"] == "-"
    assert shown["decode ms a token dense / sparse"] == "60.0 / -"


def test_a_difference_has_its_interval_and_its_verdict_beside_it() -> None:
    judged = dataclasses.replace(POINT, low=-0.4567, high=0.049, verdict="not enough data")
    shown = dict(zip(COLUMNS, cells(judged), strict=True))
    assert shown["difference"] == "-0.250 [-0.46, +0.05]" and shown["verdict"] == "not enough data"
    corrected = dataclasses.replace(judged, verdict="worse", verdict_corrected="not enough data")
    assert dict(zip(COLUMNS, cells(corrected), strict=True))["verdict"] == "not enough data"
    assert dict(zip(COLUMNS, cells(POINT), strict=True))["verdict"] == "-"
    row = markdown_table([judged]).splitlines()[-1]
    assert "| -0.250 [-0.46, +0.05] | not enough data |" in row


def test_no_speed_up_is_said_plainly() -> None:
    assert "no speed-up" in speed_note([POINT])


def test_a_speed_up_is_claimed_within_a_run_only() -> None:
    faster = dataclasses.replace(POINT, decode_ms=(60.0, 30.0))
    assert "topk 2.00x" in speed_note([faster])
    another = dataclasses.replace(faster, timed_together=False)
    assert "2.00x" not in speed_note([another])
    assert "must not be compared" in speed_note([another])
    assert "60.0* / 30.0" in cells(another)


def test_failed_questions_show() -> None:
    shown = dict(zip(COLUMNS, cells(dataclasses.replace(POINT, failed=2)), strict=True))
    assert shown["questions"] == "8 (2 failed)"


def test_markdown_has_a_line_a_point() -> None:
    lines = markdown_table([POINT, POINT]).splitlines()
    assert len(lines) == 4
    assert {line.count("|") for line in lines} == {len(COLUMNS) + 1}


def test_the_output_error_has_a_column_only_where_it_was_measured() -> None:
    assert OUTPUT_ERROR not in markdown_table([POINT])
    lines = markdown_table([dataclasses.replace(POINT, output_error=0.12345), POINT]).splitlines()
    cells_of = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    place = cells_of[0].index(OUTPUT_ERROR)
    assert place == COLUMNS.index("density measured") + 1
    assert [line[place] for line in cells_of] == [OUTPUT_ERROR, "---:", "0.1235", "-"]


ARM = {
    "status": {"ok": 2, "model_failed": 1},
    "scores": {"exact_match": {"mean": 0.5, "count": 2}},
    "measures": {"question_seconds": 0.2, "density_measured": None},
    "prefill": {"seconds": None, "cpu_seconds": None, "count": 0, "reused": 2},
    "decode_ms_per_token": 60.0,
}


@pytest.mark.parametrize(
    ("phases", "dense_layers", "expected"),
    [
        (["question", "decode"], "", "question+decode"),
        (["decode"], "", "decode"),
        (["decode"], "0-1,16", "decode (0-1,16 dense)"),
    ],
)
def test_where_a_point_is_sparse(phases: list[str], dense_layers: str, expected: str) -> None:
    metrics = {"metrics": ["exact_match"], "label": "topk", "dense": ARM, "sparse": ARM}
    assert summarise_point({**metrics, "phases": phases, "dense_layers": dense_layers}).sparse_in == expected


def test_times_that_hold_the_comparison_with_dense_attention_are_not_shown() -> None:
    place = {"phases": ["decode"], "dense_layers": ""}
    metrics = {"metrics": ["exact_match"], "label": "topk", "dense": ARM, **place}
    observed = {**ARM, "measures": {**ARM["measures"], "output_error": 0.1}}
    summary = summarise_point({**metrics, "sparse": observed, "comparison": {"timed_together": True}})
    assert summary.output_error == 0.1
    assert (summary.question_ms, summary.decode_ms) == ((200.0, None), (60.0, None))
    assert summary.decode_speed_up is None
    assert summarise_point({**metrics, "sparse": ARM}).output_error is None


def test_summary_of_a_dense_point() -> None:
    summary = summarise_point({"metrics": ["exact_match"], "label": "dense", "dense": ARM})
    assert summary.sparse_in is None
    assert (summary.dense, summary.sparse, summary.questions, summary.failed) == (0.5, None, 2, 1)
    assert summary.prefill_seconds is None and summary.question_ms == (200.0, None)
    assert (summary.verdict, summary.contexts, summary.dense_range) == (None, None, (None, None))
    assert summary.decode_speed_up is None


def test_metrics_of_a_version_without_intervals_still_read() -> None:
    old = {
        "metrics": ["exact_match"],
        "label": "topk",
        "phases": ["decode"],
        "dense_layers": "",
        "dense": ARM,
        "sparse": ARM,
        "comparison": {"scores": {"exact_match": {"dense": 0.5, "sparse": 0.5, "difference": 0.0, "pairs": 2}}},
    }
    summary = summarise_point(old)
    assert summary.difference == 0.0
    assert [summary.low, summary.p_value, summary.verdict, summary.shown_verdict, summary.contexts] == [None] * 5
    assert "without an interval" in sentence(summary)
    assert correct_points([summary]) == [summary] and correction_note([summary]) == ""
