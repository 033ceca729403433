"""The table of points, for the terminal and for Markdown pages."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from sah.report.summary import PointSummary
from sah.report.timing import FASTER, verdict

_FILE_WIDTH = 250

COLUMNS = (
    "setting",
    "sparse in",
    "questions",
    "dense",
    "sparse",
    "difference",
    "verdict",
    "density requested",
    "density measured",
    "prefill s",
    "question ms dense / sparse",
    "decode ms a token dense / sparse",
)

NO_TIMES = "- / -"

_TEXTS = ("setting", "sparse in", "verdict")
"""Columns of words; all others hold numbers."""

TIMES = COLUMNS[-2:]
"""Columns of times, left out of a table where no line has any: answers that were decoded together have none."""

ATTENTION = "attention ms an answer dense / sparse (choosing keys)"
"""A further column, which a table has where answers were decoded together."""

PREFILL_DENSITY = "prefill density"
"""A further column, which a table has where a prefill was sparse."""

OUTPUT_ERROR = "output error"
"""A further column, which a table has only where it was measured."""


def cells(point: PointSummary) -> list[str]:
    """Write the cells of one line, in the order of `COLUMNS`; a dash stands for what was not measured."""
    questions = f"{point.questions}" + (f" ({point.failed} failed)" if point.failed else "")
    return [
        point.label + point.behind,
        point.sparse_in or "-",
        questions,
        number(point.dense, 3),
        number(point.sparse, 3),
        difference(point),
        point.shown_verdict or "-",
        number(point.density_requested, 3),
        number(point.density_measured, 4),
        _prefill(point),
        _times(point, point.question_ms, 0),
        _decode_times(point),
    ]


def _lines(points: Sequence[PointSummary]) -> list[list[str]]:
    """Write all cells, the columns' names in the first line."""
    lines = [list(COLUMNS), *(cells(point) for point in points)]
    if any(point.prefill for point in points):
        place = COLUMNS.index("prefill s")
        texts = [number(point.prefill_density, 4) if point.prefill else "-" for point in points]
        for line, text in zip(lines, [PREFILL_DENSITY, *texts], strict=True):
            line.insert(place, text)
    if any(point.output_error is not None for point in points):
        place = COLUMNS.index("density measured") + 1
        for line, text in zip(lines, [OUTPUT_ERROR, *(number(p.output_error, 4) for p in points)], strict=True):
            line.insert(place, text)
    if any(point.attention_ms != (None, None) for point in points):
        place = lines[0].index(TIMES[0])
        for line, text in zip(lines, [ATTENTION, *map(_attention, points)], strict=True):
            line.insert(place, text)
    empty = [place for place, name in enumerate(lines[0]) if name in TIMES and not _has_any(lines, place)]
    return [[cell for place, cell in enumerate(line) if place not in empty] for line in lines]


def _prefill(point: PointSummary) -> str:
    """Write the seconds of a prefill, beside a sparse one those of the dense prefills of the same run."""
    own = number(point.prefill_seconds, 2) if point.prefill_seconds is not None else "shared"
    beside = point.dense_prefill_seconds if point.prefill_speed_up is not None else None
    return own if beside is None else f"{own} (dense {number(beside, 2)})"


def _has_any(lines: Sequence[Sequence[str]], place: int) -> bool:
    return any(line[place] != NO_TIMES for line in lines[1:])


def difference(point: PointSummary) -> str:
    """Write the difference from dense, with its interval where there is one."""
    written = number(point.difference, 3, sign=True)
    if point.low is None or point.high is None:
        return written
    return f"{written} [{number(point.low, 2, sign=True)}, {number(point.high, 2, sign=True)}]"


def _attention(point: PointSummary) -> str:
    dense, sparse = (number(part, 0) for part in point.attention_ms)
    return f"{dense} / {sparse}" + ("" if point.selection_ms is None else f" ({number(point.selection_ms, 0)})")


def terminal_table(points: Sequence[PointSummary], title: str) -> Table:
    """Build the table for a terminal.

    Args:
        points: Lines.
        title: What stands above.

    Returns:
        A rich table.
    """
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    names, *lines = _lines(points)
    for column in names:
        table.add_column(column, justify="left" if column in _TEXTS else "right", overflow="fold")
    for line in lines:
        table.add_row(*line)
    return table


def print_table(points: Sequence[PointSummary], title: str) -> None:
    """Print the table of points."""
    print_built(terminal_table(points, title))


