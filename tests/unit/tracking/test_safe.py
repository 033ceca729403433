from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from sah.errors import missing_extra
from sah.tracking.base import RunInfo, Tracker
from sah.tracking.none import NoTracker
from sah.tracking.safe import SafeTracker

LOGGED = ["log_summary", "log_metrics", "log_table", "log_figure", "log_artifact"]
INFO = RunInfo("id", "name", Path("unused"))


class Recording:
    """A tracker that notes its calls and fails at one of them."""

    def __init__(self, fails_at: str | None = None, error: BaseException | None = None) -> None:
        self.calls: list[str] = []
        self._fails_at = fails_at
        self._error = error or RuntimeError("the server is gone")

    @property
    def location(self) -> str | None:
        return "somewhere"

    def _note(self, call: str) -> None:
        self.calls.append(call)
        if call.split(" ")[0] == self._fails_at:
            raise self._error

    def start(self, info: RunInfo) -> None:
        self._note("start")

    def log_summary(self, values: Mapping[str, Any]) -> None:
        self._note("log_summary")

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self._note("log_table")

    def log_metrics(self, values: Mapping[str, float], axis: str | None = None) -> None:
        self._note("log_metrics")

    def log_figure(self, name: str, figure: Mapping[str, Any]) -> None:
        self._note("log_figure")

    def log_artifact(self, name: str, files: Mapping[str, Path]) -> None:
        self._note("log_artifact")

    def finish(self, failed: bool = False) -> None:
        self._note(f"finish {failed}")


def _use(tracker: Tracker) -> None:
    tracker.start(INFO)
    tracker.log_summary({"a": 1})
    tracker.log_metrics({"a": 1.0}, "a")
    tracker.log_table("t", ["a"], [[1]])
    tracker.log_figure("f", {"data": [], "layout": {}})
    tracker.log_artifact("a", {})
    tracker.finish()
    tracker.finish()


def test_calls_are_passed_on() -> None:
    inner = Recording()
    tracker = SafeTracker("fake", lambda: inner)
    _use(tracker)
    assert inner.calls == ["start", *LOGGED, "finish False"]
    assert tracker.failure is None and tracker.location == "somewhere"


@pytest.mark.parametrize(
    ("fails_at", "calls"),
    [
        ("start", ["start", "finish True"]),
        *((call, ["start", *LOGGED[: place + 1], "finish True"]) for place, call in enumerate(LOGGED)),
        ("finish", ["start", *LOGGED, "finish False"]),
    ],
)
def test_a_failure_is_one_warning_and_ends_tracking_only(
    fails_at: str, calls: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    inner = Recording(fails_at)
    tracker = SafeTracker("fake", lambda: inner)
    with caplog.at_level(logging.WARNING):
        _use(tracker)
    assert inner.calls == calls
    assert tracker.failure == f"{fails_at}: RuntimeError: the server is gone"
    (record,) = caplog.records
    assert "the server is gone" in record.message and "No result is lost" in record.message


def test_a_tracker_that_cannot_even_be_built(caplog: pytest.LogCaptureFixture) -> None:
    def build() -> Tracker:
        raise missing_extra("wandb", "wandb", "tracker=wandb")

    tracker = SafeTracker("wandb", build)
    _use(tracker)
    assert tracker.failure and "pip install" in tracker.failure and len(caplog.records) == 1


def test_what_fails_before_the_tracker_hears_it_ends_tracking_only(caplog: pytest.LogCaptureFixture) -> None:
    def action(told: Tracker) -> None:
        told.log_summary({"a": 1})
        raise KeyError("figure")

    inner = Recording()
    tracker = SafeTracker("fake", lambda: inner)
    tracker.tell(action)
    assert inner.calls == [], "nothing is told before the start"
    tracker.start(INFO)
    tracker.tell(action)
    tracker.tell(action)
    assert inner.calls == ["start", "log_summary", "finish True"] and len(caplog.records) == 1
    assert tracker.failure == "tell: KeyError: 'figure'"


def test_an_interrupt_is_passed_on() -> None:
    tracker = SafeTracker("fake", lambda: Recording("log_summary", KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        _use(tracker)


def test_the_tracker_that_does_nothing() -> None:
    tracker = NoTracker()
    _use(tracker)
    assert tracker.location is None
