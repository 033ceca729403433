"""Workers as actors of Ray, on this machine or on a cluster."""

from __future__ import annotations

import json
import logging
import math
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sah.config.launcher import PREFIX, RayOptions
from sah.errors import WorkerError, bad_value, missing_extra
from sah.runners.session import Session
from sah.runners.work import ContextWork, GroupSpec, GroupWorker
from sah.runners.workers.base import Sink
from sah.runners.workers.losses import Losses
from sah.runners.workers.messages import Answered, Broken, LogRelay, Started, Told, decode, encode, work_through

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
        self._connect()
        resources = self._resources()
        crew = _Crew(self._ray, spec, resources, min(self._workers, len(works)))
        try:
            _Round(self._ray, crew, works, sink, Losses(spec, sink, self._retries, "Ray worker")).run()
        finally:
            crew.dismiss()

    def _connect(self) -> None:
        ray = self._ray
        if ray.is_initialized():
            return
        address = self._options.address
        starts = address is None or address == "local"
        given = {"include_dashboard": False, **self._options.init} if starts else self._options.init
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            ray.init(address=address or "local", **given)
        except (ConnectionError, ValueError, TypeError, RuntimeError, OSError) as error:
            key = f"{PREFIX}.ray.address"
            raise WorkerError(
                f"{key}={address!r} with {PREFIX}.ray.init={self._options.init}: Ray cannot be had: {error}\n"
                f"Allowed: null to start it on this machine, auto, or the address of a cluster. "
                f"Write for example: {key}=auto"
            ) from error

    def _resources(self) -> dict[str, float]:
        """Say what a worker takes, after checking that the cluster has it: Ray itself would wait for ever."""
        ray, options = self._ray, self._options
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        total = ray.cluster_resources()
        asked = options.num_cpus
        if asked is None:
            asked = 1.0 / max(1, math.ceil(self._workers / max(total.get("CPU", 1.0), 1.0)))
        needs = {"num_cpus": ("CPU", asked), "num_gpus": ("GPU", options.num_gpus)}
        for key, (kind, amount) in needs.items():
            largest = max((node.get(kind, 0.0) for node in nodes), default=0.0)
            if amount > largest:
                whole = f"{PREFIX}.ray.{key}"
                allowed = f"at most {largest:g}, the {kind}s of the cluster's largest machine"
                raise WorkerError(str(bad_value(whole, amount, allowed, f"{whole}={largest:g}")))
        places = sum(_places(node, [need for need in needs.values() if need[1] > 0]) for node in nodes)
        if self._workers > places:
            allowed = (
                f"at most {places:g}, since each worker takes {asked:g} CPUs and {options.num_gpus:g} GPUs and the "
                f"cluster has {total.get('CPU', 0.0):g} and {total.get('GPU', 0.0):g}"
            )
            key = f"{PREFIX}.workers"
            raise WorkerError(str(bad_value(key, self._workers, allowed, f"{key}={places:g}")))
        return {"num_cpus": asked, "num_gpus": options.num_gpus}


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


def _places(node: Mapping[str, float], needs: Sequence[tuple[str, float]]) -> float:
    return min((math.floor(node.get(kind, 0.0) / amount + 1e-9) for kind, amount in needs), default=math.inf)


def _reason(error: Exception) -> str:
    """Shorten what Ray says of a death to the lines that tell why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "Error" in line or "exit" in line] or lines
    return " ".join(telling)[:600]
