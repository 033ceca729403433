"""Workers as jobs of SLURM, sent by submitit; with `cluster=local` as processes of this machine, in the same way."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sah.config.launcher import PREFIX, SlurmOptions
from sah.errors import WorkerError, missing_extra
from sah.results.fidelity import FidelityRow
from sah.results.files import storage_error
from sah.results.lock import WriterLock
from sah.results.rows import PredictionRow, row_key
from sah.runners.tasks import ContextWork, GroupSpec, fidelity_name
from sah.runners.workers.base import Sink
from sah.runners.workers.leftovers import find_leftovers
from sah.runners.workers.losses import Losses
from sah.runners.workers.slurm_jobs import SlurmJobs

FOLDER = "slurm"
"""Below `output_dir`, where no other folder is named: the same for every run, so that the next one finds it."""

_FILES = "rows"


class SlurmWorkers:
    """Sends shards of a group's contexts as jobs, and brings the rows that they write to the sink as they come.

    Every job appends to a file of its own. The files of a group lie in a folder that this process holds the lock of;
    when it ends as it should, the folder goes. What a killed process left there is taken over by the next run that
    computes the same points: rows that are whole are not computed again, and a job that still writes there stops. Rows
    that this run does not ask for stay there for one that does.

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
        left = find_leftovers(files, spec)
        try:
            # All at once: what another run answered is left out of the shards.
            pending = [rest for work in works if (rest := _begin(work, spec, sink, left.rows)) is not None]
        except BaseException:
            left.release()
            raise
        numbers = {setting.point_id: number for number, setting in enumerate(spec.settings)}
        left.release({(point, key) for point, key in left.rows if sink.has(numbers[point], key)})
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
            jobs = SlurmJobs(executor, own, spec, sink, Losses(spec, sink, self._retries, "SLURM job"))
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
    work: ContextWork, spec: GroupSpec, sink: Sink, found: Mapping[tuple[str, str], PredictionRow | FidelityRow]
) -> ContextWork | None:
    """Take a context for work, after giving the sink what an earlier run's jobs have answered."""
    rest = sink.begin(work)
    if rest is None:
        return None
    names = [(number, row_key(work.example.key, index)) for number, index in rest.pending]
    names += [(number, fidelity_name(row_key(work.example.key, index))) for number, index in rest.forced]
    for number, name in names:
        row = found.get((spec.settings[number].point_id, name))
        if row is not None:
            sink.add(number, row)
    left = sink.remaining(rest)
    if left is None:
        sink.end(rest)
    return left
