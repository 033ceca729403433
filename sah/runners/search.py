"""The end of a sweep with several objectives: its Pareto set, in the sweep's folder and for the tracker.

Loads no model: everything is read from the records of the jobs.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sah.errors import bad_value
from sah.report.pareto import SearchPoint, SearchResult, front_markdown, search_result
from sah.report.records import collect_points, point_key
from sah.report.summary import OBJECTIVES
from sah.results.files import replace_file, replace_json
from sah.results.rows import plain_json

_log = logging.getLogger(__name__)

PARETO_FILE = "pareto.json"
PARETO_PAGE = "pareto.md"


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
            label=summary.setting,
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


def keep_search(result: SearchResult, folder: Path) -> None:
    """Write the Pareto set into a sweep's folder, and tell the log.

    Args:
        result: What was found.
        folder: The sweep's folder.

    Raises:
        StateError: If it cannot be written.
    """
    replace_json(folder / PARETO_FILE, plain_json(result.to_json()))
    replace_file(folder / PARETO_PAGE, front_markdown(result).encode())
    found = "; ".join(f"{point.label} {dict(point.values)}" for point in result.front)
    _log.info("%s: %s", result.headline(), found)


def search_table(result: SearchResult) -> tuple[list[str], list[list[Any]]]:
    """Lay out the points of a search, those of the Pareto set first.

    Args:
        result: What was found.

    Returns:
        Names of the columns, and a row a point.
    """
    columns = ["setting", "in the Pareto set", "density requested", *result.objectives, "trials", "overrides", "point"]
    rows: list[list[Any]] = []
    for place, point in enumerate([*result.front, *result.dominated]):
        values = [point.values[name] for name in result.objectives]
        overrides = " ".join(point.overrides)
        front = place < len(result.front)
        rows.append([point.label, front, point.density_requested, *values, point.jobs, overrides, point.point])
    return columns, rows


def search_summary(result: SearchResult) -> dict[str, Any]:
    """Sum a search up: how many points it tried, and the Pareto set by its places.

    Args:
        result: What was found.

    Returns:
        JSON data.
    """
    best = {str(place): {"setting": point.label, **point.values} for place, point in enumerate(result.front)}
    every = len(result.front) + len(result.dominated)
    return {"searched_points": every, "pareto_points": len(result.front), "pareto": best}
