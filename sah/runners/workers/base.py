"""What every kind of workers offers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sah.runners.tasks import ContextWork, GroupSpec, Outcome


class Sink(Protocol):
    """The one writer of a group's rows; see `sah.runners.group.RowSink`."""

    def begin(self, work: ContextWork) -> ContextWork | None:
        """Take a context for work; returns what is to do, or None if nothing is. `end` must follow unless None."""

    def add(self, number: int, outcome: Outcome) -> None:
        """Write one row, or take the setting of that number out."""

    def remaining(self, work: ContextWork) -> ContextWork | None:
        """Return what of a context's work has no row yet, or None."""

    def has(self, number: int, key: str) -> bool:
        """Tell whether the answer of that row's key is stored for the setting of that number."""

    def end(self, work: ContextWork) -> None:
        """Give the context back."""


class Workers(Protocol):
    """Computes contexts somewhere else and brings every row to the sink as soon as it is there."""

    def run(self, spec: GroupSpec, works: Sequence[ContextWork], sink: Sink) -> None:
        """Compute all works of a group.

        Args:
            spec: What the works have in common.
            works: The contexts.
            sink: Takes the rows. It is called by this thread alone.

        Raises:
            WorkerError: If no workers can be had. What they would have computed must not be computed here instead.
            StateError: If the sink cannot write.

        A context over which more workers died than may try it gets failed rows, so that the others go on.
        """
