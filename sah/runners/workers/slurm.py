"""Workers as jobs of SLURM, sent by submitit; with `cluster=local` as processes of this machine, in the same way."""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sah.config.launcher import PREFIX, SlurmOptions
from sah.errors import StateError, WorkerError, missing_extra
from sah.results.files import storage_error
from sah.results.lock import WriterLock
from sah.results.rows import PredictionRow, row_key
from sah.runners.work import ContextWork, GroupSpec
from sah.runners.workers.base import Sink
from sah.runners.workers.losses import Losses
from sah.runners.workers.messages import Answered, Begun, Broken, Ended, LogRelay, Message, Started, Told
from sah.runners.workers.shard import ShardReader, make_file, run_shard

_log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
"""Between two looks at the files of the jobs; SLURM itself is asked by submitit, at most once a minute."""

LAST_SECONDS = 10.0
"""How long the end of jobs is waited for that have told everything."""

FOLDER = "slurm"
"""Below `output_dir`, where no other folder is named: the same for every run, so that the next one finds it."""

_FILES = "rows"
_PATTERN = "*.jsonl*"
_TAKEN = ".taken"


class SlurmWorkers:
    """Sends shards of a group's contexts as jobs, and brings the rows that they write to the sink as they come.

    Every job appends to a file of its own. The files of a group lie in a folder that this process holds the lock of;
    when it ends as it should, the folder goes. What a killed process left there is taken over by the next run that
    computes the same points: rows that are whole are not computed again, and a job that still writes there stops.

    Args:
        workers: Most jobs at a time.
        retries: How often a context is sent again when a job ended over it.
        options: How submitit sends them.

    Raises:
        ConfigError: If submitit is not installed.
    """

    def __init__(self, workers: int, retries: int, options: SlurmOptions) -> None:
        try:
            import submitit
        except ImportError as error:
            raise missing_extra("submitit", "slurm", f"{PREFIX}.backend=slurm") from error
        self._submitit: Any = submitit
        self._workers = workers
        self._retries = retries
        self._options = options

    def run(self, spec: GroupSpec, works: Sequence[ContextWork], sink: Sink) -> None:
        """Compute all works of a group; see `Workers.run`.

        Raises:
            WorkerError: If no job can be sent, or none comes up.
            StateError: If the sink cannot write, or the files of the jobs cannot be written or read.
        """
        folder = self._folder(spec)
        files = folder / _FILES
        left = _leftovers(files, spec)
        try:
            pending = [rest for work in works if (rest := _begin(work, spec, sink, left.rows)) is not None]
        except BaseException:
            left.release()
            raise
        left.release(remove=True)
        if not pending:
            return
        executor = self._executor(folder)
        own = files / f"{spec.run}-{uuid.uuid4().hex[:8]}"
        try:
            own.mkdir(parents=True)
        except OSError as error:
            raise storage_error("create", own, error, "All rows are safe.") from error
        lock = WriterLock(own)
        lock.acquire()
        try:
            jobs = _Jobs(executor, own, spec, sink, Losses(spec, sink, self._retries, "SLURM job"))
            try:
                for number in range(min(self._workers, len(pending))):
                    jobs.send(pending[number :: self._workers])
                jobs.follow()
            finally:
                jobs.cancel()
        finally:
            lock.release()
        shutil.rmtree(own, ignore_errors=True)

    def _folder(self, spec: GroupSpec) -> Path:
        given = self._options.folder
        return spec.settings[0].experiment.output_dir / FOLDER if given is None else Path(given).expanduser().resolve()

    def _executor(self, folder: Path) -> Any:
        options = self._options
        try:
            # What is sent holds the composed config, and with it an access token where one was given.
            (folder / "jobs").mkdir(mode=0o700, parents=True, exist_ok=True)
            executor = self._submitit.AutoExecutor(folder=folder / "jobs", cluster=options.cluster)
        except OSError as error:
            raise storage_error("create", folder, error, "All rows are safe.") from error
        except (RuntimeError, ValueError) as error:
            key = f"{PREFIX}.slurm.cluster"
            raise WorkerError(
                f"{key}={options.cluster!r}: no job can be sent from here: {error}. "
                f"Allowed: slurm where its commands are installed, or local. Write for example: {key}=local"
            ) from error
        parameters = {
            "name": "sah",
            "timeout_min": options.timeout_min,
            "slurm_partition": options.partition,
            "gpus_per_node": options.gpus_per_node,
            "cpus_per_task": options.cpus_per_task,
            "mem_gb": options.mem_gb,
            **options.additional,
        }
        try:
            executor.update_parameters(**parameters)
        except (NameError, ValueError, TypeError, AssertionError) as error:
            key = f"{PREFIX}.slurm.additional"
            raise WorkerError(
                f"{key}={options.additional}: submitit refuses it: {error}\n"
                f"Write for example: '+{key}.slurm_account=NAME'"
            ) from error
        return executor


