"""The store: one folder a point, rows appended as they come, resumed by the same command.

`ROOT/points/<id>/` holds `point.json` (what the point is), `predictions.jsonl` and `fidelity.jsonl` (rows, appended and
flushed one by one), `scores.jsonl` (recomputed from them at will), `metrics.json` (the only place of aggregates),
`provenance.json`, and `timing.json` where decoding was timed. Files other than those of appended rows are replaced
whole. Reading needs no lock; writing does.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sah.errors import StateError
from sah.results.fidelity import FidelityRow
from sah.results.files import (
    LineFile,
    broken_line,
    read_json,
    read_json_lines,
    replace_file,
    replace_json,
    storage_error,
)
from sah.results.lock import WriterLock
from sah.results.redact import redacted
from sah.results.rows import SCHEMA_VERSION, PredictionRow, ScoreRow, json_line, plain_json

POINT_FILE = "point.json"
PREDICTIONS_FILE = "predictions.jsonl"
FIDELITY_FILE = "fidelity.jsonl"
SCORES_FILE = "scores.jsonl"
METRICS_FILE = "metrics.json"
PROVENANCE_FILE = "provenance.json"
TIMING_FILE = "timing.json"


def point_id(identity: Mapping[str, Any]) -> str:
    """Name a point after everything that decides its results.

    Args:
        identity: The resolved configuration that affects results: no paths, trackers or devices.

    Returns:
        The first 16 hex digits of the SHA-256 of its canonical JSON and the schema version. The order of keys
        does not matter; `1` and `1.0` differ, as they do in a size.
    """
    content = {"schema_version": SCHEMA_VERSION, "identity": redacted(plain_json(identity))}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()[:16]


@dataclass(frozen=True)
class StoredPoint:
    """All that a point's folder holds, for tables and reports."""

    folder: Path
    id: str
    label: str
    identity: dict[str, Any]
    config: dict[str, Any]
    predictions: dict[str, PredictionRow]
    """Row key to row."""
    scores: dict[str, ScoreRow]
    """Row key to scores."""
    fidelity: dict[str, FidelityRow]
    """Row key to what was measured beside dense attention."""
    metrics: dict[str, Any] | None
    """None until the point was aggregated."""
    provenance: dict[str, Any] | None


