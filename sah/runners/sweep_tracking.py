"""The end of a sweep in the tracker: one run that sums it up. Loads no model."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sah.config.build import build_tracker
from sah.report.load import ReportData, load_report
from sah.report.pareto import SearchResult
from sah.report.tracked import POINTS, points_table, sweep_figures, sweep_summary
from sah.report.verdict_lines import judged
from sah.results.files import replace_json
from sah.results.redact import redacted
from sah.results.rows import plain_json
from sah.runners.records import sweep_name
from sah.runners.search import search_summary, search_table
from sah.runners.tracking import point_files
from sah.tracking.base import TRACKING_FILE, RunInfo, Tracker, TrackerConfig
from sah.tracking.discovery import create_tracker
from sah.tracking.none_config import NoTrackerConfig

_log = logging.getLogger(__name__)

JOB_TYPE = "sweep"
_FILES = ("table.md", "pareto.json", "pareto.md", "*/job.json", "*/config.json")
"""Of a sweep's folder. `multirun.yaml` is not among them: what of it concerns the results is the run's config, and the
rest tells of the machine (its folders, the environment that jobs are given)."""


def track_sweep(folder: Path, config: DictConfig, search: SearchResult | None = None) -> str | None:
    """Sum a sweep up in its tracker. What fails here is one warning; results and points' runs are as they were.

    Args:
        folder: The sweep's folder.
        config: The sweep's config.
        search: Its Pareto set, if it was a search.

    Returns:
        Where the tracker shows it; None for nowhere.
    """
    tracker_config = build_tracker(_tracker_values(config))[0]
    if tracker_config is None or isinstance(tracker_config, NoTrackerConfig):
        return None
    try:
        data = judged(load_report(folder))
        info = sweep_info(folder, config, data, search)
    except Exception as error:
        _log.warning("The sweep is not summed up in the tracker (%s: %s).", type(error).__name__, error)
        return None
    tracker = create_tracker(tracker_config)
    tracker.start(info)
    tracker.tell(lambda told: _log_sweep(told, data, folder, info, search))
    location = tracker.location
    tracker.finish(failed=bool(data.failures))
    _note(folder, tracker_config, info, location, there=tracker.failure is None)
    return location


def sweep_info(folder: Path, config: DictConfig, data: ReportData, search: SearchResult | None = None) -> RunInfo:
    """Describe the run that sums up a sweep; the same command has the same id.

    Args:
        folder: The sweep's folder.
        config: The sweep's config.
        data: What it found.
        search: Its Pareto set, if it was a search.

    Returns:
        The description.
    """
    sweep = sweep_name(config.hydra)
    given: Any = OmegaConf.to_container(config, resolve=False)
    hydra = given.pop("hydra")
    sweeper = {key: plain_json(value) for key, value in hydra["sweeper"].items() if key != "storage"}
    content = json.dumps([JOB_TYPE, sweep, hydra["overrides"]["task"], sweeper], sort_keys=True, default=str)
    tags = [JOB_TYPE, *(tag for point in data.points for tag in (point.model, point.dataset))]
    if search is not None:
        tags += ["search", *search.objectives]
    return RunInfo(
        run_id=hashlib.sha256(content.encode()).hexdigest()[:16],
        name=f"{sweep} {JOB_TYPE}",
        folder=folder,
        group=sweep,
        job_type=JOB_TYPE,
        tags=tuple(dict.fromkeys(tags)),
        config=redacted({**plain_json(given), "sweeper": sweeper}),
    )


def _log_sweep(tracker: Tracker, data: ReportData, folder: Path, info: RunInfo, search: SearchResult | None) -> None:
    summary = sweep_summary(data)
    tracker.log_metrics({name: summary[name] for name in ("finished", "failed")})
    tracker.log_summary({**summary, **({} if search is None else search_summary(search))})
    tracker.log_table(POINTS, *points_table(data))
    if search is not None:
        tracker.log_table("pareto", *search_table(search))
    for name, figure in sweep_figures(data).items():
        tracker.log_figure(name, figure)
    points = {arm.folder for point in data.points for arm in (point.main, point.dense) if arm is not None}
    own = {f"sweep/{path.relative_to(folder)}": path for name in _FILES for path in sorted(folder.glob(name))}
    tracker.log_artifact(f"results-{info.group}-{info.run_id}", {**point_files(points), **own})


def _note(folder: Path, config: TrackerConfig, info: RunInfo, location: str | None, *, there: bool) -> None:
    """Note where the sweep's runs are, for those who look for them later; its own if the tracker took all of it."""
    settings = asdict(config)
    group = settings.get("group") or info.group
    note = {"tracker": config.name, "settings": settings, "group": group, "location": location}
    if there:
        note["run"] = info.run_id
    try:
        replace_json(folder / TRACKING_FILE, plain_json(redacted(note)))
    except Exception as error:
        _log.warning("%s was not written: %s", folder / TRACKING_FILE, error)


def _tracker_values(config: DictConfig) -> dict[str, Any]:
    name = config.get("tracker")
    node = config.get(name) if isinstance(name, str) else None
    return {"tracker": name, str(name): OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else {}}
