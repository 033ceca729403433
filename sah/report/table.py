"""The table of points, for the terminal and for Markdown pages."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from sah.report.summary import PointSummary

_FILE_WIDTH = 160

COLUMNS = (
    "setting",
    "questions",
    "dense",
    "sparse",
    "difference",
    "density requested",
    "density measured",
    "prefill s",
    "question ms dense / sparse",
    "decode ms a token dense / sparse",
)


def cells(point: PointSummary) -> list[str]:
    """Write the cells of one line, in the order of `COLUMNS`; a dash stands for what was not measured."""
    questions = f"{point.questions}" + (f" ({point.failed} failed)" if point.failed else "")
    return [
        point.label,
        questions,
        _number(point.dense, 3),
        _number(point.sparse, 3),
        _number(point.difference, 3, sign=True),
        _number(point.density_requested, 3),
        _number(point.density_measured, 4),
        _number(point.prefill_seconds, 2) if point.prefill_seconds is not None else "shared",
        f"{_number(point.question_ms[0], 0)} / {_number(point.question_ms[1], 0)}",
        f"{_number(point.decode_ms[0], 1)} / {_number(point.decode_ms[1], 1)}",
    ]


def terminal_table(points: Sequence[PointSummary], title: str) -> Table:
    """Build the table for a terminal.

    Args:
        points: Lines.
        title: What stands above.

    Returns:
        A rich table.
    """
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for index, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    for point in points:
        table.add_row(*cells(point))
    return table


def print_table(points: Sequence[PointSummary], title: str) -> None:
    """Print the table; where the output is no terminal its width is fixed, so that files read well."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_FILE_WIDTH)
    console.print(terminal_table(points, title))


def print_lines(*lines: str) -> None:
    """Print lines as they are, without wrapping; empty ones are left out."""
    for line in filter(None, lines):
        Console().print(line, highlight=False, soft_wrap=True, markup=False)


def markdown_table(points: Sequence[PointSummary]) -> str:
    """Build the table as Markdown, a newline at its end."""
    lines = [COLUMNS, tuple("---" if index == 0 else "---:" for index in range(len(COLUMNS)))]
    return "".join(f"| {' | '.join(line)} |\n" for line in [*lines, *(tuple(cells(point)) for point in points)])


def speed_note(points: Sequence[PointSummary]) -> str:
    """Say in words whether sparse decoding was faster than the dense decoding of the same run."""
    known = [point for point in points if point.decode_speed_up is not None]
    if not known:
        return ""
    faster = [f"{p.label} {p.decode_speed_up:.2f}x" for p in known if (p.decode_speed_up or 0) > 1.05]
    basis = "Times are wall times of single questions, against the model's own attention in the same run."
    if faster:
        return f"Decode faster than dense: {', '.join(faster)}. {basis}"
    return f"Decode: no speed-up over dense. {basis}"


def _number(value: float | None, digits: int, *, sign: bool = False) -> str:
    if value is None:
        return "-"
    return f"{value:{'+' if sign else ''}.{digits}f}"