class PointStore:
    """The folder of one point.

    Building one touches no file. `with store.writer(): ...` takes the folder for writing.

    Args:
        root: The output folder; the point's lies in `root/points`.
        identity: See `point_id`.
        label: Short name for people, e.g. `sink+topk`. Not part of the identity.
        config: The whole resolved configuration, kept for reference. Values of keys that name secrets are not
            stored.
    """

    def __init__(
        self, root: Path, identity: Mapping[str, Any], label: str, config: Mapping[str, Any] | None = None
    ) -> None:
        self.id = point_id(identity)
        self.identity: dict[str, Any] = redacted(plain_json(identity))
        self.label = label
        self.config: dict[str, Any] = redacted(plain_json(config or {}))
        self.folder = Path(root) / "points" / self.id
        self._rows: LineFile | None = None
        self._fidelity: LineFile | None = None

    @contextlib.contextmanager
    def writer(self, wait_seconds: float = 0.0) -> Iterator[PointStore]:
        """Take the folder for writing, and make it ready.

        Creates the folder and `point.json`, checks that what lies there is this point, and cuts off a last
        line that a crash cut short.

        Args:
            wait_seconds: How long to wait for another writer to end; 0 gives up at once.

        Yields:
            The store itself.

        Raises:
            StateError: If another process writes there, the folder holds another point or broken rows, or it
                cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error("create", self.folder, error, "Nothing was written.") from error
        lock = WriterLock(self.folder)
        lock.acquire(wait_seconds)
        try:
            for leftover in self.folder.glob(".*.tmp"):  # of a writer that was killed
                with contextlib.suppress(OSError):
                    leftover.unlink()
            self._claim()
            _, size, newline_missing = _read_rows(self.folder / PREDICTIONS_FILE, PredictionRow)
            self._rows = LineFile(self.folder / PREDICTIONS_FILE, size, newline_missing)
            try:
                yield self
            finally:
                for rows in (self._rows, self._fidelity):
                    if rows is not None:
                        rows.close()
                self._rows = self._fidelity = None
        finally:
            lock.release()

    def load(self) -> dict[str, PredictionRow]:
        """Read all rows. Needs no lock.

        Returns:
            Row key to row, in the order of first appearance; of several rows with a key the last counts. A
            last line cut short is left out with a warning.

        Raises:
            StateError: If the folder holds another point, or a line that cannot be read.
        """
        self._check(read_json(self.folder / POINT_FILE))
        return _read_rows(self.folder / PREDICTIONS_FILE, PredictionRow)[0]

    def load_fidelity(self) -> dict[str, FidelityRow]:
        """Read all rows of `fidelity.jsonl`, as `load` does those of predictions."""
        self._check(read_json(self.folder / POINT_FILE))
        return _read_rows(self.folder / FIDELITY_FILE, FidelityRow)[0]

    def finished(self) -> set[str]:
        """Say which questions need no further work.

        Returns:
            The keys of rows with status `ok`.

        Raises:
            StateError: As `load`.
        """
        return {key for key, row in self.load().items() if row.status == "ok"}

    def append(self, row: PredictionRow | FidelityRow) -> None:
        """Add one row to the file of its kind; when this returns it survives a crash.

        Args:
            row: The row.

        Raises:
            StateError: If the row cannot be written. All rows before it are safe.
        """
        if self._rows is None:
            raise RuntimeError("append() needs the writer lock: use it inside `with store.writer():`")
        rows = self._rows
        if isinstance(row, FidelityRow):
            if self._fidelity is None:
                path = self.folder / FIDELITY_FILE
                self._fidelity = LineFile(path, *_read_rows(path, FidelityRow)[1:])
            rows = self._fidelity
        rows.append(json_line(row.to_json()))

    def write_scores(self, rows: Iterable[ScoreRow]) -> None:
        """Replace `scores.jsonl`.

        Args:
            rows: The scores of all predictions.

        Raises:
            StateError: If it cannot be written. The old scores and all predictions are safe.
        """
        self._require_writer("write_scores")
        replace_file(self.folder / SCORES_FILE, b"".join(json_line(row.to_json()) for row in rows))

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Replace `metrics.json`, the only place of aggregated numbers.

        Args:
            metrics: JSON data.

        Raises:
            StateError: If it cannot be written. Rows and scores are safe.
        """
        self.write_json(METRICS_FILE, metrics)

    def add_provenance(self, provenance: Mapping[str, Any]) -> None:
        """Note in `provenance.json` a run that is about to add rows; earlier runs stay in its list.

        Args:
            provenance: What `sah.results.provenance.collect` gave.

        Raises:
            StateError: If it cannot be written. Rows and scores are safe.
        """
        stored = read_json(self.folder / PROVENANCE_FILE)
        runs = stored["runs"] if isinstance(stored, dict) and isinstance(stored.get("runs"), list) else []
        self.write_json(PROVENANCE_FILE, {"runs": [*runs, dict(provenance)]})

    def write_json(self, name: str, value: Any) -> None:
        """Replace a JSON file in the point's folder.

        Args:
            name: File name, without a folder.
            value: JSON data; see `plain_json` for what else is taken.

        Raises:
            StateError: If it cannot be written. Its old content is safe.
        """
        self._require_writer("write_json")
        replace_json(self.folder / name, plain_json(value))

    def _require_writer(self, caller: str) -> None:
        if self._rows is None:
            raise RuntimeError(f"{caller}() needs the writer lock: use it inside `with store.writer():`")

    def _claim(self) -> None:
        stored = read_json(self.folder / POINT_FILE)
        if stored is None and (self.folder / PREDICTIONS_FILE).exists():
            raise StateError(
                f"{self.folder} holds {PREDICTIONS_FILE} but no {POINT_FILE}, so nobody knows which "
                "configuration its rows belong to. "
                "Put the file back, move the folder away, or choose another with output_dir=PATH."
            )
        self._check(stored)
        if stored is None:
            point = {"schema_version": SCHEMA_VERSION, "id": self.id, "label": self.label}
            replace_json(self.folder / POINT_FILE, {**point, "identity": self.identity, "config": self.config})

    def _check(self, stored: Any) -> None:
        if stored is None:
            return
        _check_point_file(self.folder, stored)
        before, now = flat(stored["identity"]), flat(self.identity)
        nothing = "(absent)"
        lines = [
            f"  {key}: there {before.get(key, nothing)}, now {now.get(key, nothing)}"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key)
        ]
        if lines:
            raise StateError(
                f"{self.folder} holds the results of another configuration:\n"
                + "\n".join(lines)
                + "\nIts rows are not used and not touched. Choose another folder with output_dir=PATH."
            )


