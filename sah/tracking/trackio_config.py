"""`tracker=trackio` and the top-level `trackio` node."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from sah.errors import bad_value
from sah.tracking.base import TrackerConfig


@dataclass
class TrackioConfig(TrackerConfig):
    """trackio, which keeps runs on this machine and shows them with `trackio show`.

    Where it keeps them is trackio's own choice: its environment variables TRACKIO_DIR, TRACKIO_SPACE_ID and
    TRACKIO_SERVER_URL hold.
    """

    name: ClassVar[str] = "trackio"
    tracker: ClassVar[str] = "sah.tracking.trackio.TrackioTracker"

    project: str = "sah"
    group: str | None = None
    """Replaces the run's own group (the sweep)."""

    def validate(self) -> None:
        """Check the values.

        Raises:
            ConfigError: If one cannot be used.
        """
        super().validate()
        if not isinstance(self.project, str) or not re.fullmatch(r"[\w-]+", self.project, re.ASCII):
            allowed = "a name of letters, digits, - and _"
            raise bad_value("trackio.project", self.project, allowed, "trackio.project=sah")
