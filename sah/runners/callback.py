"""Ends a sweep: one table of all points, and an exit code that tells whether any failed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from sah.console import print_error
from sah.report.summary import PointSummary, summarise_point
from sah.report.table import markdown_table, print_lines, print_table, speed_note
from sah.results.store import METRICS_FILE

JOB_FILE = "job.json"


class SweepSummary(Callback):
    """Reads what the jobs of a sweep left in their folders; needs no model and no tracker."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print and write the sweep's table.

        Args:
            config: The sweep's config.
            **kwargs: Not used.

        Raises:
            SystemExit: With 1 if any point failed.
        """
        folder = Path(config.hydra.sweep.dir)
        jobs = read_jobs(folder)
        points, notes = collect_points(jobs)
        failed = [job for job in jobs if job["status"] != "ok"]
        print_table(points, f"{len(points)} points")
        print_lines(speed_note(points), *notes, f"Sweep: {folder}")
        page = [markdown_table(points), speed_note(points), *notes]
        (folder / "table.md").write_text("\n".join(page) + "\n", encoding="utf-8")
        for job in failed:
            print_error(f"Failed: {' '.join(job['overrides'])}: {job.get('error')}")
        if failed:
            raise SystemExit(1)


def read_jobs(folder: Path) -> list[dict[str, Any]]:
    """Read the records that the jobs of a sweep left.

    Args:
        folder: The sweep's folder.

    Returns:
        One record a job, in the order of their numbers. A job without a record was killed and counts as failed.
    """
    jobs: list[dict[str, Any]] = []
    numbered = [entry for entry in folder.iterdir() if entry.is_dir() and entry.name.isdigit()]
    for entry in sorted(numbered, key=lambda entry: int(entry.name)):
        path = entry / JOB_FILE
        if path.exists():
            jobs.append(json.loads(path.read_text(encoding="utf-8")))
        else:
            jobs.append({"status": "failed", "overrides": [f"job {entry.name}"], "error": "ended without a record"})
    return jobs


def collect_points(jobs: list[dict[str, Any]]) -> tuple[list[PointSummary], list[str]]:
    """Read the metrics of a sweep's points, each point once.

    Args:
        jobs: From `read_jobs`.

    Returns:
        Lines of the table, and notes on jobs that turned out to be the same point.
    """
    points: dict[str, PointSummary] = {}
    first: dict[str, list[str]] = {}
    notes: list[str] = []
    for job in jobs:
        identifier = job.get("point")
        if identifier is None:
            continue
        if identifier in points:
            notes.append(
                f"Same point as '{' '.join(first[identifier])}', shown once: '{' '.join(job['overrides'])}' "
                "(its recipe does not read what differs)."
            )
            continue
        metrics = Path(job["folder"]) / METRICS_FILE
        points[identifier] = summarise_point(json.loads(metrics.read_text(encoding="utf-8")))
        first[identifier] = job["overrides"]
    return list(points.values()), notes
