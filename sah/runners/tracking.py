"""What a point tells its tracker."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sah.report.summary import summarise_point
from sah.results.redact import redacted
from sah.results.store import read_point
from sah.runners.point import Arm, Point
from sah.tracking.base import RunInfo, Tracker


def run_info(point: Point, config: dict[str, Any], folder: Path, sweep: str | None) -> RunInfo:
    """Describe a point's run.

    Args:
        point: The point.
        config: The composed config as plain data.
        folder: Where the tracker may put files.
        sweep: Name of the sweep, or None.

    Returns:
        The description; its id is the point's.
    """
    experiment = point.experiment
    main = point.main
    density = "" if main.requested_density is None else f" {main.requested_density:g}"
    tags = [point.model.label, experiment.dataset.name, *(key for key, _ in experiment.maskers)]
    return RunInfo(
        run_id=main.store.id,
        name=f"{point.model.label} {experiment.dataset.name} {main.label}{density}",
        folder=folder,
        group=sweep,
        job_type="dense" if experiment.is_dense else "sparse",
        tags=tuple(dict.fromkeys(tags)),
        config={**redacted(config), "identity": main.store.identity},
    )


def log_point(tracker: Tracker, point: Point, metrics: dict[str, Any]) -> None:
    """Send a point's summary and its predictions, dense and sparse side by side.

    Args:
        tracker: A started tracker.
        point: A point that has run.
        metrics: Its `metrics.json`.
    """
    tracker.log_summary({**asdict(summarise_point(metrics)), "detail": metrics})
    columns = ["example", "question", "metadata", "answers"]
    arms = [arm for arm in (point.dense, point.sparse) if arm is not None]
    tables = [_cells(arm) for arm in arms]
    for arm in arms:
        columns += [f"{arm.label} status", f"{arm.label} prediction", f"{arm.label} score", f"{arm.label} density"]
    rows: list[list[Any]] = []
    main_rows = point.main.store.load()
    for key in dict.fromkeys(point.row_keys):
        row = main_rows.get(key)
        if row is None:
            continue
        shared: list[Any] = [
            row.example_key,
            row.question_index,
            json.dumps(dict(row.metadata)),
            " | ".join(row.answers),
        ]
        rows.append(shared + [cell for table in tables for cell in table.get(key, [None] * 4)])
    tracker.log_table("predictions", columns, rows)


def _cells(arm: Arm) -> dict[str, list[Any]]:
    stored = read_point(arm.store.folder)
    cells: dict[str, list[Any]] = {}
    for key, row in stored.predictions.items():
        scores = stored.scores[key].scores if key in stored.scores else {}
        cells[key] = [row.status, row.prediction, next(iter(scores.values()), None), row.density_measured]
    return cells
