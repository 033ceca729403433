"""Reads finished work for a report: a sweep's folder, a job's, a point's, or a whole output folder.

What cannot be read is left out and named in `ReportData.problems`; the rest is reported.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sah.errors import StateError
from sah.report.records import JOB_FILE, checked_record, collect_points, point_key, read_record, read_records
from sah.report.summary import PointSummary
from sah.results.files import read_json
from sah.results.rows import PredictionRow
from sah.results.store import (
    METRICS_FILE,
    POINT_FILE,
    PREDICTIONS_FILE,
    PROVENANCE_FILE,
    StoredPoint,
    flat,
    read_point,
)

POINTS = "points"
"""Folder of an output folder that holds a folder for each point."""

OF_LENGTHS = ("length", "depths")
"""What differs between needle tasks of several lengths."""


@dataclass(frozen=True)
class Pair:
    """One question with the rows of both arms; None where there is none."""

    key: str
    dense: PredictionRow | None
    sparse: PredictionRow | None
    dense_scores: Mapping[str, float]
    sparse_scores: Mapping[str, float]

    @property
    def row(self) -> PredictionRow:
        """A row of the question, for what both have in common."""
        row = self.sparse or self.dense
        if row is None:
            raise StateError(f"The question {self.key} has no row in either arm.")
        return row


@dataclass(frozen=True)
class ReportPoint:
    """A point as a report shows it."""

    id: str
    """Of its folder; two points of a report may share it where they asked for different examples."""
    label: str
    """Its recipe with what tells it apart, as in `summary`; neither the requested density nor phases are part of it."""
    summary: PointSummary
    metrics: Mapping[str, Any]
    """Content of `metrics.json`, of the examples that the job asked for."""
    overrides: tuple[str, ...]
    """Of the job that made it."""
    main: StoredPoint
    """The point itself: the sparse arm, or the dense one of a dense point."""
    dense: StoredPoint | None
    """The dense arm; None where its folder is missing, and then it is among the problems."""
    keys: tuple[str, ...] | None
    """Keys of the questions that the job asked for; None for all rows there are."""

    @property
    def is_dense(self) -> bool:
        """Tell whether this is the dense baseline itself."""
        return self.summary.sparse_in is None

    @property
    def name(self) -> str:
        """Its label with the requested density, and its phases where points have different ones: `topk 0.1`."""
        return self.summary.name

    @property
    def model(self) -> str:
        """What the model is called in the config."""
        config = self.main.config.get("model") or {}
        return str(config.get("label") or config.get("name") or "model")

    @property
    def dataset(self) -> str:
        """The data set's name."""
        return str(self.main.identity.get("dataset", {}).get("name", "data"))

    @property
    def command(self) -> str:
        """What computes this point again; a dense arm's is that of the dense baseline alone."""
        overrides = self.overrides
        if self.is_dense:
            sparse = (
                "masker=",
                "masker.",
                "density=",
                "+masker",
                "phases=",
                "dense_layers=",
                "prefill=",
                "prefill.",
                "+prefill",
            )
            overrides = (*(text for text in overrides if not text.startswith(sparse)), "masker=dense")
        return shlex.join(["python", "-m", "sah.run", *overrides])

    @property
    def provenance(self) -> Mapping[str, Any]:
        """The last run that added rows; empty where nobody noted it."""
        return _last_run(self.main.provenance)

    def pairs(self) -> list[Pair]:
        """Join the rows of both arms, in the order of the sparse ones (of the dense ones for a dense point)."""
        dense = self.main if self.is_dense else self.dense
        sparse = None if self.is_dense else self.main
        arms = [arm for arm in (sparse, dense) if arm is not None]
        keys = self.keys or tuple(dict.fromkeys(key for arm in arms[:1] for key in arm.predictions))
        found = []
        for key in keys:
            rows = [None if arm is None else arm.predictions.get(key) for arm in (dense, sparse)]
            if rows != [None, None]:
                found.append(Pair(key, rows[0], rows[1], _scores(dense, key), _scores(sparse, key)))
        return found