def read_point(folder: Path) -> StoredPoint:
    """Read a point's folder for a report. Needs no lock, also while a run writes there.

    Args:
        folder: `ROOT/points/<id>`.

    Returns:
        All that the folder holds.

    Raises:
        StateError: If it is no point's folder, is of another schema version, or holds a line that cannot be
            read.
    """
    stored = read_json(folder / POINT_FILE)
    if stored is None:
        raise StateError(f"{folder} is no point's folder: it has no {POINT_FILE}. Give ROOT/points/<id>.")
    _check_point_file(folder, stored)
    scores = _read_rows(folder / SCORES_FILE, ScoreRow)[0]
    return StoredPoint(
        folder=folder,
        id=stored["id"],
        label=stored["label"],
        identity=stored["identity"],
        config=stored["config"],
        predictions=_read_rows(folder / PREDICTIONS_FILE, PredictionRow)[0],
        scores=scores,
        fidelity=_read_rows(folder / FIDELITY_FILE, FidelityRow)[0],
        metrics=read_json(folder / METRICS_FILE),
        provenance=read_json(folder / PROVENANCE_FILE),
    )


def _check_point_file(folder: Path, stored: Any) -> None:
    path = folder / POINT_FILE
    if not isinstance(stored, dict) or "schema_version" not in stored:
        raise StateError(f"{path} is not what sah writes there. Move its folder away.")
    if stored["schema_version"] != SCHEMA_VERSION:
        raise StateError(
            f"{path} has schema_version {stored['schema_version']!r}, "
            f"this version of sah reads {SCHEMA_VERSION}. "
            "Read it with the version of sah that wrote it, or choose another folder with output_dir=PATH."
        )
    missing = {"id", "label", "identity", "config"} - stored.keys()
    if missing:
        raise StateError(f"{path} lacks {', '.join(sorted(missing))}. Move its folder away.")


Row = TypeVar("Row", PredictionRow, FidelityRow, ScoreRow)


def _read_rows(path: Path, kind: type[Row]) -> tuple[dict[str, Row], int, bool]:
    lines, size, newline_missing = read_json_lines(path)
    rows: dict[str, Row] = {}
    for number, data in lines:
        try:
            row = kind.from_json(data)
        except StateError as error:
            raise broken_line(path, number, str(error)) from error
        rows[row.key] = row
    return rows, size, newline_missing


def flat(value: Any, key: str = "") -> dict[str, str]:
    """Lay nested JSON data out.

    Args:
        value: Dicts and lists, nested at will.
        key: Name of the value itself.

    Returns:
        Dotted name to the JSON of each scalar.
    """
    items: Iterable[tuple[Any, Any]]
    if isinstance(value, dict) and value:
        items = value.items()
    elif isinstance(value, list) and value:
        items = enumerate(value)
    else:
        return {key: json.dumps(value)}
    found: dict[str, str] = {}
    for name, item in items:
        found.update(flat(item, f"{key}.{name}" if key else str(name)))
    return found
