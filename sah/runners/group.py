"""A group: points that share model and data set, computed together, each context prefilled once a pattern."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from sah.errors import SahError, StateError
from sah.results.rows import PredictionRow, row_key
from sah.runners.open_files import allow_open_files
from sah.runners.point import Arm, Point
from sah.runners.progress import answers_bar
from sah.runners.session import Session
from sah.runners.tasks import ContextWork, GroupSpec, Outcome, Setting, fidelity_name, row_name
from sah.runners.work import GroupWorker
from sah.runners.workers.base import Workers

_log = logging.getLogger(__name__)

DENSE_WAIT_SECONDS = 3600.0
"""How long a run waits while another one computes the dense answers of a context that both need."""


@dataclass(frozen=True)
class Group:
    """Points over the same contexts."""

    points: tuple[Point, ...]
    run: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    """Id of this run, noted with its rows."""

    @property
    def arms(self) -> list[Arm]:
        """Every arm of the points once, dense ones first."""
        dense = {point.dense.store.id: point.dense for point in self.points}
        sparse = {arm.store.id: arm for point in self.points if (arm := point.sparse) is not None}
        return [*dense.values(), *sparse.values()]

    def spec(self) -> GroupSpec:
        """Describe the arms for a worker; settings have the order of `arms`."""
        experiments = {arm.store.id: point.experiment for point in self.points for arm in point.arms}
        references = self.references()
        settings = [
            Setting(arm.store.id, arm.title, experiments[arm.store.id], arm.is_dense, arm.requested_density, reference)
            for arm, reference in zip(self.arms, references, strict=True)
        ]
        first = self.points[0]
        return GroupSpec(tuple(settings), first.context_group, self.run, first.model.identity)

    def references(self) -> list[int | None]:
        """Return the number of the dense arm that each arm is compared with."""
        numbers = {arm.store.id: number for number, arm in enumerate(self.arms)}
        dense = {p.sparse.store.id: numbers[p.dense.store.id] for p in self.points if p.sparse is not None}
        return [dense.get(arm.store.id) for arm in self.arms]

    def works(self) -> list[ContextWork]:
        """List the contexts with something to do, in the order of the examples."""
        arms, references = self.arms, self.references()
        works: list[ContextWork] = []
        examples = {example.key: example for point in self.points for example in point.examples}
        # Points may differ in how many of the data set's examples they take.
        wanted = {(arm.store.id, name) for point in self.points for arm in point.arms for name in point.names(arm)}
        for key, example in examples.items():
            pending: list[tuple[int, int]] = []
            forced: list[tuple[int, int]] = []
            for number, arm in enumerate(arms):
                for index in range(len(example.questions)):
                    name = row_key(key, index)
                    if (arm.store.id, name) in wanted and name not in arm.done and name not in arm.tried:
                        pending.append((number, index))
                    name = fidelity_name(name)
                    if (arm.store.id, name) in wanted and name not in arm.done and name not in arm.tried:
                        forced.append((number, index))
            if pending or forced:
                work = ContextWork(example, tuple(pending), tuple(forced))
                works.append(replace(work, dense_ids=dense_ids_of(work, arms, references)))
        return works


def dense_ids_of(
    work: ContextWork, arms: Sequence[Arm], references: Sequence[int | None]
) -> dict[tuple[int, int], tuple[int, ...]]:
    """Look up the dense answers that sparse settings have still to read.

    Args:
        work: The context and what is to do.
        arms: All arms of the group.
        references: Number of the dense arm that each is compared with.

    Returns:
        Ids by dense setting and question, where they are there.
    """
    found: dict[tuple[int, int], tuple[int, ...]] = {}
    for number, index in work.forced:
        reference = references[number]
        ids = None if reference is None else arms[reference].token_ids.get(row_key(work.example.key, index))
        if reference is not None and ids is not None:
            found[reference, index] = ids
    return found


def group_points(points: Sequence[Point]) -> list[Group]:
    """Bring together the points that share model and data set, in the order of their first ones."""
    found: dict[str, list[Point]] = {}
    for point in points:
        found.setdefault(point.context_group, []).append(point)
    return [Group(tuple(members)) for members in found.values()]


def run_group(
    group: Group,
    session: Session,
    provenance_of: Callable[[Point], Mapping[str, Any]],
    workers: Workers | None = None,
) -> None:
    """Compute the rows that are missing, appending each as it is made.

    Sparse stores belong to this run alone while it lasts. Dense ones are shared by all points on the same examples, so
    this process takes them for the context at work only; with workers, several contexts are at work nearly all the
    time, and they are held until the group is done. Another run on the same examples waits for them,
    `DENSE_WAIT_SECONDS` at most, and ends with the lock's message then; rows of both are safe.

    What ends one point (its store is another run's, its recipe proves unusable) is kept in `session.errors` under its
    store's folder, and the others go on.

    Args:
        group: The group.
        session: Caches of the process.
        provenance_of: What is known of a point's run; noted with every arm that gets rows, before the first of them.
        workers: Who computes; None for this process alone.

    Raises:
        StateError: If rows cannot be written. All rows before are safe.
    """
    with ExitStack() as stack:
        # Every sparse store is held open: its lock and its rows.
        allow_open_files(2 * len(group.points) + 256)
        sink = RowSink(group, session, provenance_of, stack)
        works = group.works()
        if not works:
            return
        total = sum(work.rows for work in works)
        sink.show(stack.enter_context(answers_bar(total, len(works))))
        if workers is None:
            _work_here(group.spec(), works, session, sink)
        else:
            sink.hold(works)
            workers.run(group.spec(), works, sink)


def _work_here(spec: GroupSpec, works: Sequence[ContextWork], session: Session, sink: RowSink) -> None:
    worker = GroupWorker(spec, session)
    for work in works:
        rest = sink.begin(work)
        if rest is None:
            continue
        try:
            for setting, outcome in worker.answer(rest):
                sink.add(setting, outcome)
        finally:
            sink.end(rest)


class RowSink:
    """The one writer of a group's rows. Workers of any kind bring them here.

    Args:
        group: The group.
        session: Caches of the process; remembers what was tried and what ended a point.
        provenance_of: What is known of a point's run.
        stack: Closed when the group is done; holds the locks of the sparse stores.
    """

    def __init__(
        self,
        group: Group,
        session: Session,
        provenance_of: Callable[[Point], Mapping[str, Any]],
        stack: ExitStack,
    ) -> None:
        self.arms = group.arms
        self._references = group.references()
        self.session = session
        self._provenance_of = provenance_of
        self._points = {arm.store.id: point for point in group.points[::-1] for arm in point.arms}
        # Points may differ in how many examples they take, and share an arm all the same.
        self._wanted: dict[str, set[str]] = {}
        for point in group.points:
            for arm in point.arms:
                self._wanted.setdefault(arm.store.id, set()).update(point.names(arm))
        self._turns: dict[str, tuple[ExitStack, set[str | None]]] = {}
        """Dense stores that are held, with the example keys at work in them; None until the group is done."""
        self._bar: Callable[[int, str | None], None] = lambda advance, text: None
        self._out: set[int] = set()
        """Numbers of arms that are out: their error is in `session.errors`."""
        stack.callback(self._release)
        for number, arm in enumerate(self.arms):
            session.errors.pop(str(arm.store.folder), None)
            if arm.is_dense or all(self._is_there(arm, key) for key in self._wanted[arm.store.id]):
                continue
            try:
                stack.enter_context(arm.store.writer())
            except StateError as error:
                self._drop(number, error)
                continue
            arm.read()
        out = {self.arms[number].store.id for number in self._out}
        compared = {point.dense.store.id for point in group.points if point.main.store.id not in out}
        # A dense arm of which no point is left has nothing to be compared with.
        self._out |= {n for n, arm in enumerate(self.arms) if arm.is_dense and arm.store.id not in compared}

    def show(self, bar: Callable[[int, str | None], None]) -> None:
        """Tell progress to a bar: how many answers came, and what is at work."""
        self._bar = bar

    def hold(self, works: Sequence[ContextWork]) -> None:
        """Take all dense stores that contexts need, until the group is done. For several contexts at work at a time.

        One that holds a store for one context and waits for another store with the next could wait for a run that does
        the opposite; nor does anybody who reads along with workers have to wait later.

        Args:
            works: All contexts.

        Raises:
            StateError: If a dense store cannot be had.
        """
        for arm in self._dense_arms(works):
            self._take_turn(arm, None)

    def begin(self, work: ContextWork) -> ContextWork | None:
        """Take a context for work. Dense stores are waited for, and what another run has answered is left out.

        Args:
            work: The context.

        Returns:
            What is still to do, for a worker, or None if nothing is. `end` must follow.

        Raises:
            StateError: If a dense store cannot be had.
        """
        for arm in self._dense_arms([work]):
            self._take_turn(arm, work.example.key)
        rest = self.remaining(work)
        self._bar(work.rows - (0 if rest is None else rest.rows), work.example.key[:8])
        if rest is None:
            self.end(work)
            return None
        for number in {setting for setting, _ in (*rest.pending, *rest.forced)}:
            self._note(self.arms[number])
        return rest

    def add(self, number: int, outcome: Outcome) -> None:
        """Write one row, or take a setting out whose recipe cannot be run.

        Args:
            number: The setting's number.
            outcome: The row, or the error that ends the setting. A row that is there already is not written twice.

        Raises:
            StateError: If it cannot be written.
        """
        arm = self.arms[number]
        if isinstance(outcome, SahError):
            self._drop(number, outcome)
            return
        name = row_name(outcome)
        if number in self._out or self._is_there(arm, name):
            return
        arm.store.append(outcome)
        arm.tried.add(name)
        if outcome.status == "ok":
            arm.done.add(name)
            if arm.is_dense and isinstance(outcome, PredictionRow):
                arm.token_ids[name] = outcome.token_ids
        self._bar(1, None)

    def remaining(self, work: ContextWork) -> ContextWork | None:
        """Return what of a context's work has no row yet, or None."""
        key = work.example.key

        def is_missing(number: int, index: int, forced: bool) -> bool:
            name = fidelity_name(row_key(key, index)) if forced else row_key(key, index)
            return number not in self._out and not self._is_there(self.arms[number], name)

        rest = work.only(is_missing)
        return None if rest is None else replace(rest, dense_ids=dense_ids_of(rest, self.arms, self._references))

    def has(self, number: int, key: str) -> bool:
        """Tell whether the store of a setting holds the answer of that row's key."""
        return key in self.arms[number].done

    def end(self, work: ContextWork) -> None:
        """Give a context's turn in the dense stores back."""
        for name, (turn, keys) in list(self._turns.items()):
            keys.discard(work.example.key)
            if not keys:
                del self._turns[name]
                turn.close()

    @staticmethod
    def _is_there(arm: Arm, key: str) -> bool:
        return key in arm.done or key in arm.tried

    def _dense_arms(self, works: Sequence[ContextWork]) -> list[Arm]:
        """List the dense arms of contexts, in one order for all runs.

        Two runs that hold nothing and take the stores that they want in this order never wait for each other.
        """
        numbers = {setting for work in works for setting, _ in work.pending} - self._out
        dense = [self.arms[number] for number in numbers if self.arms[number].is_dense]
        return sorted(dense, key=lambda arm: arm.store.id)

    def _take_turn(self, arm: Arm, example_key: str | None) -> None:
        name = arm.store.id
        if name not in self._turns:
            turn = ExitStack()
            turn.enter_context(arm.store.writer(wait_seconds=DENSE_WAIT_SECONDS))
            self._turns[name] = (turn, set())
            arm.read()
        self._turns[name][1].add(example_key)

    def _release(self) -> None:
        for turn, _ in self._turns.values():
            turn.close()
        self._turns.clear()

    def _note(self, arm: Arm) -> None:
        if not arm.noted:
            arm.store.add_provenance(self._provenance_of(self._points[arm.store.id]))
            arm.noted = True

    def _drop(self, number: int, error: SahError) -> None:
        self._out.add(number)
        self.session.errors[str(self.arms[number].store.folder)] = error
        _log.warning("%s: %s", self.arms[number].title, error)
