"""What a sweep will do: its points, the groups that share contexts, what is there already, and a rough time.

Models are made without their weights for it, so that a plan is there in seconds; point ids come out as in the run.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sah.errors import ConfigError, DataError, SahError
from sah.report.plan import PlanSummary, PointLine
from sah.results.redact import redacted_argument
from sah.runners.group import Group, group_points
from sah.runners.group_summary import GroupSummaries
from sah.runners.jobs import Job, common_overrides, refusal
from sah.runners.point import Point, prepare_point
from sah.runners.session import Session


@dataclass(frozen=True)
class Plan:
    """A sweep's points before they run."""

    groups: Sequence[Group]
    """The points without those equal to an earlier one; their models have no weights."""

    busy: Sequence[Group]
    """The groups of which answers are missing."""

    jobs: Mapping[Path, Job]
    """Folder of a point's store to its first job."""

    summary: PlanSummary


def make_plan(jobs: Sequence[Job], session: Session, workers: int = 1, trials: int | None = None) -> Plan:
    """Prepare all points and see what is done. Computes and writes nothing.

    Args:
        jobs: The jobs of the sweep.
        session: Caches of the process; models are taken without weights.
        workers: How many processes will share the work.
        trials: Most jobs of the search that these are a batch of.

    Returns:
        The plan. A job whose model cannot be had is in none of its groups.

    Raises:
        ConfigError: If a point does not fit its model or has no data; the message tells of all such points.
    """
    light = session.without_weights()
    points, refused = _prepare(jobs, light)
    first: dict[Path, Job] = {}
    earlier: dict[tuple[Path, tuple[str, ...]], int] = {}
    common = common_overrides([job.overrides for job in jobs])
    lines: list[PointLine] = []
    different: list[Point] = []
    for job in jobs:
        text = job.text(common)
        point = points.get(job.number)
        if point is None:
            note = refused[job.number].strip().splitlines()[-1]
            lines.append(PointLine(job.number, job.experiment.title, 0, 0, None, text, note))
            continue
        folder = point.main.store.folder
        first.setdefault(folder, job)
        number = earlier.setdefault((folder, tuple(point.row_keys)), job.number)
        if number == job.number:
            different.append(point)
        lines.append(_line(job, point, text, "" if number == job.number else f"equal to job {number}"))
    groups = _groups(different)
    summaries = GroupSummaries(light, workers)
    summary = PlanSummary(
        groups=[summaries.make(group) for group in groups],
        points=lines,
        common=" ".join(map(redacted_argument, common)),
        equal=len(points) - len(different),
        unplanned=list(dict.fromkeys(refused.values())),
        workers=workers,
        trials=trials,
    )
    return Plan(groups, [group for group in groups if group.works()], first, summary)


def _prepare(jobs: Sequence[Job], session: Session) -> tuple[dict[int, Point], dict[int, str]]:
    """Prepare every job's point; what cannot be had now is told by its job, mistakes are told at once."""
    points: dict[int, Point] = {}
    refused: dict[int, str] = {}
    mistakes: dict[int, Sequence[str]] = {}
    for job in jobs:
        try:
            points[job.number] = prepare_point(job.experiment, session, job.config)
        except ConfigError as error:
            mistakes[job.number] = error.mistakes or (str(error),)
        except DataError as error:
            mistakes[job.number] = (str(error),)
        except SahError as error:
            refused[job.number] = str(error)
        except Exception:
            # A fault in the code of one data set, say. It stops no other point.
            refused[job.number] = traceback.format_exc()
    if mistakes:
        raise refusal(mistakes, {job.number: job.overrides for job in jobs})
    return points, refused


def _line(job: Job, point: Point, text: str, note: str) -> PointLine:
    names = [(arm, name) for arm in point.arms for name in point.names(arm)]
    there, total = sum(name in arm.done for arm, name in names), len(names)
    return PointLine(job.number, point.main.title, there, total, point.main.store.id, text, note)


def _groups(points: Sequence[Point]) -> list[Group]:
    """Group points; those of different output folders have different stores and stay apart."""
    by_folder: dict[Path, list[Point]] = {}
    for point in points:
        by_folder.setdefault(point.experiment.output_dir, []).append(point)
    return [group for members in by_folder.values() for group in group_points(members)]
