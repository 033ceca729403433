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
        _times(point, point.question_ms, 0),
        _times(point, point.decode_ms, 1),
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
    lines: list[str] = []
    known = [point for point in points if point.decode_speed_up is not None]
    if known:
        faster = [f"{p.label} {p.decode_speed_up:.2f}x" for p in known if (p.decode_speed_up or 0) > 1.05]
        verdict = f"Decode faster than dense: {', '.join(faster)}." if faster else "Decode: no speed-up over dense."
        lines.append(f"{verdict} Wall times of single questions, against the model's own attention in the same run.")
    if any(_from_another_run(point) for point in points):
        lines.append("* Dense times were taken with another point and must not be compared with the sparse ones.")
    return " ".join(lines)


def _from_another_run(point: PointSummary) -> bool:
    return not point.timed_together and None not in point.decode_ms


def _times(point: PointSummary, milliseconds: tuple[float | None, float | None], digits: int) -> str:
    mark = "*" if _from_another_run(point) else ""
    return f"{_number(milliseconds[0], digits)}{mark} / {_number(milliseconds[1], digits)}"


def _number(value: float | None, digits: int, *, sign: bool = False) -> str:
    if value is None:
        return "-"
    return f"{value:{'+' if sign else ''}.{digits}f}"
