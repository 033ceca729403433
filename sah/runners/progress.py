"""The progress bar of a group."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


@contextmanager
def answers_bar(answers: int, contexts: int) -> Iterator[Callable[[int, str | None], None]]:
    """Show how many rows (answers, and readings of dense answers) are there and how long the rest will take.

    Args:
        answers: Rows to make.
        contexts: Contexts that they belong to.

    Yields:
        A function that takes the answers that have come since, and the name of a context when its work begins.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("rows"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(f"context 0/{contexts}", total=answers)
        begun: set[str] = set()  # one may be begun again, when a worker died over it

        def advance(number: int, context: str | None) -> None:
            if context is not None:
                begun.add(context)
            progress.update(task, advance=number, description=f"context {len(begun)}/{contexts}")

        yield advance
