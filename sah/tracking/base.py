"""What a tracker is, and what a run tells it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from sah.config.base import ValidatedConfig
from sah.config.lookup import named

TRACKING_FILE = "tracking.json"
"""In a sweep's folder: which tracker showed it, with what settings, and under what group and id."""

ARTIFACT_TYPE = "results"
"""Type of the artifacts that hold results."""


@dataclass(frozen=True)
class RunInfo:
    """What identifies a run to a tracker."""

    run_id: str
    """Stable over resumes: the point's id."""
    name: str
    """For people, e.g. `llama niah topk 0.1`."""
    folder: Path
    """Where the tracker may put files; created if missing."""
    group: str | None = None
    """What the run belongs to: the sweep."""
    job_type: str = "eval"
    tags: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    """The whole resolved configuration, as plain data without secrets."""


class Tracker(Protocol):
    """A place that shows runs. Calls come in the order `start`, any of `log_*`, `finish`.

    Between `start` and `finish` a caller tells all there is of the run. Where the run is there already, what it held
    is replaced: telling twice is the same as telling once.
    """

    @property
    def location(self) -> str | None:
        """Where to look: a URL, or a folder with the command that uploads it. None if there is nothing."""

    def start(self, info: RunInfo) -> None:
        """Begin a run, or take up the one of the same id.

        Args:
            info: The run.
        """

    def log_summary(self, values: Mapping[str, Any]) -> None:
        """Record the run's final numbers.

        Args:
            values: JSON data; nested dicts are kept.
        """

    def log_metrics(self, values: Mapping[str, float], axis: str | None = None) -> None:
        """Record numbers of the run that compare between runs, and declare them as such.

        Args:
            values: Name to number. They belong together: one step.
            axis: Which of them the others are drawn over, e.g. the measured density.
        """

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Record a table.

        Args:
            name: E.g. `predictions`.
            columns: Column names.
            rows: One sequence of cells a row, as long as `columns`.
        """

    def log_figure(self, name: str, figure: Mapping[str, Any]) -> None:
        """Record a figure.

        Args:
            name: E.g. `density_curves`.
            figure: As Plotly's JSON has it: `data` and `layout`.
        """

    def log_artifact(self, name: str, files: Mapping[str, Path]) -> None:
        """Keep copies of files with the run.

        Args:
            name: What they are called together. Later files of the same name become its next version.
            files: Path inside it to a file on disk.
        """

    def finish(self, failed: bool = False) -> None:
        """End the run.

        Args:
            failed: Whether the run is to be marked as failed.
        """


@dataclass
class TrackerConfig(ValidatedConfig):
    """Base of the trackers' configs. A subclass lives in a module `sah/tracking/*_config.py` of its own."""

    tracker: ClassVar[str] = ""
    """Dotted path of the tracker's class, which takes the config."""
    name: ClassVar[str]
    """What `tracker=` calls it, and the top-level key of its settings."""

    def create(self) -> Tracker:
        """Build the tracker that `tracker` names, importing what it needs.

        Returns:
            The tracker, not yet started. Use `sah.tracking.discovery.create_tracker`, which makes it safe.
        """
        built: Tracker = named(self.tracker)(self)
        return built


def artifact_name(name: str) -> str:
    """Write a name as trackers allow it for an artifact.

    Args:
        name: Any text.

    Returns:
        Letters, digits, dots, dashes and underscores, at most 128 of them.
    """
    return re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII)[:128] or "results"


def plain_cell(value: Any) -> str | int | float | bool | None:
    """Write a table's cell: scalars as they are, all else as JSON."""
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return json.dumps(value, default=str)
