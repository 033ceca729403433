"""A sweep's work after its jobs are composed: the plan, and the groups one after another."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.utils import env_override
from rich.console import Console

from sah.config.launcher import LauncherOptions
from sah.errors import ConfigError, SahError, StateError
from sah.report.plan import print_plan
from sah.report.table import print_lines
from sah.runners import job as this_process
from sah.runners.group import Group, group_points, run_group
from sah.runners.jobs import Job
from sah.runners.plan import Plan, make_plan
from sah.runners.point import Point, prepare_point
from sah.runners.session import Session
from sah.runners.workers.base import Workers
from sah.runners.workers.create import create_workers

_log = logging.getLogger(__name__)

_ELSEWHERE = {"device": "workers"}
"""What a run's provenance says where other processes hold the model."""


def show_plan(
    jobs: Sequence[Job], environment: Mapping[str, str], workers: int, begun: float, trials: int | None = None
) -> None:
    """Print what jobs would do, point by point.

    Args:
        jobs: The jobs of a sweep.
        environment: What Hydra adds to the environment of each.
        workers: How many processes would share the work.
        begun: `time.perf_counter()` before the jobs were composed.
        trials: Most jobs of the search that these are a batch of.

    Raises:
        ConfigError: If a point does not fit its model or has no data.
    """
    with env_override(dict(environment)):
        plan = make_plan(jobs, Session(), workers, trials)
    print_plan(plan.summary, Console(), points=True)
    print_lines(f"Composed, checked and planned in {time.perf_counter() - begun:.1f} s.")


def begin_sweep(jobs: Sequence[Job], workers: int, trials: int | None) -> tuple[Plan, Session]:
    """Plan jobs and show the plan.

    Args:
        jobs: The jobs, or the next batch of a sweep's jobs.
        workers: How many processes share the work.
        trials: Most jobs of the search that these are a batch of.

    Returns:
        The plan, and the session of this process, which the jobs will use, too.

    Raises:
        ConfigError: If a point does not fit its model or has no data.
    """
    session = this_process._session
    if jobs[0].number == 0:
        session.begin()
    plan = make_plan(jobs, session, workers, trials)
    print_plan(plan.summary, Console(stderr=True), points=False)
    return plan, session


def run_groups(plan: Plan, session: Session, options: LauncherOptions) -> None:
    """Compute the rows of all groups. What goes wrong with one of them is met again, and told, by its jobs.

    Args:
        plan: The plan.
        session: Caches of the process.
        options: Who computes.

    Raises:
        ConfigError: If what the options name cannot be had.
        StateError: If rows cannot be written, because of a full disk, say. All rows before are kept.
        WorkerError: If other processes that were to compute cannot be had, or do not stay.
    """
    workers = create_workers(options)
    for number, group in enumerate(plan.busy, start=1):
        first = group.points[0]
        named = f"{first.model.label}, {first.experiment.dataset.name}"
        _log.info("Group %d of %d: %s, points: %d", number, len(plan.busy), named, len(group.points))
        try:
            _run(group, plan, session, workers)
        except Exception as error:
            full = isinstance(error, StateError) and isinstance(error.__cause__, OSError)
            if full or workers is not None or isinstance(error, ConfigError):
                # No other group could be written or computed either, and this process does not stand in for others.
                raise
            _log.error("%s: %s", named, error if isinstance(error, SahError) else traceback.format_exc())


def _run(group: Group, plan: Plan, session: Session, workers: Workers | None) -> None:
    def provenance_of(point: Point) -> dict[str, Any]:
        job = plan.jobs.get(point.main.store.folder)
        known = this_process.point_provenance(point, () if job is None else job.overrides)
        return known if workers is None else {**known, **_ELSEWHERE}

    if workers is not None:
        # Their processes load the model, this one only writes rows.
        run_group(group, session, provenance_of, workers)
        return
    # The plan's points know their model without its weights.
    points = [prepare_point(p.experiment, session, plan.jobs[p.main.store.folder].config) for p in group.points]
    for loaded in group_points(points):
        run_group(loaded, session, provenance_of)