@dataclass(frozen=True)
class ReportData:
    """Everything a report is made of."""

    folder: Path
    """What was asked for."""
    points: tuple[ReportPoint, ...]
    notes: tuple[str, ...] = ()
    """Jobs that turned out to be the same point, and the like."""
    failures: tuple[tuple[str, str], ...] = ()
    """Overrides and error of the jobs that failed."""
    problems: tuple[str, ...] = ()
    """What could not be read and is left out."""
    sweep: bool = False
    """Whether these are the points of one sweep."""

    def groups(self, *, same_needles: bool = False) -> dict[str, list[ReportPoint]]:
        """Part the points by model and data set, the only ones whose scores compare.

        Args:
            same_needles: Whether needle tasks that differ in lengths and depths alone come together, for a heatmap.

        Returns:
            Title to points. The title names model and data set, with what tells groups of the same names apart.
        """
        members: dict[str, list[ReportPoint]] = {}
        for point in self.points:
            kind = {name: point.main.identity.get(name) for name in ("model", "dataset", "generation")}
            if same_needles and isinstance(kind["dataset"], dict):
                kind["dataset"] = {name: part for name, part in kind["dataset"].items() if name not in OF_LENGTHS}
            members.setdefault(json.dumps(kind, sort_keys=True), []).append(point)
        values = {key: _laid_out(json.loads(key)) for key in members}
        titles: dict[str, list[ReportPoint]] = {}
        for key, points in members.items():
            title = f"{points[0].model}, {points[0].dataset}"
            alike = [values[k] for k, p in members.items() if f"{p[0].model}, {p[0].dataset}" == title]
            names = dict.fromkeys(name for other in alike for name in other)
            telling = [name for name in names if len({other.get(name) for other in alike}) > 1]
            shown = ", ".join([title, *(f"{name}={values[key][name]}" for name in telling if name in values[key])])
            titles[shown if shown not in titles else f"{shown} ({len(titles) + 1})"] = points
        return titles


def load_report(folder: Path) -> ReportData:
    """Read what a folder holds.

    Args:
        folder: A sweep's folder (`outputs/sweeps/DATE/TIME`), a job's (`outputs/runs/DATE/TIME`), a point's
            (`outputs/points/ID`), or an output folder, of which all points are read.

    Returns:
        All that could be read.

    Raises:
        StateError: If there is no such folder, or nothing in it that sah wrote, or nothing that can be read; the
            message lists folders that could be given instead.
    """
    if not folder.is_dir():
        raise StateError(
            f"{folder} is no folder. Give one that sah wrote to, e.g. outputs or outputs/sweeps/DATE/TIME."
        )
    problems: list[str] = []
    failures: list[tuple[str, str]] = []
    sweep = False
    if (folder / POINT_FILE).is_file() or (folder / PREDICTIONS_FILE).is_file():
        records = _records_of_points([folder], problems)
    elif (folder / POINTS).is_dir():
        records = _records_of_points(sorted((folder / POINTS).iterdir()), problems)
    elif (folder / JOB_FILE).is_file():
        records = [read_record(folder / JOB_FILE)]
    else:
        records, sweep = read_records(folder, problems), True
    for record in records:
        if record.get("status") != "ok":
            failures.append((shlex.join(record.get("overrides", [])), str(record.get("error") or "it did not end")))
    data = ReportData(folder, *_points(records, problems), tuple(failures), tuple(problems), sweep)
    if not data.points and not failures:
        raise StateError(_nothing(folder, problems))
    return data


def _records_of_points(folders: Sequence[Path], problems: list[str]) -> list[dict[str, Any]]:
    """Make records of points' folders as jobs leave them."""
    records = []
    for folder in folders:
        try:
            if (record := _record_of_point(folder, problems)) is not None:
                records.append(checked_record(record))
        except StateError as error:
            problems.append(str(error))
    return records


def _record_of_point(folder: Path, problems: list[str]) -> dict[str, Any] | None:
    stored, metrics = read_json(folder / POINT_FILE), read_json(folder / METRICS_FILE)
    provenance = read_json(folder / PROVENANCE_FILE)
    if stored is None:
        problems.append(f"{folder} is no point's folder: it has no {POINT_FILE}. It is left out.")
        return None
    if metrics is None:
        problems.append(
            f"{folder} has rows but no {METRICS_FILE}: its run did not end. It is left out until the same command "
            "has run again."
        )
        return None
    return {
        "file": str(folder / METRICS_FILE),
        "status": "ok",
        "overrides": _last_run(provenance).get("overrides", []),
        "point": folder.name,
        "folder": str(folder),
        "examples": "",
        "label": stored.get("label") if isinstance(stored, dict) else None,
        "metrics": metrics,
    }


