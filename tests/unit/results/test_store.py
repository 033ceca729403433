from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sah.errors import StateError
from sah.results.rows import PredictionRow, ScoreRow
from sah.results.store import PointStore, point_id, read_point

IDENTITY: dict[str, Any] = {"model": {"name": "tiny"}, "masker": {"topk": {"density": 0.1}}, "seed": 0}


def _row(key: str, status: str = "ok", **fields: Any) -> PredictionRow:
    return PredictionRow(example_key=key, question_index=0, status=status, **fields)  # type: ignore[arg-type]


def test_the_id_depends_on_values_and_not_on_the_order_of_keys() -> None:
    assert point_id({"a": 1, "b": {"c": (1, 2)}}) == point_id({"b": {"c": [1, 2]}, "a": 1})
    assert len({point_id({"size": value}) for value in (1, 1.0, "1", True, None)}) == 5
    assert len(point_id({})) == 16


def test_the_last_row_of_a_key_counts_and_only_ok_is_finished(tmp_path: Path) -> None:
    store = PointStore(tmp_path, IDENTITY, "topk")
    with store.writer():
        store.append(_row("a", "model_failed", error="boom"))
        store.append(_row("b", "invalid_input", error="too long"))
        store.append(_row("a", prediction="second"))
        store.append(_row("c"))
        assert store.finished() == {"a:0", "c:0"}
    assert [row.prediction for row in store.load().values()] == ["second", "", ""]
    assert store.folder == tmp_path / "points" / point_id(IDENTITY)


def test_more_runs_add_rows_and_repeat_none(tmp_path: Path) -> None:
    for batch in ("ab", "abcd"):
        store = PointStore(tmp_path, IDENTITY, "topk")
        with store.writer():
            for key in batch:
                if f"{key}:0" not in store.finished():
                    store.append(_row(key))
    assert len((store.folder / "predictions.jsonl").read_text().splitlines()) == 4


def test_a_last_line_without_its_newline_is_kept_and_completed(tmp_path: Path) -> None:
    store = PointStore(tmp_path, IDENTITY, "topk")
    with store.writer():
        store.append(_row("a"))
    path = store.folder / "predictions.jsonl"
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert store.finished() == {"a:0"}
    with store.writer():
        store.append(_row("b"))
    assert store.finished() == {"a:0", "b:0"}


def test_a_broken_line_in_the_middle_names_file_and_line_and_nothing_is_touched(tmp_path: Path) -> None:
    store = PointStore(tmp_path, IDENTITY, "topk")
    with store.writer():
        for key in "abc":
            store.append(_row(key))
    path = store.folder / "predictions.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    for broken, reason in (
        (b'{"schema_version": 1,\n', "Expecting"),
        (b'{"schema_version": 7}\n', "schema_version 7"),
    ):
        path.write_bytes(lines[0] + broken + lines[2])
        before = path.read_bytes()
        for attempt in (store.load, store.writer().__enter__, lambda: read_point(store.folder)):
            with pytest.raises(StateError, match=rf"predictions\.jsonl, line 2 .*{reason}.*Delete that line"):
                attempt()
        assert path.read_bytes() == before
    path.write_bytes(b"".join(lines))
    with store.writer():
        assert len(store.finished()) == 3, "a refused writer has given the lock back"


def test_another_configuration_in_the_folder_lists_what_differs_with_both_values(tmp_path: Path) -> None:
    store = PointStore(tmp_path, IDENTITY, "topk")
    with store.writer():
        store.append(_row("a"))
    path = store.folder / "point.json"
    point = json.loads(path.read_text())
    point["identity"]["masker"] = {"topk": {"density": 0.2}, "sink": {"sink_size": 4}}
    path.write_text(json.dumps(point))
    for attempt in (store.load, store.writer().__enter__):
        with pytest.raises(StateError) as caught:
            attempt()
        message = str(caught.value)
        assert "masker.topk.density: there 0.2, now 0.1" in message
        assert "masker.sink.sink_size: there 4, now (absent)" in message
        assert "model.name" not in message and "seed" not in message
        assert str(store.folder) in message and "output_dir=" in message
    assert (store.folder / "predictions.jsonl").read_text().count("\n") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"schema_version": 0}', "schema_version 0"),
        ("{", "cannot be read as JSON"),
        ("[]", "not what sah writes"),
        ('{"schema_version": 1}', "lacks config, id, identity, label"),
        (None, "no point.json"),
    ],
)
def test_a_point_file_that_does_not_fit_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    store = PointStore(tmp_path, IDENTITY, "topk")
    with store.writer():
        store.append(_row("a"))
    path = store.folder / "point.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(StateError, match=message), store.writer():
        pass
    with pytest.raises(StateError, match=message):
        read_point(store.folder)


def test_a_report_reads_everything_back(tmp_path: Path) -> None:
    config = {"output_dir": Path("outputs"), "model": {"model_kwargs": {"token": "hf_secret"}}}
    store = PointStore(tmp_path, IDENTITY, "topk", config=config)
    row = _row("a", prediction="x", answers=("x",), token_ids=(1, 2))
    scores = [
        ScoreRow(example_key="a", question_index=0, status="ok", scores={"exact_match": 1.0}),
        ScoreRow(example_key="b", question_index=0, status="score_failed", error="why"),
    ]
    with store.writer():
        store.append(row)
        empty = read_point(store.folder)
        assert empty.metrics is None and empty.provenance is None and empty.scores == {}
        store.write_scores(scores[:1])
        store.write_scores(scores)
        store.write_metrics({"mean": 1.0})
        store.add_provenance({"seed": 0})
        store.write_json("extra.json", {"path": tmp_path})
    point = read_point(store.folder)
    assert (point.id, point.label, point.identity) == (store.id, "topk", IDENTITY)
    assert point.config == {"output_dir": "outputs", "model": {"model_kwargs": {"token": "***"}}}
    assert point.predictions == {"a:0": row}
    assert list(point.scores.values()) == scores
    assert point.metrics == {"mean": 1.0} and point.provenance == {"runs": [{"seed": 0}]}
    names = {path.name for path in store.folder.iterdir()}
    assert names == {
        *("point.json", "predictions.jsonl", "scores.jsonl", "metrics.json", "provenance.json", "extra.json"),
        "writer.lock",
    }


def test_writing_without_the_lock_is_a_mistake_of_the_caller(tmp_path: Path) -> None:
    store = PointStore(tmp_path, IDENTITY, "topk")
    for attempt in (
        lambda: store.append(_row("a")),
        lambda: store.write_scores([]),
        lambda: store.write_metrics({}),
    ):
        with pytest.raises(RuntimeError, match="writer lock"):
            attempt()
    assert store.load() == {} and not store.folder.exists()


def test_leftovers_of_a_killed_writer_are_swept(tmp_path: Path) -> None:
    store = PointStore(tmp_path, IDENTITY, "topk")
    with store.writer():
        pass
    (store.folder / ".metrics.json.123.tmp").write_text("{")
    with store.writer():
        assert not list(store.folder.glob(".*.tmp"))


def test_reading_a_folder_that_is_no_point(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="no point's folder"):
        read_point(tmp_path)
