"""What a point tells its tracker."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sah.report.load import POINTS, ReportPoint
from sah.report.summary import summarise_point
from sah.report.tracked import AXIS, PREDICTIONS, point_figures, point_metrics, point_summary, predictions_table
from sah.results.redact import redacted
from sah.results.store import read_point
from sah.tracking.base import RunInfo, Tracker
from sah.tracking.safe import SafeTracker

if TYPE_CHECKING:
    from sah.runners.point import Point


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
    prefill = f" + prefill {experiment.prefill_label}" if experiment.prefill is not None else ""
    tags = [point.model.label, experiment.dataset.name, *(key for key, _ in experiment.maskers)]
    if experiment.prefill is not None:
        tags.append(f"prefill {experiment.prefill.name}")
    return RunInfo(
        run_id=main.store.id,
        name=f"{point.model.label} {experiment.dataset.name} {main.label}{density}{prefill}",
        folder=folder,
        group=sweep,
        job_type="dense" if experiment.is_dense else "sparse",
        tags=tuple(dict.fromkeys(tags)),
        config={**redacted(config), "identity": main.store.identity},
    )


def log_point(tracker: SafeTracker, point: Point, metrics: dict[str, Any], *, files: bool = False) -> None:
    """Send all there is of a point: numbers, summary, heatmaps, and its predictions, dense and sparse side by side.

    Args:
        tracker: A started tracker.
        point: A point that has run.
        metrics: Its `metrics.json`.
        files: Whether to send its folder and its dense arm's too. Those of a sweep are sent by the sweep's own run.
    """

    def tell(told: Tracker) -> None:
        _log_figures(told, _as_reported(point, metrics))
        if files:
            folders = {arm.store.folder for arm in point.arms}
            told.log_artifact(f"results-{point.main.store.id}", point_files(folders))

    tracker.tell(tell)


def _log_figures(tracker: Tracker, shown: ReportPoint) -> None:
    tracker.log_metrics(point_metrics(shown), axis=AXIS)
    tracker.log_summary(point_summary(shown))
    tracker.log_table(PREDICTIONS, *predictions_table(shown))
    for name, figure in point_figures(shown).items():
        tracker.log_figure(name, figure)


def point_files(folders: Iterable[Path]) -> dict[str, Path]:
    """List what an artifact of points holds.

    Args:
        folders: Points' folders.

    Returns:
        Path inside the artifact to file: results, no locks and nothing half written.
    """
    return {
        f"{POINTS}/{folder.name}/{path.name}": path
        for folder in sorted(folders)
        for path in sorted(folder.iterdir())
        if path.is_file() and path.suffix in (".json", ".jsonl") and not path.name.startswith(".")
    }


def _as_reported(point: Point, metrics: dict[str, Any]) -> ReportPoint:
    main = read_point(point.main.store.folder)
    return ReportPoint(
        id=main.id,
        label=point.main.label,
        summary=summarise_point(metrics),
        metrics=metrics,
        overrides=(),
        main=main,
        dense=main if point.sparse is None else read_point(point.dense.store.folder),
        keys=tuple(point.row_keys),
    )
