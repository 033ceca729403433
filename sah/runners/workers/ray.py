"""Workers as actors of Ray, on this machine or on a cluster."""

from __future__ import annotations

import json
import logging
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sah.config.launcher import PREFIX, RayOptions
from sah.errors import WorkerError, missing_extra
from sah.runners.session import Session
from sah.runners.tasks import ContextWork, GroupSpec
from sah.runners.work import GroupWorker
from sah.runners.workers.base import Sink
from sah.runners.workers.losses import Losses
from sah.runners.workers.messages import Answered, Broken, LogRelay, Started, Told, decode, encode, work_through
from sah.runners.workers.ray_cluster import RayCluster

_log = logging.getLogger(__name__)

PATIENCE_SECONDS = 30.0
"""How long no worker comes up before the log says what is waited for."""


class RayWorkers:
    """Hands contexts to actors, one at a time each, and brings their rows to the sink as they come.

    Args:
        workers: Most actors.
        retries: How often a context is given to another actor when one died over it.
        options: Where they run and what each holds.

    Raises:
        ConfigError: If Ray is not installed.
    """

    def __init__(self, workers: int, retries: int, options: RayOptions) -> None:
        try:
            import ray
        except ImportError as error:
            raise missing_extra("ray", "ray", f"{PREFIX}.backend=ray") from error
        self._ray: Any = ray
        self._workers = workers
        self._retries = retries
        self._options = options

    def run(self, spec: GroupSpec, works: Sequence[ContextWork], sink: Sink) -> None:
        """Compute all works of a group; see `Workers.run`.

        Raises:
            WorkerError: If the cluster cannot be had, has no room for the workers, or they do not come up.
            StateError: If the sink cannot write.
        """
        cluster = RayCluster(self._ray, self._options)
        cluster.connect()
        resources = cluster.check_room(self._workers)
        crew = _Crew(self._ray, spec, resources, min(self._workers, len(works)))
        try:
            _Round(self._ray, crew, works, sink, Losses(spec, sink, self._retries, "Ray worker")).run()
        finally:
            crew.dismiss()


class Actor:
    """The process of a worker: a group and caches of its own.

    Args:
        spec: The group.
        folder: The main process's working folder, to which relative paths refer.
    """

    def __init__(self, spec: GroupSpec, folder: str) -> None:
        if os.path.isdir(folder):
            os.chdir(folder)
        self._worker = GroupWorker(spec, Session())

    def answer(self, work: ContextWork) -> Iterator[bytes]:
        """Answer one context.

        Args:
            work: The context.

        Yields:
            Messages, encoded.
        """
        for message in work_through(self._worker, [work]):
            yield encode(message)


class _Crew:
    """The actors of a group. They end with it, since Ray gives what they hold to nobody else."""

    def __init__(self, ray: Any, spec: GroupSpec, resources: Mapping[str, float], size: int) -> None:
        self._ray = ray
        self._spec = ray.put(spec)
        self._class = ray.remote(Actor).options(max_restarts=0, max_task_retries=0, **resources)
        self._actors: list[Any] = []
        self._idle: list[Any] = []
        self._size = size

    def has_free(self) -> bool:
        """Tell whether `take` can give an actor."""
        return bool(self._idle) or len(self._actors) < self._size

    def take(self) -> Any:
        """Give an actor without work, a new one if none is left."""
        if self._idle:
            return self._idle.pop()
        actor = self._class.remote(self._spec, os.getcwd())
        self._actors.append(actor)
        return actor

    def give_back(self, actor: Any) -> None:
        self._idle.append(actor)

    def forget(self, actor: Any) -> None:
        """Strike off an actor that died."""
        self._actors.remove(actor)

    def dismiss(self) -> None:
        """End all actors."""
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors.clear()
        self._idle.clear()


class _Round:
    """The works of one group on their way through the actors."""

    def __init__(self, ray: Any, crew: _Crew, works: Sequence[ContextWork], sink: Sink, losses: Losses) -> None:
        self._ray = ray
        self._crew = crew
        self._queue = deque(works)
        self._sink = sink
        self._losses = losses
        self._log = LogRelay()
        self._at_work: dict[Any, tuple[Any, ContextWork]] = {}
        """Stream of messages to its actor and its context."""
        self._began: set[Any] = set()
        """Streams that have brought a message."""
        self._waiting_told = False

    def run(self) -> None:
        self._hand_out()
        while self._at_work:
            ready, _ = self._ray.wait(list(self._at_work), num_returns=1, timeout=PATIENCE_SECONDS)
            if ready:
                self._read(ready[0])
            elif not self._began and not self._waiting_told:
                self._waiting_told = True
                _log.warning("No Ray worker has come up yet; free in the cluster: %s", self._ray.available_resources())
            self._hand_out()

    def _hand_out(self) -> None:
        while self._queue and self._crew.has_free():
            rest = self._sink.begin(self._queue.popleft())
            if rest is None:
                continue
            actor = self._crew.take()
            stream = actor.answer.options(num_returns="streaming").remote(rest)
            self._at_work[stream] = (actor, rest)

    def _read(self, stream: Any) -> None:
        actor, work = self._at_work[stream]
        exceptions = self._ray.exceptions
        try:
            line = self._ray.get(next(stream))
        except StopIteration:
            self._end(stream)
            self._crew.give_back(actor)
            return
        except exceptions.RayTaskError as error:
            raise WorkerError(f"A Ray worker failed, as any other would: {error}") from error
        except exceptions.RayError as error:
            self._lost(stream, error)
            return
        self._began.add(stream)
        match decode(json.loads(line)):
            case Started():
                self._losses.started()
            case Answered(setting, outcome):
                self._sink.add(setting, outcome)
            case Told() as told:
                self._log.tell(told)
            case Broken(text):
                raise WorkerError(f"A worker of the group had to stop: {text}")

    def _lost(self, stream: Any, error: Exception) -> None:
        """Give the rest of a dead actor's context to another one, after all contexts that wait."""
        actor, work = self._at_work[stream]
        reason = _reason(error)
        rest: ContextWork | None = work
        if stream in self._began:
            rest = self._losses.died(work, reason)
        else:
            self._losses.start_failed(reason)
        self._end(stream)
        self._crew.forget(actor)
        if rest is not None:
            self._queue.append(rest)

    def _end(self, stream: Any) -> None:
        _, work = self._at_work.pop(stream)
        self._began.discard(stream)
        self._sink.end(work)


def _reason(error: Exception) -> str:
    """Take from what Ray says of a death the part that tells why: its own advice is a page long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if "creation task" in lines[0]:
        return f"It could not be made: {lines[-1][:600]}"
    telling = [line.partition(" Some common causes")[0] for line in lines if "exit" in line] or lines
    return " ".join(telling)[:600]
