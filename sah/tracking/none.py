"""The tracker that records nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sah.tracking.base import RunInfo


class NoTracker:
    """Takes every call and does nothing."""

    @property
    def location(self) -> str | None:
        """Always None."""
        return None

    def start(self, info: RunInfo) -> None:
        """Do nothing."""

    def log_summary(self, values: Mapping[str, Any]) -> None:
        """Do nothing."""

    def log_metrics(self, values: Mapping[str, float], axis: str | None = None) -> None:
        """Do nothing."""

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Do nothing."""

    def log_figure(self, name: str, figure: Mapping[str, Any]) -> None:
        """Do nothing."""

    def log_artifact(self, name: str, files: Mapping[str, Path]) -> None:
        """Do nothing."""

    def finish(self, failed: bool = False) -> None:
        """Do nothing."""
