"""What dead workers leave undone: tried again up to a limit, then told in rows."""

from __future__ import annotations

import logging
from collections import Counter

from sah.config.launcher import PREFIX
from sah.errors import WorkerError
from sah.runners.made_rows import failed_fidelity, failed_row
from sah.runners.tasks import ContextWork, GroupSpec
from sah.runners.workers.base import Sink

_log = logging.getLogger(__name__)


class Losses:
    """Counts, for each context of a group, the workers that died over it.

    Args:
        spec: The group.
        sink: Gets failed rows for what is given up.
        retries: How often a context is given to another worker.
        kind: What a worker is, e.g. `Ray worker`.
    """

    def __init__(self, spec: GroupSpec, sink: Sink, retries: int, kind: str) -> None:
        self._spec = spec
        self._sink = sink
        self._retries = retries
        self._kind = kind
        self._deaths: Counter[str] = Counter()
        self._failed_starts = 0

    def started(self) -> None:
        """Note that a worker has come up."""
        self._failed_starts = 0

    def start_failed(self, reason: str) -> None:
        """Note that a worker died before it began.

        Args:
            reason: What is known of it.

        Raises:
            WorkerError: If as many in a row did as are tried.
        """
        self._failed_starts += 1
        if self._failed_starts > self._retries:
            times = "A" if self._failed_starts == 1 else f"{self._failed_starts} times in a row a"
            raise WorkerError(
                f"{times} {self._kind} died before it began. {reason}\n"
                "All finished answers are kept. Mend what ends it, and run the same command again."
            )
        _log.warning("A %s died before it began; another one is started. %s", self._kind, reason)

    def died(self, work: ContextWork, reason: str) -> ContextWork | None:
        """Note that a worker died over a context.

        Args:
            work: The context, which the sink has begun.
            reason: What is known of the death.

        Returns:
            What of it is to be given to another worker; None if nothing is left, or it is given up. Its rows then say
            so, and the same command tries them again.
        """
        rest = self._sink.remaining(work)
        if rest is None:
            return None
        key = work.example.key
        self._deaths[key] += 1
        deaths = self._deaths[key]
        if deaths <= self._retries:
            left = rest.rows
            _log.warning("A %s died over context %s; %d rows go to another. %s", self._kind, key, left, reason)
            return rest
        times = "once" if deaths == 1 else f"{deaths} times"
        told = (
            f"A {self._kind} died over this context {times}, as often as {PREFIX}.retries={self._retries} allows. "
            f"{reason}"
        )
        _log.error("Context %s is given up, %d rows are missing. %s", key, rest.rows, told)
        for number, index in rest.pending:
            row = failed_row(self._spec.settings[number], work.example, index, "model_failed", told)
            self._sink.add(number, row)
        for number, index in rest.forced:
            self._sink.add(number, failed_fidelity(work.example, index, told))
        return None
