"""The end of a sweep with several objectives: its Pareto set, in the sweep's folder and in the tracker.

Loads no model: everything is read from the records of the jobs.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sah.config.build import build_tracker
from sah.errors import bad_value
from sah.report.pareto import SearchPoint, SearchResult, front_markdown, search_result
from sah.report.records import collect_points, point_key
from sah.report.summary import OBJECTIVES
from sah.results.files import replace_file, replace_json
from sah.results.redact import redacted
from sah.results.rows import plain_json
from sah.runners.records import sweep_name
from sah.tracking.base import RunInfo
from sah.tracking.discovery import create_tracker

_log = logging.getLogger(__name__)

PARETO_FILE = "pareto.json"
PARETO_PAGE = "pareto.md"
JOB_TYPE = "search"


def check_directions(config: DictConfig) -> None:
    """Check that a sweeper which optimises seeks what the objectives are: many scores, few keys, few bytes.

    Args:
        config: The sweep's config. A sweeper without directions, and objectives that do not exist, are left alone.

    Raises:
        ConfigError: If the directions are others, or their number is.
    """
    direction = config.hydra.sweeper.get("direction")
    objectives = list(config.objectives)
    if direction is None or not set(objectives) <= OBJECTIVES.keys():
        return
    several = OmegaConf.is_list(direction)
    given = [getattr(entry, "name", entry) for entry in (direction if several else [direction])]
    wanted = [OBJECTIVES[name] for name in objectives]
    if given != wanted:
        written = wanted[0] if len(wanted) == 1 else f"[{','.join(wanted)}]"
        allowed = f"{written}, since objectives=[{','.join(objectives)}]"
        raise bad_value(
            "hydra.sweeper.direction", given if several else given[0], allowed, f"'hydra.sweeper.direction={written}'"
        )


def collect_search(records: Sequence[Mapping[str, Any]]) -> SearchResult | None:
    """Find the Pareto set of a sweep.

    Args:
        records: What its jobs left, see `sah.report.records`.

    Returns:
        The finished points, each once; None if no job of the sweep has more than one objective. Jobs that failed, or in
        which an objective was not measured, are left out.
    """
    finished = [record for record in records if record["status"] == "ok" and len(record.get("objectives", ())) > 1]
    if not finished:
        return None
    objectives = list(finished[0]["objectives"])
    finished = [record for record in finished if list(record["objectives"]) == objectives]
    jobs: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for record in finished:
        jobs.setdefault(point_key(record), []).append(record)
    summaries, _ = collect_points(finished)
    points = [
        SearchPoint(
            label=summary.label,
            density_requested=summary.density_requested,
            values=same[0]["objectives"],
            jobs=len(same),
            overrides=tuple(same[0]["overrides"]),
            point=same[0]["point"],
            folder=same[0]["folder"],
        )
        for summary, same in zip(summaries, jobs.values(), strict=True)
    ]
    return search_result(points, objectives)


def keep_search(result: SearchResult, folder: Path, config: DictConfig) -> None:
    """Write the Pareto set into a sweep's folder, and tell the log and the tracker.

    Args:
        result: What was found.
        folder: The sweep's folder.
        config: The sweep's config.

    Raises:
        StateError: If it cannot be written.
    """
    replace_json(folder / PARETO_FILE, plain_json(result.to_json()))
    replace_file(folder / PARETO_PAGE, front_markdown(result).encode())
    found = "; ".join(f"{point.label} {dict(point.values)}" for point in result.front)
    _log.info("%s: %s", result.headline(), found)
    tracker_config = build_tracker(_tracker_values(config))[0]
    if tracker_config is None:
        return
    tracker = create_tracker(tracker_config)
    tracker.start(search_info(folder, config))
    front, every = len(result.front), [*result.front, *result.dominated]
    best = {str(place): {"setting": point.label, **point.values} for place, point in enumerate(result.front)}
    tracker.log_summary({"points": len(every), "pareto_points": front, "pareto": best})
    columns = ["setting", "in the Pareto set", "density requested", *result.objectives, "trials", "overrides", "point"]
    rows = []
    for place, point in enumerate(every):
        values = [point.values[name] for name in result.objectives]
        overrides = " ".join(point.overrides)
        rows.append([point.label, place < front, point.density_requested, *values, point.jobs, overrides, point.point])
    tracker.log_table("pareto", columns, rows)
    tracker.finish()


def search_info(folder: Path, config: DictConfig) -> RunInfo:
    """Describe the run that sums up a sweep; the same command has the same id.

    Args:
        folder: The sweep's folder.
        config: The sweep's config.

    Returns:
        The description.
    """
    sweep = sweep_name(config.hydra)
    given: Any = OmegaConf.to_container(config, resolve=False)
    hydra = given.pop("hydra")
    sweeper = {key: plain_json(value) for key, value in hydra["sweeper"].items() if key != "storage"}
    content = json.dumps([JOB_TYPE, sweep, hydra["overrides"]["task"], sweeper], sort_keys=True)
    return RunInfo(
        run_id=hashlib.sha256(content.encode()).hexdigest()[:16],
        name=f"{sweep} {JOB_TYPE}",
        folder=folder,
        group=sweep,
        job_type=JOB_TYPE,
        tags=(JOB_TYPE, *config.objectives),
        config=redacted({**plain_json(given), "sweeper": sweeper}),
    )


def _tracker_values(config: DictConfig) -> dict[str, Any]:
    name = config.get("tracker")
    node = config.get(name) if isinstance(name, str) else None
    return {"tracker": name, str(name): OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else {}}
