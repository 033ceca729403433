"""What is said of a timed run, with made-up times."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from sah.report.summary import summarise_point
from sah.report.table import COLUMNS, cells, speed_note
from sah.report.timing import DecodeTimes, TimedPoint, timed_point, verdict
from tests.unit.report.test_table import POINT

OWN = "the model's own attention"


def arm(token: float, attention: float, selection: float = 0.0) -> dict[str, Any]:
    """One arm of `timing.json`; its CPU times are ten times as long."""
    wall = {"token": token, "attention": attention, "selection": selection, "rest": token - attention - selection}
    return {"wall": wall, "cpu": {name: 10 * value for name, value in wall.items()}}


def timed(dense: tuple[float, float], sparse: tuple[float, float, float] | None) -> TimedPoint:
    """A point of which the model's own attention is the faster dense form."""
    return TimedPoint("own", DecodeTimes(*dense, 0.0), None if sparse is None else DecodeTimes(*sparse))


def test_the_faster_dense_form_is_the_baseline() -> None:
    arms = {"own": arm(40, 12), "grouped": arm(32, 4), "sparse": arm(30, 2, 1)}
    point = timed_point({"arms": arms})
    assert (point.dense_form, point.dense.token, point.sparse) == ("grouped", 32, DecodeTimes(30, 2, 1))
    assert point.speed_up == pytest.approx(32 / 30)
    assert point.attention_share == pytest.approx(4 / 32)
    arms["own"]["cpu"]["token"] = 1
    assert timed_point({"arms": arms}, clock="cpu").dense_form == "own"
    assert timed_point({"arms": arms}, "quest").sparse is None


@pytest.mark.parametrize(
    ("point", "said"),
    [
        (
            timed((40, 30), (20, 5, 5)),
            f"quest: 2.00x faster than the best dense form ({OWN}), attention is 75 % of a dense token",
        ),
        (
            timed((40, 4), (39, 2, 1)),
            f"quest: no speed-up over the best dense form ({OWN}), 1.03x: weights dominate, attention is 10 % of a "
            "dense token (4.00 ms), selection and attention take 3.00 ms",
        ),
        (
            timed((40, 30), (50, 20, 20)),
            f"quest: no speed-up over the best dense form ({OWN}), 0.80x: attention is 75 % of a dense token "
            "(30.00 ms), selection and attention take 40.00 ms",
        ),
        (timed((40, 10), None), f"quest: {OWN} is the faster dense form, attention is 25 % of a dense token"),
    ],
)
def test_the_verdict_says_what_is_so(point: TimedPoint, said: str) -> None:
    assert verdict("quest", point) == said


def test_the_table_shows_timed_figures_for_those_of_the_rows() -> None:
    point = dataclasses.replace(POINT, timed=timed((40, 4), (50, 8, 6)))
    shown = dict(zip(COLUMNS, cells(point), strict=True))
    assert shown["decode ms a token dense / sparse"] == "40.0 (own) / 50.0 timed"
    assert shown["question ms dense / sparse"] == "200 / 400"
    assert point.decode_speed_up == pytest.approx(0.8)
    alone = dataclasses.replace(point, timed=timed((40, 4), None))
    assert cells(alone)[-1] == "40.0 (own) / - timed"


def test_the_note_takes_timed_points_from_their_timed_run() -> None:
    faster = dataclasses.replace(POINT, label="quest", timed=timed((40, 30), (20, 5, 5)))
    note = speed_note([faster])
    assert "quest 0.1: 2.00x faster than the best dense form" in note
    assert "Wall times of single questions" not in note
    both = speed_note([faster, dataclasses.replace(POINT, label="random", decode_ms=(60.0, 30.0))])
    assert "quest 0.1: 2.00x faster" in both
    assert "Decode faster than dense: random 2.00x." in both


def test_question_times_of_another_run_keep_their_star() -> None:
    point = dataclasses.replace(POINT, timed_together=False, timed=timed((40, 4), (50, 8, 6)))
    assert cells(point)[-2:] == ["200* / 400", "40.0 (own) / 50.0 timed"]
    assert "must not be compared" in speed_note([point])


def test_a_summary_reads_the_timed_run_of_its_metrics() -> None:
    figures = {
        "status": {"ok": 1},
        "scores": {},
        "measures": {"question_seconds": None, "density_measured": None},
        "prefill": {"count": 0},
        "decode_ms_per_token": 60.0,
    }
    metrics = {"metrics": ["exact_match"], "label": "dense", "dense": figures}
    assert summarise_point(metrics).timed is None
    metrics["timing"] = {"arms": {"own": arm(40, 12), "grouped": arm(50, 22)}}
    assert summarise_point(metrics).timed == timed((40, 12), None)
