"""A report in the blocks of a W&B Report (wandb-workspaces 0.4). Needs the extra `reports`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sah.errors import missing_extra
from sah.report.story import (
    Block,
    Commands,
    Comparer,
    Figures,
    Heading,
    Items,
    RunTable,
    Scatter,
    Story,
    Table,
    Words,
)

_WIDTH = 24
"""Of a panel that takes a whole line, in the grid's units."""


@dataclass(frozen=True)
class Place:
    """Where the runs of a report are."""

    entity: str
    """User or team; empty leaves it open, for a report that is not sent."""
    project: str
    sweep: str | None
    """Id of the run that sums the sweep up; None where there is none."""
    points: tuple[str, ...]
    """Ids of the points' runs. A group would be no exact choice: sweeps share points, and presets share groups."""


def workspaces() -> Any:
    """Import wandb-workspaces.

    Returns:
        Its module of reports.

    Raises:
        ConfigError: If it is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as module
    except ImportError as error:
        raise missing_extra("wandb_workspaces", "reports", "A report in Weights & Biases") from error
    return module


def wandb_report(story: Story, place: Place) -> Any:
    """Make a W&B Report, not yet sent.

    Args:
        story: The report.
        place: Where its runs are.

    Returns:
        A `wandb_workspaces.reports.v2.Report`.

    Raises:
        ConfigError: If wandb-workspaces is not installed.
    """
    wr = workspaces()
    blocks = [wr.P(story.description), wr.TableOfContents()]
    blocks += [made for block in story.blocks for made in _blocks(wr, block, place)]
    return wr.Report(
        project=place.project,
        entity=place.entity,
        title=story.title,
        description=story.description,
        blocks=blocks,
        width="fluid",
    )


def report_spec(report: Any) -> dict[str, Any]:
    """Write a report down as the server would get it. It must name no entity: with one its projects are looked up.

    Args:
        report: From `wandb_report`.

    Returns:
        JSON data: `displayName`, `description`, `project` and `spec`.
    """
    model = report._to_model()
    spec = json.loads(model.spec.model_dump_json(by_alias=True, exclude_none=True))
    return {"displayName": report.title, "description": report.description, "project": report.project, "spec": spec}


def _blocks(wr: Any, block: Block, place: Place) -> list[Any]:
    match block:
        case Heading(text):
            return [wr.H2(text)]
        case Words(text):
            return [wr.P(text)]
        case Items(texts):
            return [wr.UnorderedList(items=list(texts))]
        case Table():
            return [wr.MarkdownBlock(markdown(block))]
        case Commands(lines):
            return [wr.MarkdownBlock("\n".join(["```", *lines, "```"]))]  # CodeBlock knows no shell
        case Figures(names, of_points):
            grids = _of_sweep(wr, place, [_media(wr, name) for name in names])
            return grids + (_of_points(wr, place, [_media(wr, name) for name in of_points]) if of_points else [])
        case Scatter(title, x, y, log_x):
            axes = {"x": wr.SummaryMetric(x), "y": wr.SummaryMetric(y), "log_x": log_x}
            return _of_points(wr, place, [wr.ScatterPlot(title=title, layout=wr.Layout(w=_WIDTH, h=10), **axes)])
        case RunTable(name, of_points, table):
            panel = wr.WeavePanelSummaryTable(table_name=name, layout=wr.Layout(w=_WIDTH, h=16))
            if of_points:
                return _of_points(wr, place, [panel])
            written = [] if table is None else [wr.MarkdownBlock(markdown(table))]
            return _of_sweep(wr, place, [panel]) or written
        case Comparer():
            return _of_points(wr, place, [wr.RunComparer(diff_only="split", layout=wr.Layout(w=_WIDTH, h=12))])


def markdown(table: Table) -> str:
    """Write a table as Markdown."""
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _grid(wr: Any, runs: Any, panels: Sequence[Any]) -> Any:
    return wr.PanelGrid(runsets=[runs], panels=list(panels))


def _of_sweep(wr: Any, place: Place, panels: Sequence[Any]) -> list[Any]:
    """Show what the sweep's run holds; nothing where there is no such run."""
    return [] if place.sweep is None else [_grid(wr, _runs(wr, place, "sweep", [place.sweep]), panels)]


def _of_points(wr: Any, place: Place, panels: Sequence[Any]) -> list[Any]:
    return [_grid(wr, _runs(wr, place, "points", place.points), panels)]


def _media(wr: Any, name: str) -> Any:
    return wr.MediaBrowser(title=name, media_keys=[name], num_columns=1, layout=wr.Layout(w=_WIDTH, h=14))


def _runs(wr: Any, place: Place, name: str, ids: Sequence[str]) -> Any:
    from wandb_workspaces import expr

    # The lookup of a project takes the network; without an entity a run set means the report's own project.
    project = {"entity": place.entity, "project": place.project} if place.entity else {}
    return wr.Runset(name=name, filters=[expr.Metric("ID").isin(list(ids))], **project)