def _begin(
    work: ContextWork, spec: GroupSpec, sink: Sink, found: dict[tuple[str, str], PredictionRow]
) -> ContextWork | None:
    """Take a context for work, after giving the sink what an earlier run's jobs have answered."""
    rest = sink.begin(work)
    if rest is None:
        return None
    for number, index in rest.pending:
        row = found.get((spec.settings[number].point_id, row_key(work.example.key, index)))
        if row is not None:
            sink.add(number, row)
    left = sink.remaining(rest)
    if left is None:
        sink.end(rest)
    return left


@dataclass
class _Leftovers:
    """What killed runs have left of the points at hand."""

    rows: dict[tuple[str, str], PredictionRow] = field(default_factory=dict)
    """(id of the point, key of the row) to a row with an answer."""

    folders: list[tuple[WriterLock, Path, bool]] = field(default_factory=list)
    """The folders that they lie in, each with its lock and whether it holds nothing else."""

    def release(self, remove: bool = False) -> None:
        """Give the folders back, or remove them, when the sink has what they hold."""
        for lock, folder, ours in self.folders:
            lock.release()
            if ours and remove:
                shutil.rmtree(folder, ignore_errors=True)
        self.folders.clear()


def _leftovers(files: Path, spec: GroupSpec) -> _Leftovers:
    found = _Leftovers()
    mine = {setting.point_id for setting in spec.settings}
    for folder in sorted(files.glob("*/")):
        # One without files may be about to be locked by the run that has just made it.
        if not any(folder.glob(_PATTERN)):
            continue
        lock = WriterLock(folder)
        try:
            lock.acquire()
        except StateError:
            continue  # its run is alive
        known: set[str] = set()
        rows: dict[tuple[str, str], PredictionRow] = {}
        for path in sorted(folder.glob(_PATTERN)):
            reader = ShardReader(_take_away(path))
            try:
                messages = reader.read()
            except StateError as error:
                _log.warning("%s Its answers are computed again.", error)
                continue
            known.update(reader.points)
            for message in messages:
                if isinstance(message, Answered) and isinstance(message.outcome, PredictionRow):
                    point = reader.points[message.setting]
                    if point in mine and message.outcome.status == "ok":
                        rows[point, message.outcome.key] = message.outcome
        if known & mine:
            _log.info("%d answers of jobs whose run was ended are taken over from %s.", len(rows), folder)
        found.rows.update(rows)
        found.folders.append((lock, folder, known <= mine))
    return found


def _take_away(path: Path) -> Path:
    """Rename a shard's file, so that a job that still writes it stops."""
    if path.suffix == _TAKEN:
        return path
    taken = path.with_name(path.name + _TAKEN)
    with contextlib.suppress(OSError):
        path.rename(taken)
        return taken
    return path


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


class _Jobs:
    """The jobs of a group."""

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
        """Send one job for some contexts that the sink has begun."""
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
        """Bring rows to the sink until all contexts have ended or are given up."""
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