def _last_run(provenance: object) -> Mapping[str, Any]:
    """Read the last run that added rows; empty where nobody noted it."""
    runs = provenance.get("runs") if isinstance(provenance, Mapping) else None
    last = runs[-1] if isinstance(runs, list) and runs else None
    return last if isinstance(last, Mapping) else {}


def _points(records: Sequence[dict[str, Any]], problems: list[str]) -> tuple[tuple[ReportPoint, ...], tuple[str, ...]]:
    readable: list[tuple[dict[str, Any], StoredPoint]] = []
    seen: set[tuple[str, str]] = set()
    for record in records:
        if "metrics" not in record:
            continue
        if point_key(record) in seen:
            readable.append((record, readable[0][1]))  # only noted
            continue
        try:
            stored = _read_stored(_folder_of(record))
        except StateError as error:
            problems.append(str(error))
            continue
        readable.append((record, stored))
        seen.add(point_key(record))
    summaries, notes = collect_points([record for record, _ in readable])
    unique: dict[tuple[str, str], tuple[dict[str, Any], StoredPoint]] = {}
    for record, stored in readable:
        unique.setdefault(point_key(record), (record, stored))
    arms: dict[Path, StoredPoint | None] = {}
    points = []
    for summary, (record, stored) in zip(summaries, unique.values(), strict=True):
        dense = _dense_arm(record, stored, arms, problems)
        keys = record.get("questions")
        points.append(
            ReportPoint(
                id=stored.id,
                label=summary.label,
                summary=summary,
                metrics=record["metrics"],
                overrides=tuple(record["overrides"]),
                main=stored,
                dense=dense,
                keys=None if keys is None else tuple(keys),
            )
        )
    return tuple(points), tuple(notes)


def _folder_of(record: Mapping[str, Any]) -> Path:
    """Find a record's point: in the output folder that holds the record, which may have moved, or where it was."""
    inside = (above / POINTS / record["point"] for above in Path(record["file"]).resolve().parents)
    return next((folder for folder in inside if (folder / POINT_FILE).is_file()), Path(record["folder"]))


def _read_stored(folder: Path) -> StoredPoint:
    """Read a point, and check what names it: the rest of a report takes it as it is."""
    stored = read_point(folder)
    identity, config = stored.identity, stored.config
    if isinstance(identity, dict) and isinstance(config, dict) and isinstance(stored.label, str):
        parts = [identity.get("dataset") or {}, config.get("model") or {}]
        if isinstance(stored.id, str) and all(isinstance(part, dict) for part in parts):
            return stored
    raise StateError(f"{folder / POINT_FILE} is damaged: what it says of the point is not what sah writes there.")


def _dense_arm(
    record: Mapping[str, Any], main: StoredPoint, arms: dict[Path, StoredPoint | None], problems: list[str]
) -> StoredPoint | None:
    name = record["metrics"].get("dense_point")
    if name is None:
        return main
    folder = main.folder.parent / str(name)
    if folder not in arms:
        try:
            arms[folder] = _read_stored(folder)
        except StateError as error:
            arms[folder] = None
            problems.append(
                f"The dense arm of {main.label} cannot be read: {error} Sparse answers are shown alone; figures of the "
                "comparison are those that were stored."
            )
    return arms[folder]


def _laid_out(identity: Mapping[str, Any]) -> dict[str, str]:
    """Lay an identity out for a title: scalars as they are, of lists their length."""
    found = {}
    for name, value in flat({key: _counted(part) for key, part in identity.items()}).items():
        if not name.endswith("_version"):
            found[name] = value.strip('"')
    return found


def _counted(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _counted(item) for name, item in value.items()}
    return f"{len(value)} values" if isinstance(value, list) else value


def _scores(arm: StoredPoint | None, key: str) -> Mapping[str, float]:
    score = None if arm is None else arm.scores.get(key)
    return {} if score is None else score.scores


def _nothing(folder: Path, problems: Sequence[str]) -> str:
    if problems:
        return "\n".join([f"Nothing in {folder} can be reported:", *(f"  {problem}" for problem in problems)])
    near = [path.parent.parent for path in sorted(folder.glob(f"*/*/**/{JOB_FILE}"))]
    sweeps = list(dict.fromkeys(str(path) for path in near if path != folder))[-5:]
    hint = f" Give for example: {', '.join(sweeps)}" if sweeps else " Give one that sah wrote to, e.g. outputs."
    return f"{folder} holds no results: no {POINTS}/, no {JOB_FILE} and no {POINT_FILE}.{hint}"
