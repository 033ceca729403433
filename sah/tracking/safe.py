"""The one place where a tracker's failures end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sah.tracking.base import RunInfo, Tracker

_log = logging.getLogger(__name__)


class SafeTracker:
    """Passes calls on to a tracker until one fails, then warns once, closes it and ignores further calls.

    Results are in the output folder whatever happens here. `KeyboardInterrupt` and the like are passed on.

    Args:
        name: The tracker's name, for the warning.
        create: Builds the tracker; called at `start`, so that a failing import is caught as well.
    """

    def __init__(self, name: str, create: Callable[[], Tracker]) -> None:
        self._name = name
        self._create = create
        self._tracker: Tracker | None = None
        self._location: str | None = None
        self.failure: str | None = None
        """Why the tracker was given up; None while all is well."""

    @property
    def location(self) -> str | None:
        """Where to look at the run, as the tracker says. None if there is nothing or it did not start."""
        return self._location

    def start(self, info: RunInfo) -> None:
        """Build the tracker and begin a run.

        Args:
            info: The run.
        """

        def begin() -> None:
            self._tracker = self._create()
            self._tracker.start(info)
            self._location = self._tracker.location

        self._guard("start", begin)

    def tell(self, action: Callable[[Tracker], None]) -> None:
        """Let an action speak to the tracker. What fails in it, the making of what it says included, ends here as well.

        Args:
            action: Takes this tracker. Not called where there is none to hear it.
        """
        if self._tracker is not None:
            self._guard("tell", lambda: action(self))

    def log_summary(self, values: Mapping[str, Any]) -> None:
        """Pass on, see `sah.tracking.base.Tracker.log_summary`."""
        self._pass_on("log_summary", values)

    def log_metrics(self, values: Mapping[str, float], axis: str | None = None) -> None:
        """Pass on, see `sah.tracking.base.Tracker.log_metrics`."""
        self._pass_on("log_metrics", values, axis)

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Pass on, see `sah.tracking.base.Tracker.log_table`."""
        self._pass_on("log_table", name, columns, rows)

    def log_figure(self, name: str, figure: Mapping[str, Any]) -> None:
        """Pass on, see `sah.tracking.base.Tracker.log_figure`."""
        self._pass_on("log_figure", name, figure)

    def log_artifact(self, name: str, files: Mapping[str, Path]) -> None:
        """Pass on, see `sah.tracking.base.Tracker.log_artifact`."""
        self._pass_on("log_artifact", name, files)

    def finish(self, failed: bool = False) -> None:
        """End the run.

        Args:
            failed: Whether the run is to be marked as failed.
        """
        if (tracker := self._tracker) is not None:
            self._guard("finish", lambda: tracker.finish(failed), close=False)
            self._tracker = None

    def _pass_on(self, call: str, *given: Any) -> None:
        if (tracker := self._tracker) is not None:
            self._guard(call, lambda: getattr(tracker, call)(*given))

    def _guard(self, call: str, action: Callable[[], None], close: bool = True) -> None:
        try:
            action()
        except Exception as error:
            self.failure = f"{call}: {type(error).__name__}: {error}"
            _log.warning(
                "The tracker %r failed and is off for the rest of this run (%s). "
                "No result is lost: they are in the output folder.",
                self._name,
                self.failure,
            )
            tracker, self._tracker = self._tracker, None
            if tracker is not None and close:
                self._close(tracker)

    def _close(self, tracker: Tracker) -> None:
        try:
            tracker.finish(failed=True)
        except Exception as error:
            _log.debug("The tracker %r could not be closed after its failure: %s", self._name, error)
