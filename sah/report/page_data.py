"""The data files of a page: an index with everything that an overview shows, and one file a point with its rows."""

from __future__ import annotations

import dataclasses
import datetime
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import sah
from sah.report import page_table
from sah.report.curves import dense_band, main_metric, short_labels
from sah.report.grids import depth_length, needle_sets
from sah.report.load import Pair, ReportData, ReportPoint
from sah.report.plots import BarPlot, GridPlot, LinePlot, Plot, grid_plot, group_plots, head_plots
from sah.report.table import line_order
from sah.report.verdict_lines import headline, verdict_text, verdict_word
from sah.results.rows import PredictionRow, plain_json

_KINDS = {LinePlot: "lines", BarPlot: "bars", GridPlot: "grids"}
_NOT_SHOWN = ("needles", "index")
"""Metadata that an example's line leaves out."""


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page, with the figures that it shows."""

    slug: str
    """Begins the names of its files."""
    title: str
    points: tuple[ReportPoint, ...]
    """Named without what they share."""
    places: tuple[int, ...]
    """Of the points, in the report."""
    plots: tuple[Plot, ...]
    head_plots: tuple[GridPlot, ...]
    """Shown with the points themselves; the files hold all of them."""
    needles: bool
    """Whether its points differ in the length of their prompts, so that a heatmap is all that it shows."""


def sections(data: ReportData) -> list[Section]:
    """Part a report: a section a group, those with most sparse points first, then the heatmaps across groups."""
    place = {id(point): number for number, point in enumerate(data.points)}
    groups = sorted(data.groups().items(), key=lambda item: -sum(not point.is_dense for point in item[1]))
    families = {tuple(map(id, points)): (title, points) for title, points in data.groups(same_needles=True).items()}
    found = []
    for number, (title, points) in enumerate(groups, start=1):
        ordered = sorted(points, key=lambda point: line_order(point.summary))
        named = tuple(_named(point, label) for point, label in zip(ordered, short_labels(ordered), strict=True))
        plots = group_plots(named)
        if families.pop(tuple(map(id, points)), None) is not None:
            plots += _needles(named)
        places = tuple(place[id(point)] for point in ordered)
        found.append(Section(f"g{number}", title, named, places, tuple(plots), tuple(head_plots(named)), False))
    for number, (title, points) in enumerate(families.values(), start=1):
        named = tuple(_named(point, label) for point, label in zip(points, short_labels(points), strict=True))
        plots = _needles(named)
        if plots:
            found.append(Section(f"n{number}", f"{title}, all lengths", named, (), tuple(plots), (), True))
    return found


def _named(point: ReportPoint, label: str) -> ReportPoint:
    return dataclasses.replace(point, label=label, summary=dataclasses.replace(point.summary, label=label))


def index(
    data: ReportData, parts: Sequence[Section], files: Mapping[tuple[str, str], Mapping[str, str]], notes: Sequence[str]
) -> dict[str, Any]:
    """Make the data of the overview.

    Args:
        data: The report.
        parts: From `sections`.
        files: Section's and figure's slug to the files of the figure, by kind.
        notes: What is to be said of the report itself.

    Returns:
        JSON data. Points are named by their place in `data.points`.
    """
    return {
        "title": f"{len(data.points)} point{'' if len(data.points) == 1 else 's'}",
        "folder": str(data.folder.resolve()),
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "version": sah.__version__,
        "problems": list(data.problems),
        "failures": [list(failure) for failure in data.failures],
        "notes": [*data.notes, *notes],
        "provenance": provenance_table(data.points),
        "sections": [_section(part, files) for part in parts],
    }


def point_file(point: ReportPoint) -> dict[str, Any]:
    """Make the data of one point: its rows, its heatmaps, and where its figures come from.

    Args:
        point: The point.

    Returns:
        JSON data.
    """
    metric = point.summary.metric
    needle = depth_length(point)
    dense = None if point.is_dense or point.dense is None else depth_length(point, "dense")
    grids = [] if needle is None else [dataclasses.replace(needle, title=point.name)]
    grids += [] if dense is None else [dataclasses.replace(dense, title="dense")]
    plots = [] if needle is None else [grid_plot("needle", "Score by depth", _NEEDLE_CAPTION, grids)]
    return {
        "id": point.id,
        "overrides": list(point.overrides),
        "folder": str(point.main.folder),
        "dense_folder": None if point.is_dense or point.dense is None else str(point.dense.folder),
        "command": point.command,
        "verdict": verdict_text(point),
        "metric": metric,
        "isDense": point.is_dense,
        "provenance": _laid_out(point.provenance),
        "recipe": plain_json(point.main.identity.get("recipe")),
        "plots": [plot_json(plot, {}, {}) for plot in [*head_plots([point]), *plots]],
        "rows": [_example(pair, metric) for pair in point.pairs()],
    }


def plot_json(plot: Plot, files: Mapping[str, str], place: Mapping[int, int]) -> dict[str, Any]:
    """Lay a figure out for the page.

    Args:
        plot: The figure.
        files: Kind to path of its files.
        place: Place of a point in its section to its place in the report.
    """
    content: dict[str, Any] = {**dataclasses.asdict(plot), "kind": _KINDS[type(plot)], "files": dict(files)}
    for part in (*content.get("series", ()), {"points": content.get("bars", ())}):
        for point in part["points"]:
            point["place"] = None if point["place"] is None else place.get(point["place"])
    return content


def provenance_table(points: Sequence[ReportPoint]) -> list[dict[str, Any]]:
    """Say which commits, versions, machines, ... the points come from.

    Returns:
        For each entry its values with the number of points.
    """
    found: dict[str, Counter[str]] = {}
    for point in points:
        known = dict(_laid_out(point.provenance))
        time = str(known.pop("time_utc", ""))[:10]
        for drop in ("command", "working_folder", "overrides"):
            known.pop(drop, None)
        for name, value in {**known, "date": time or "not noted"}.items():
            found.setdefault(name, Counter())[value] += 1
    return [{"name": name, "values": list(map(list, counts.most_common(6)))} for name, counts in found.items()]


_NEEDLE_CAPTION = "Mean score of the questions whose needle lies at that depth, in prompts of that length."


def _needles(points: Sequence[ReportPoint]) -> list[Plot]:
    grids = []
    for name, members in needle_sets(points).items():
        grid = depth_length(members)
        if grid is not None:
            grids.append(dataclasses.replace(grid, title=name))
    if not grids:
        return []
    return [grid_plot("needle", "Score by depth and length of the needle", _NEEDLE_CAPTION, grids)]


def _section(part: Section, files: Mapping[tuple[str, str], Mapping[str, str]]) -> dict[str, Any]:
    local = dict(enumerate(part.places))
    plots = [plot_json(plot, files.get((part.slug, plot.slug), {}), local) for plot in part.plots]
    if part.needles:
        return {"slug": part.slug, "title": part.title, "plots": plots, "points": [], "needles": True}
    filled, empty = page_table.columns_of(part.points)
    return {
        "slug": part.slug,
        "title": part.title,
        "needles": False,
        "metric": main_metric(part.points),
        "band": None if (band := dense_band(part.points)) is None else dataclasses.asdict(band),
        "headline": headline(part.points),
        "plots": plots,
        "heads": [
            {"slug": plot.slug, "title": plot.title, "files": files.get((part.slug, plot.slug), {})}
            for plot in part.head_plots
        ],
        "headPoints": sorted({grid.title for plot in part.head_plots for grid in plot.grids}),
        "tableFiles": files.get((part.slug, "points"), {}),
        "columns": page_table.heads(filled),
        "empty": [column.head for column in empty],
        "points": [
            {
                "place": place,
                "id": point.id,
                "name": point.name,
                "dense": point.is_dense,
                "verdict": verdict_word(point),
                "text": verdict_text(point),
                "cells": page_table.cells(point, filled),
            }
            for place, point in zip(part.places, part.points, strict=True)
        ],
    }


def _example(pair: Pair, metric: str) -> dict[str, Any]:
    row = pair.row
    told = {name: value for name, value in row.metadata.items() if name not in _NOT_SHOWN}
    return {
        "key": pair.key,
        "about": {name: plain_json(value) for name, value in told.items() if isinstance(value, str | int | float)},
        "answers": list(row.answers),
        "prefix": row.answer_prefix,
        "dense": _answer(pair.dense, pair.dense_scores.get(metric)),
        "sparse": _answer(pair.sparse, pair.sparse_scores.get(metric)),
    }


def _answer(row: PredictionRow | None, score: float | None) -> dict[str, Any] | None:
    if row is None:
        return None
    found = {"status": row.status, "text": row.prediction, "score": plain_json(score), "error": row.error}
    found |= {"tokens": row.num_answer_tokens, "stop": row.stop_reason, "density": row.density_measured}
    return {name: value for name, value in found.items() if value is not None}


def _laid_out(entries: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Lay provenance out as names and texts; an entry that is None was not found out."""
    found: list[tuple[str, str]] = []
    for name, value in entries.items():
        if isinstance(value, Mapping):
            found += _laid_out(value, f"{prefix}{name} ")
        elif isinstance(value, list | tuple):
            found.append((f"{prefix}{name}", " ".join(map(str, value)) or "none"))
        else:
            found.append((f"{prefix}{name}", "not noted" if value is None else str(value)))
    return found
