"""The table of a plan: what a sweep is about to do, and roughly how long it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

_FILE_WIDTH = 190
_MOST_POINTS = 1000

GROUP_COLUMNS = (
    "model",
    "data set",
    "points",
    "complete",
    "contexts",
    "to prefill",
    "tokens",
    "rows there",
    "to compute",
    "time, rough",
)
POINT_COLUMNS = ("job", "setting", "rows there", "point", "overrides")


@dataclass(frozen=True)
class GroupSummary:
    """Points that share a model and a data set."""

    model: str
    dataset: str
    points: int
    complete: int
    """Points whose answers are all there."""
    contexts: int
    to_prefill: int
    """Prefills to run: some answer over the context is missing, and neither memory nor `context_folder` holds it as it
    is prefilled for that answer. Settings of several prefills need a context once for each."""
    stored: int
    """Prefilled contexts with missing answers that are read from `context_folder`."""
    busy_workers: int
    """Workers that have something to do: a context is answered by one of them. 0 where nothing is left to compute."""
    tokens: int
    """Tokens of these prefills, from a sample of the contexts."""
    rows_there: int
    """Answers, and readings of dense answers by sparse settings."""
    to_compute: int
    seconds: float
    """Rough time of prefills and answers, of all workers together."""
    new_bytes: float
    """Rough size of the files that it adds, contexts kept on disk left out."""
    context_bytes: float
    """Rough size of what it adds to `context_folder`."""
    basis: str
    """What the time rests on; empty where nothing is left to compute."""


@dataclass(frozen=True)
class PointLine:
    """One job's point."""

    job: int
    setting: str
    rows_there: int
    rows: int
    point: str | None
    """Its id; None for a job that cannot be planned."""
    overrides: str
    """What tells it from the other jobs."""
    note: str = ""
    """That it equals another one, or why it cannot be planned."""


@dataclass(frozen=True)
class PlanSummary:
    """Everything that is shown of a plan."""

    groups: Sequence[GroupSummary]
    points: Sequence[PointLine]
    """A line for each job, in order."""
    common: str
    """Overrides that all jobs share."""
    equal: int
    """Jobs whose point equals that of an earlier job."""
    unplanned: Sequence[str]
    """Why jobs cannot be planned, each reason once."""
    workers: int
    trials: int | None = None
    """Most jobs of a search, which makes them in batches from the results of earlier ones; None for other sweeps."""

    @property
    def seconds(self) -> float:
        """Rough time of all groups, one after another, each shared by the workers that it keeps busy."""
        return sum(group.seconds / max(group.busy_workers, 1) for group in self.groups)


def print_plan(plan: PlanSummary, console: Console, *, points: bool) -> None:
    """Print a plan.

    Args:
        plan: The plan.
        console: Where to; a width that suits files is taken where it is no terminal.
        points: Whether to list the points one by one.
    """
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    if plan.groups:
        console.print(_table("Plan", GROUP_COLUMNS, 2, [_group_cells(group) for group in plan.groups]))
    if points:
        lines = [_point_cells(point) for point in plan.points[:_MOST_POINTS]]
        console.print(_table("Points", POINT_COLUMNS, 2, lines, words=(1, 3, 4)))
        if len(plan.points) > _MOST_POINTS:
            console.print(f"and {len(plan.points) - _MOST_POINTS} more", highlight=False)
        if plan.common:
            console.print(f"All points: {plan.common}", highlight=False, soft_wrap=True, markup=False)
    for line in plan_lines(plan):
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def plan_lines(plan: PlanSummary) -> list[str]:
    """Say in words what the table adds up to."""
    complete = sum(group.complete for group in plan.groups)
    different = sum(group.points for group in plan.groups)
    counted = f"{len(plan.points)} point{'' if len(plan.points) == 1 else 's'}"
    if plan.equal:
        counted += f", {plan.equal} of them equal to another one and run once"
    lines = [f"{counted}. Complete: {complete} of {different}."]
    if plan.trials is not None and plan.points and (last := plan.points[-1].job) < plan.trials - 1:
        batch = f"trials {plan.points[0].job} to {last} of up to {plan.trials}, counted from 0"
        lines.append(f"One batch of a search: {batch}. Later batches are chosen from results and not planned here.")
    if any(group.to_compute for group in plan.groups):
        shared = f" with {plan.workers} workers" if plan.workers > 1 else ""
        basis = dict.fromkeys(group.basis for group in plan.groups if group.basis)
        disk = f"{size(sum(group.new_bytes for group in plan.groups))} on disk"
        if context_bytes := sum(group.context_bytes for group in plan.groups):
            disk += f", {size(context_bytes)} more in context_folder"
        lines.append(f"Rough estimate: {duration(plan.seconds)}{shared} and {disk}. {' '.join(basis)}")
    elif different:
        lines.append("Nothing is left to compute.")
    if stored := sum(group.stored for group in plan.groups):
        to_prefill = sum(group.to_prefill for group in plan.groups)
        lines.append(f"Prefills: {to_prefill:,}; {stored:,} contexts more are read from context_folder.")
    lines += [f"Not planned, left to its job: {reason}" for reason in plan.unplanned]
    return lines


def duration(seconds: float) -> str:
    """Write a time in the unit that fits, e.g. `40 s`, `3 min`, `2.5 h`."""
    for unit, length in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{_rounded(seconds / length)} {unit}"
    return f"{max(seconds, 1):.0f} s"


def size(number: float) -> str:
    """Write a number of bytes in the unit that fits, e.g. `2.1 MB`."""
    for unit, length in (("GB", 1e9), ("MB", 1e6)):
        if number >= length:
            return f"{_rounded(number / length)} {unit}"
    return f"{_rounded(number / 1e3)} KB"


def _rounded(number: float) -> str:
    """Write a number with two digits that count, and never as a power of ten."""
    return f"{float(f'{number:.2g}'):,.10g}"


def _group_cells(group: GroupSummary) -> list[str]:
    counts = (
        group.points,
        group.complete,
        group.contexts,
        group.to_prefill,
        group.tokens,
        group.rows_there,
        group.to_compute,
    )
    time = duration(group.seconds) if group.to_compute else "-"
    return [group.model, group.dataset, *(f"{count:,}" for count in counts), time]


def _point_cells(point: PointLine) -> list[str]:
    there = "-" if point.point is None else f"{point.rows_there}/{point.rows}"
    if point.point is not None and point.rows_there == point.rows:
        there += " done"
    note = f" ({point.note})" if point.note else ""
    return [str(point.job), point.setting, there, point.point or "-", point.overrides + note]


def _table(
    title: str, columns: Sequence[str], left: int, lines: Sequence[Sequence[str]], words: Sequence[int] | None = None
) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    texts = range(left) if words is None else words
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place in texts else "right", overflow="fold")
    for line in lines:
        table.add_row(*map(Text, line))  # as text, since rich takes [topk] for markup
    return table
