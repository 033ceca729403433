"""What a killed run has left: answers that its jobs wrote and nobody has read."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path

from sah.errors import StateError
from sah.results.fidelity import FidelityRow
from sah.results.lock import WriterLock
from sah.results.rows import PredictionRow
from sah.runners.tasks import GroupSpec, row_name
from sah.runners.workers.messages import Answered
from sah.runners.workers.shard import ShardReader

_log = logging.getLogger(__name__)

_PATTERN = "*.jsonl*"
_TAKEN = ".taken"


Row = PredictionRow | FidelityRow


@dataclass
class Leftovers:
    """Rows of the points at hand."""

    rows: dict[tuple[str, str], Row] = field(default_factory=dict)
    """(id of the point, name of the row) to a row that tells something; names as in `Arm.done`."""

    folders: list[tuple[WriterLock, Path, AbstractSet[tuple[str, str]] | None]] = field(default_factory=list)
    """The folders that they lie in, each with its lock and which rows lie there; None if it holds something else, too.
    """

    def release(self, stored: AbstractSet[tuple[str, str]] | None = None) -> None:
        """Give the folders back.

        Args:
            stored: Which of the rows are safe elsewhere. Folders with nothing else in them go; the others wait for a
                run that asks for the rest. None keeps all.
        """
        for lock, folder, rows in self.folders:
            lock.release()
            if stored is not None and rows is not None and rows <= stored:
                shutil.rmtree(folder, ignore_errors=True)
        self.folders.clear()


def find_leftovers(files: Path, spec: GroupSpec) -> Leftovers:
    """Take over what runs that are dead have left of a group's points.

    A job that still writes for such a run stops, since its file is renamed. The folders of living runs, and those that
    hold nothing of these points, are left alone.

    Args:
        files: The folder of all runs' folders.
        spec: The group.

    Returns:
        The answers. `release` must follow.
    """
    found = Leftovers()
    mine: dict[str, set[float]] = {}
    for setting in spec.settings:
        mine.setdefault(setting.point_id, set()).add(setting.experiment.attention_error)
    for folder in sorted(files.glob("*/")):
        # One without files may be about to be locked by the run that has just made it.
        if not any(folder.glob(_PATTERN)):
            continue
        lock = WriterLock(folder)
        try:
            lock.acquire()
        except StateError:
            continue  # its run is alive
        known = _points(folder)
        if not known & mine.keys():
            lock.release()
            continue
        rows = _take(folder, mine)
        _log.info("%d rows of jobs whose run was ended are taken over from %s.", len(rows), folder)
        found.rows.update(rows)
        found.folders.append((lock, folder, rows.keys() if known <= mine.keys() else None))
    return found


def _points(folder: Path) -> set[str]:
    """Say which points' answers lie in a folder; files that cannot be read are told of and stay."""
    points: set[str] = set()
    for path in folder.glob(_PATTERN):
        reader = ShardReader(path)
        try:
            reader.read()
        except StateError as error:
            _log.warning("%s Its answers are computed again.", error)
            points.add(path.name)  # no point's id, so that the folder is not taken for empty later
        points.update(reader.points)
    return points


def _take(folder: Path, mine: Mapping[str, AbstractSet[float]]) -> dict[tuple[str, str], Row]:
    """Read the rows of points; the share of queries that their fidelity is asked for is given for each."""
    rows: dict[tuple[str, str], Row] = {}
    for path in sorted(folder.glob(_PATTERN)):
        reader = ShardReader(_renamed(path))
        with contextlib.suppress(StateError):  # told of already
            for message in reader.read():
                if isinstance(message, Answered) and isinstance(message.outcome, Row):
                    point, row = reader.points[message.setting], message.outcome
                    # Another share would not do: `Arm.read` has such a row made anew.
                    asked = point in mine and not (
                        isinstance(row, FidelityRow) and row.attention_error not in mine[point]
                    )
                    if asked and row.status == "ok":
                        rows[point, row_name(row)] = row
    return rows


def _renamed(path: Path) -> Path:
    """Rename a shard's file, so that a job that still writes it stops."""
    if path.suffix == _TAKEN:
        return path
    taken = path.with_name(path.name + _TAKEN)
    with contextlib.suppress(OSError):
        path.rename(taken)
        return taken
    return path
