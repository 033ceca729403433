"""`tracker=none`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sah.tracking.base import Tracker, TrackerConfig
from sah.tracking.none import NoTracker


@dataclass
class NoTrackerConfig(TrackerConfig):
    """No tracker. Results are in the output folder all the same."""

    name: ClassVar[str] = "none"

    def create(self) -> Tracker:
        """Build the tracker that does nothing.

        Returns:
            The tracker.
        """
        return NoTracker()