def print_built(table: Table) -> None:
    """Print a table; where the output is no terminal its width is fixed, so that files read well."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_FILE_WIDTH)
    console.print(table)


def print_lines(*lines: str) -> None:
    """Print lines as they are, without wrapping; empty ones are left out."""
    for line in filter(None, lines):
        Console().print(line, highlight=False, soft_wrap=True, markup=False)


def markdown_table(points: Sequence[PointSummary]) -> str:
    """Build the table as Markdown, a newline at its end."""
    names, *lines = _lines(points)
    rule = ["---" if column in _TEXTS else "---:" for column in names]
    return "".join(f"| {' | '.join(line)} |\n" for line in [names, rule, *lines])


def line_order(point: PointSummary) -> tuple[bool, str, float]:
    """Give what lines are sorted by where their own order says nothing: dense, then by setting and density."""
    return point.sparse_in is not None, point.setting, point.density_requested or point.density_measured or 0.0


def fidelity_note(points: Sequence[PointSummary]) -> str:
    """Say where next tokens could not be compared with dense's; empty where that worked for all questions."""
    failed = [
        f"{point.name} {point.fidelity_rows[1]} of {point.fidelity_rows[0]}"
        for point in points
        if point.fidelity_rows is not None and point.fidelity_rows[1]
    ]
    if not failed:
        return ""
    return f"Fidelity failed for some questions, which its figures leave out: {', '.join(failed)}."


def error_note(points: Sequence[PointSummary]) -> str:
    """Say how many queries stand behind the output errors; empty where that is not known of any."""
    known = [point.error_queries for point in points if point.error_queries is not None]
    if not known:
        return ""
    fewest, most = min(low for low, _ in known), max(high for _, high in known)
    return f"Output error is a mean over {queries_words((fewest, most))}, sampled in each point."


def queries_words(queries: tuple[int, int]) -> str:
    """Write how many queries of a layer were looked at, the fewest and the most."""
    fewest, most = queries
    if fewest == most:
        return f"{most} {'query' if most == 1 else 'queries'} a layer"
    return f"{fewest} to {most} queries a layer"


def speed_note(points: Sequence[PointSummary]) -> str:
    """Say in words whether sparse decoding was faster than the dense decoding of the same run."""
    lines: list[str] = []
    timed = [verdict(point.name, point.timed) for point in points if point.timed is not None]
    if timed:
        lines.append(f"Timed decode, one question at a time, all forms in turn: {'. '.join(timed)}.")
    known = [point for point in points if point.timed is None and point.decode_speed_up is not None]
    if known:
        faster = [f"{p.setting} {p.decode_speed_up:.2f}x" for p in known if (p.decode_speed_up or 0) > FASTER]
        told = f"Decode faster than dense: {', '.join(faster)}." if faster else "Decode: no speed-up over dense."
        lines.append(f"{told} Wall times of single questions, against the model's own attention in the same run.")
    if told_prefills := _prefill_speeds(points):
        lines.append(told_prefills)
    elif not lines and any(point.attention_ms != (None, None) for point in points):
        lines.append("Answers were decoded together; timing=true takes times a token, one question at a time.")
    if any(_from_another_run(point) for point in points):
        lines.append("* Dense times were taken with another point and must not be compared with the sparse ones.")
    return " ".join(lines)


def _prefill_speeds(points: Sequence[PointSummary]) -> str:
    """Say how sparse prefills compare with the dense ones of the same run; empty where none was timed beside one."""
    found: dict[str, float] = {}
    for point in points:
        if point.prefill_speed_up is not None:
            found.setdefault(point.prefill, point.prefill_speed_up)
    if not found:
        return ""
    faster = [f"{name} {speed_up:.2f}x" for name, speed_up in found.items() if speed_up > FASTER]
    slower = [f"{name} {speed_up:.2f}x" for name, speed_up in found.items() if speed_up <= FASTER]
    told = [f"faster than dense: {', '.join(faster)}"] if faster else []
    told += [f"no speed-up over dense: {', '.join(slower)}"] if slower else []
    return f"Prefill {'; '.join(told)}. Wall times of the contexts' prefills in the same run."


def _from_another_run(point: PointSummary) -> bool:
    return not point.timed_together and None not in point.decode_ms


def _decode_times(point: PointSummary) -> str:
    timed = point.timed
    if timed is None:
        return _times(point, point.decode_ms, 1)
    sparse = None if timed.sparse is None else timed.sparse.token
    return f"{timed.dense.token:.1f} ({timed.dense_form}) / {number(sparse, 1)} timed"


def _times(point: PointSummary, milliseconds: tuple[float | None, float | None], digits: int) -> str:
    mark = "*" if _from_another_run(point) else ""
    return f"{number(milliseconds[0], digits)}{mark} / {number(milliseconds[1], digits)}"


def number(value: float | None, digits: int, *, sign: bool = False) -> str:
    """Write a number with a fixed count of digits; a dash where it is None."""
    if value is None:
        return "-"
    return f"{value:{'+' if sign else ''}.{digits}f}"
