"""Printing: a fixed width and no colours where the output is no terminal, and lines of blocks for series of numbers."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

FILE_WIDTH = 190
"""Characters of a line where the output is no terminal, as in the tables of a run."""

BLOCKS = "▁▂▃▄▅▆▇█"
_PLAIN_BLOCKS = "_.-:=+*#"
_GAP = " "


def console() -> Console:
    """Make a console on the present standard output."""
    built = Console(highlight=False)
    return built if built.is_terminal else Console(width=FILE_WIDTH, highlight=False)


def show_line(target: Console, text: str = "", style: str = "") -> None:
    """Print text as it is: not wrapped by us, and brackets are no markup."""
    target.print(Text(text, style=style), soft_wrap=True)


def show_title(target: Console, text: str) -> None:
    """Print a headline with an empty line above it."""
    show_line(target)
    show_line(target, text, "bold")


def show_json(value: Any) -> None:
    """Print JSON for machines: no colours, not wrapped. Numbers that JSON lacks are null."""
    from sah.results.rows import plain_json

    sys.stdout.write(json.dumps(plain_json(value), indent=2, ensure_ascii=False) + "\n")


def grid(names: Sequence[str], lines: Iterable[Sequence[str]], left: Sequence[int] = (0,)) -> Table:
    """Build a table.

    Args:
        names: Heads of its columns.
        lines: Cells, as plain text.
        left: Places of the columns that hold words; the others hold numbers.

    Returns:
        A rich table.
    """
    table = Table(box=box.SIMPLE_HEAD)
    for place, name in enumerate(names):
        table.add_column(name, justify="left" if place in left else "right", overflow="fold")
    for line in lines:
        table.add_row(*map(Text, line))  # as text, since rich takes [topk] for markup
    return table


def show_columns(target: Console, lines: Sequence[Sequence[str]], style: str = "bold") -> None:
    """Print lines of words in columns. On a terminal the last column is wrapped; in a file every line stays one.

    Args:
        target: Where to.
        lines: Cells, the same count in each line.
        style: Of the first column.
    """
    if not lines:
        return
    if not target.is_terminal:
        widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]) - 1)]
        for line in lines:
            padded = [cell.ljust(width) for cell, width in zip(line, widths, strict=False)]
            show_line(target, "  ".join(["", *padded, line[-1]]).rstrip())
        return
    table = Table.grid(padding=(0, 2))
    last = len(lines[0]) - 1
    for place in range(last + 1):
        table.add_column(style=style if place == 0 else "", no_wrap=place < last, overflow="fold")
    for line in lines:
        table.add_row(*(Text(("  " if place == 0 else "") + cell) for place, cell in enumerate(line)))
    target.print(table)


def sparkline(values: Sequence[float | None], low: float, high: float) -> str:
    """Draw numbers as blocks of eight heights, one character each.

    Args:
        values: The numbers; None, which was not measured, leaves a gap.
        low: The number of the lowest block; numbers below it get the same.
        high: The number of the highest block. Where it is not above `low`, all blocks are of middle height.

    Returns:
        As many characters as values; other signs where the output's encoding has no blocks.
    """
    blocks = BLOCKS if _can_print(BLOCKS) else _PLAIN_BLOCKS
    drawn = []
    for value in values:
        if value is None:
            drawn.append(_GAP)
        elif high <= low:
            drawn.append(blocks[len(blocks) // 2])
        else:
            share = min(max((value - low) / (high - low), 0.0), 1.0)
            drawn.append(blocks[min(int(share * len(blocks)), len(blocks) - 1)])
    return "".join(drawn)


def resampled(values: Sequence[float | None], most: int) -> list[float | None]:
    """Shorten a long series to `most` means of neighbours; a shorter one stays as it is."""
    if len(values) <= most:
        return list(values)
    shorter: list[float | None] = []
    for place in range(most):
        part = values[place * len(values) // most : (place + 1) * len(values) // most]
        known = [value for value in part if value is not None]
        shorter.append(sum(known) / len(known) if known else None)
    return shorter


def figure(value: float | None, digits: int = 3, *, sign: bool = False) -> str:
    """Write a number with digits that count, or say that it was not measured."""
    if value is None:
        return "not measured"
    return f"{value:{'+' if sign else ''}.{digits}f}"


def interval(value: float | None, low: float | None, high: float | None, digits: int = 3, *, sign: bool = False) -> str:
    """Write a number with its interval where there is one: `0.812 [0.640, 0.925]`."""
    written = figure(value, digits, sign=sign)
    if value is None or low is None or high is None:
        return written
    return f"{written} [{figure(low, digits, sign=sign)}, {figure(high, digits, sign=sign)}]"


def shortened(text: str, most: int) -> str:
    """Write text on one line, cut after `most` characters; a model's answer may hold what would move the cursor."""
    line = "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))
    return line if len(line) <= most else f"{line[: most - 3]}..."


def _can_print(text: str) -> bool:
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
