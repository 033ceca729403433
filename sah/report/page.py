"""Writes the page of a report: one folder that a browser opens without a network, and the files of its figures.

`index.html` and what lies in `assets/` are the same for every report. `data/index.js` holds the overview and
`data/p<n>.js` the rows of a point, which the page loads when they are asked for. They are scripts, since a browser
reads no other files from a folder; they hold JSON alone, and the page puts every text into the document as text.
"""

from __future__ import annotations

import contextlib
import importlib.resources
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sah.errors import ConfigError, StateError
from sah.report import page_table
from sah.report.load import ReportData
from sah.report.page_data import Section, index, point_file, sections
from sah.report.pictures import FORMATS, draw_plot, drawing
from sah.report.plot_files import Cell, plot_lines, write_csv
from sah.report.verdict_lines import judged, verdict_word
from sah.results.rows import plain_json

PAGE = "index.html"
_MARK = Path("assets") / "core.js"
"""Written first; a folder that has it holds an earlier report, whose files may go."""

Files = dict[tuple[str, str], Mapping[str, str]]


def write_report(data: ReportData, output: Path) -> Path:
    """Write a report.

    Args:
        data: What it shows.
        output: Its folder; an earlier report there is replaced.

    Returns:
        The page to open.

    Raises:
        StateError: If the folder cannot be written, or holds something else.
    """
    try:
        _make_room(output)
        data = judged(data)
        parts = sections(data)
        files, notes = _figures(parts, output / "figures")
        for part in parts:
            for place, point in zip(part.places, () if part.needles else part.points, strict=True):
                _script(output / "data" / f"p{place}.js", f"p{place}", point_file(point))
        _script(output / "data" / "index.js", "index", index(data, parts, files, notes))
    except OSError as error:
        raise StateError(
            f"The report cannot be written to {output}: {error.strerror or error}. "
            "Results are untouched. Choose another folder with --output DIR."
        ) from error
    return output / PAGE


def _make_room(output: Path) -> None:
    """Make the folder, with the files that are the same in every report, and take an earlier report's data away."""
    if output.is_dir() and not (output / _MARK).is_file() and any(output.iterdir()):
        raise StateError(f"{output} holds something else than a report. Choose another folder with --output DIR.")
    for name in ("assets", "data", "figures"):
        (output / name).mkdir(parents=True, exist_ok=True)
    assets = sorted(importlib.resources.files("sah.report").joinpath("assets").iterdir(), key=lambda asset: asset.name)
    for asset in assets:
        target = output / PAGE if asset.name == PAGE else output / "assets" / asset.name
        target.write_bytes(asset.read_bytes())
    for pattern in ("data/*.js", "figures/*.png", "figures/*.svg", "figures/*.csv"):
        for old in output.glob(pattern):
            old.unlink()


def _figures(parts: list[Section], folder: Path) -> tuple[Files, list[str]]:
    """Write the files of all figures and tables; returns them, and notes on those that could not be made."""
    files: Files = {}
    notes: list[str] = []
    formats: tuple[str, ...] = ()
    drawn: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    try:
        drawn = drawing()
        formats = FORMATS
    except ConfigError as error:
        notes.append(f"The figures are on this page and as CSV files, but not as PNG and SVG files. {error}")
    with drawn:
        for part in parts:
            for plot in (*part.plots, *part.head_plots):
                stem = folder / f"{part.slug}-{plot.slug}"
                write_csv(stem.with_suffix(".csv"), plot_lines(plot, [point.id for point in part.points]))
                if formats:
                    draw_plot(plot, stem)
                files[part.slug, plot.slug] = {kind: f"figures/{stem.name}.{kind}" for kind in (*formats, "csv")}
            if not part.needles:
                write_csv(folder / f"{part.slug}-points.csv", _table_lines(part))
                files[part.slug, "points"] = {"csv": f"figures/{part.slug}-points.csv"}
    return files, notes


def _table_lines(part: Section) -> list[list[Cell]]:
    columns, _ = page_table.columns_of(part.points)
    head: list[Cell] = ["setting", "point", "verdict"]
    for column in columns:
        head += [column.head, *([f"{column.head} low", f"{column.head} high"] if column.low else [])]
    lines = [head]
    for point in part.points:
        cells: list[Cell] = [point.name, point.id, verdict_word(point)]
        for column in columns:
            ends = [column.low(point), column.high(point)] if column.low and column.high else []
            cells += [column.read(point), *ends]
        lines.append(cells)
    return lines


def _script(path: Path, name: str, content: Mapping[str, Any]) -> None:
    """Write JSON as a script that hands it to the page. ASCII alone, with no `<` that could end a script."""
    text = json.dumps(plain_json(content), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    path.write_text(f"sahData({json.dumps(name)},{text});\n", encoding="ascii")
