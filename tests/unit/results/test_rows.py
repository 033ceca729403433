from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sah.errors import StateError
from sah.results.rows import PredictionRow, ScoreRow, json_line, plain_json


@given(st.text(st.characters(exclude_categories=()), max_size=40), st.lists(st.integers(0, 2**31), max_size=5))
def test_a_row_survives_its_line_whatever_the_text(text: str, ids: list[int]) -> None:
    row = PredictionRow(
        example_key="a1",
        question_index=3,
        status="ok",
        prediction=text,
        token_ids=tuple(ids),
        answers=(text,),
        density_by_phase={"question": 0.1, "decode": None},
        metadata={"depth": 0.5, "note": text},
    )
    line = json_line(row.to_json())
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    assert PredictionRow.from_json(json.loads(line)) == row
    assert row.key == "a1:3"


def test_a_number_that_is_not_finite_is_stored_as_not_measured() -> None:
    row = PredictionRow(example_key="a", question_index=0, status="ok", decode_seconds=math.nan)
    assert PredictionRow.from_json(json.loads(json_line(row.to_json()))).decode_seconds is None


def test_a_row_written_before_a_field_was_added_has_not_measured_it() -> None:
    data = PredictionRow(example_key="a", question_index=0, status="ok", state_seconds=0.5).to_json()
    assert PredictionRow.from_json(data).state_seconds == 0.5
    del data["state_seconds"]
    assert PredictionRow.from_json(data).state_seconds is None


def test_plain_json_takes_what_metadata_may_hold() -> None:
    assert plain_json({1: (Path("/x"), {2, 1}), "n": math.inf}) == {"1": ["/x", [1, 2]], "n": None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 99}, "schema_version 99"),
        ({"status": "fine"}, "ok, invalid_input, model_failed"),
        ({"surprise": 1}, "surprise"),
        ({"question_index": "0"}, "question_index an int"),
        ({"answers": "text"}, "answers must be a list"),
    ],
)
def test_a_row_of_another_form_is_refused(change: dict[str, object], message: str) -> None:
    data = {**PredictionRow(example_key="a", question_index=0, status="ok").to_json(), **change}
    with pytest.raises(StateError, match=message):
        PredictionRow.from_json(data)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(StateError, match="example_key"):
        ScoreRow.from_json({"schema_version": 1, "question_index": 0, "status": "ok"})
    with pytest.raises(StateError, match="JSON object"):
        ScoreRow.from_json([1])
