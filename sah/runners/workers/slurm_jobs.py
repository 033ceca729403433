"""The jobs that answer the shards of one group: sent, followed, and sent again for what one left undone."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sah.config.launcher import PREFIX
from sah.errors import WorkerError
from sah.results.files import storage_error
from sah.runners.tasks import ContextWork, GroupSpec
from sah.runners.workers.base import Sink
from sah.runners.workers.losses import Losses
from sah.runners.workers.messages import Answered, Begun, Broken, Ended, LogRelay, Message, Started, Told
from sah.runners.workers.shard import ShardReader, make_file, run_shard

_log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
"""Between two looks at the files of the jobs; SLURM itself is asked by submitit, at most once a minute."""

LAST_SECONDS = 10.0
"""How long the end of jobs is waited for that have told everything."""


@dataclass
class _Shard:
    """A job at work."""

    job: Any
    reader: ShardReader
    works: dict[str, ContextWork]
    """Key to context, of those that have not ended."""

    started: bool = False
    at_work: str | None = None
    """The context that the job was last heard to begin."""


class SlurmJobs:
    """The jobs of a group.

    Args:
        executor: Of submitit.
        folder: For the files of the shards.
        spec: The group.
        sink: Takes the rows.
        losses: Counts the jobs that ended too early.
    """

    def __init__(self, executor: Any, folder: Path, spec: GroupSpec, sink: Sink, losses: Losses) -> None:
        self._executor = executor
        self._folder = folder
        self._spec = spec
        self._sink = sink
        self._losses = losses
        self._log = LogRelay()
        self._sent = 0
        self._shards: list[_Shard] = []

    def send(self, works: Sequence[ContextWork]) -> None:
        """Send one job.

        Args:
            works: Its contexts, which the sink has begun.

        Raises:
            StateError: If its files cannot be written.
            WorkerError: If it is refused.
        """
        path = self._folder / f"{self._sent}.jsonl"
        make_file(path, self._spec)
        self._sent += 1
        try:
            job = self._executor.submit(run_shard, self._spec, list(works), path)
        except OSError as error:
            raise storage_error("write", self._folder.parent.parent, error, "All rows are safe.") from error
        except Exception as error:  # submitit has an error of its own for each way in which sbatch fails
            raise WorkerError(
                f"{PREFIX}.slurm: the job could not be sent: {error}\nSee the options of {PREFIX}.slurm and "
                f"what the cluster allows, e.g. {PREFIX}.slurm.partition."
            ) from error
        _log.info("Job %s answers %d contexts; its log is %s.", job.job_id, len(works), job.paths.stderr)
        self._shards.append(_Shard(job, ShardReader(path), {work.example.key: work for work in works}))

    def follow(self) -> None:
        """Bring rows to the sink until all contexts have ended or are given up.

        Raises:
            StateError: If the sink cannot write, or a shard's file cannot be read.
            WorkerError: If no job comes up, or one had to stop.
        """
        ended: list[Any] = []
        while self._shards:
            for shard in list(self._shards):
                # Asked before reading: what is told between the two must not be taken for unsaid.
                done = shard.job.done()
                self._read(shard)
                if done or not shard.works:
                    self._shards.remove(shard)
                    ended.append(shard.job)
                    self._lost(shard)
            if self._shards:
                time.sleep(POLL_SECONDS)
        _tidy(ended)

    def cancel(self) -> None:
        """End the jobs that are at work."""
        for shard in self._shards:
            with contextlib.suppress(Exception):  # its own end may come first; an error at work must not be hidden
                shard.job.cancel(check=False)
        self._shards.clear()

    def _read(self, shard: _Shard) -> None:
        for message in shard.reader.read():
            self._handle(shard, message)

    def _handle(self, shard: _Shard, message: Message) -> None:
        match message:
            case Started():
                shard.started = True
                self._losses.started()
            case Begun(context):
                shard.at_work = context
            case Answered(setting, outcome):
                self._sink.add(setting, outcome)
            case Ended(context):
                shard.at_work = None
                work = shard.works.pop(context, None)
                if work is not None:
                    self._sink.end(work)
            case Told() as told:
                self._log.tell(told)
            case Broken(text):
                raise WorkerError(f"A job of the group had to stop: {text}")

    def _lost(self, shard: _Shard) -> None:
        """Send what is left of a job that has ended; the context that it was at counts its end."""
        if not shard.works:
            return
        reason = _reason(shard.job)
        again: list[ContextWork] = []
        for key, work in shard.works.items():
            rest = self._losses.died(work, reason) if key == shard.at_work else self._sink.remaining(work)
            if rest is None:
                self._sink.end(work)
            else:
                again.append(rest)
        if not again:
            return
        if not shard.started:
            self._losses.start_failed(reason)
        # Last, so that the others come first if it ends this job as well.
        again.sort(key=lambda work: work.example.key == shard.at_work)
        self.send(again)


def _tidy(jobs: Sequence[Any]) -> None:
    """Wait a little for jobs that have told everything, and remove the copies of all contexts that submitit keeps.

    Their logs stay.
    """
    until = time.monotonic() + LAST_SECONDS
    while time.monotonic() < until and not all(job.done() for job in jobs):
        time.sleep(POLL_SECONDS)
    for job in jobs:
        with contextlib.suppress(OSError):
            job.paths.submitted_pickle.unlink(missing_ok=True)
            job.paths.result_pickle.unlink(missing_ok=True)


def _reason(job: Any) -> str:
    try:
        said = job.paths.stderr.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        said = []
    last = f"It last said: {said[-1][:300]} " if said else ""
    return f"{last}See {job.paths.stderr}"
