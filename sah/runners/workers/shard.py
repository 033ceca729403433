"""A shard: contexts that one job answers, and the file in which it tells of them.

The main process makes the file, the job appends to it, the main process reads along. A job whose file is gone, since
nobody waits for it any more, stops.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from sah.errors import StateError
from sah.results.fidelity import FidelityRow
from sah.results.files import LineFile, broken_line, read_json_lines, storage_error
from sah.results.rows import row_key
from sah.runners.session import Session
from sah.runners.tasks import ContextWork, GroupSpec
from sah.runners.work import GroupWorker
from sah.runners.workers.messages import Answered, Ended, Message, decode, encode, work_through

POINTS = "points"
"""Key of a file's first line: the ids of the group's points, in the order of its settings."""


class ShardStopped(BaseException):
    """The job's time is up, or somebody takes its place. No fault, so it is no `Exception`: no row may tell of it."""


def make_file(path: Path, spec: GroupSpec) -> None:
    """Make the file of a shard.

    Args:
        path: The file; its folder must exist.
        spec: The group.

    Raises:
        StateError: If it cannot be written.
    """
    line = json.dumps({POINTS: [setting.point_id for setting in spec.settings]}).encode() + b"\n"
    try:
        path.write_bytes(line)
    except OSError as error:
        raise storage_error("write", path, error, "All rows are safe.") from error


def run_shard(spec: GroupSpec, works: Sequence[ContextWork], path: Path) -> None:
    """Answer contexts and append what there is to tell to a file. Runs in the job.

    What the file holds already, since the job was preempted and begun anew, is not computed again.

    Args:
        spec: The group.
        works: The contexts.
        path: The shard's file.

    Raises:
        StateError: If the file cannot be written.
        ShardStopped: If SLURM announces the job's end. What was told stands in the file.
    """
    # submitit would make an exception of it, which a row of the answer at work would then tell of.
    number = getattr(signal, "SIG" + os.environ.get("SUBMITIT_PREEMPT_SIGNAL", "USR2"))
    before = signal.signal(number, _stop)
    try:
        if path.exists():
            _answer(spec, works, path)
    finally:
        signal.signal(number, before)


def _answer(spec: GroupSpec, works: Sequence[ContextWork], path: Path) -> None:
    lines, size, newline_missing = read_json_lines(path)
    told = [decode(line) for _, line in lines if POINTS not in line]
    file = LineFile(path, size, newline_missing)
    try:
        for message in work_through(GroupWorker(spec, Session()), list(_untold(works, told))):
            if not path.exists():
                return
            file.append(encode(message))
    finally:
        file.close()


def _untold(works: Sequence[ContextWork], told: Sequence[Message]) -> Iterator[ContextWork]:
    ended = {message.context for message in told if isinstance(message, Ended)}
    answered = {
        (message.setting, message.outcome.key, isinstance(message.outcome, FidelityRow))
        for message in told
        if isinstance(message, Answered) and not isinstance(message.outcome, Exception)
    }
    for work in works:
        key = work.example.key
        rest = work.only(
            lambda number, index, forced, key=key: (number, row_key(key, index), forced) not in answered  # type: ignore[misc]
        )
        if rest is not None and key not in ended:
            yield rest


def _stop(*given: Any) -> NoReturn:
    raise ShardStopped


class ShardReader:
    """Reads along in a shard's file.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._line = 0
        self.points: list[str] = []
        """Ids of the group's points, once the first line was read."""

    def read(self) -> list[Message]:
        """Read the whole lines that have come since; a last one that is still being written waits.

        Raises:
            StateError: If the file cannot be read.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except OSError as error:
            raise StateError(f"{self.path} cannot be read: {error.strerror or error}. All rows are safe.") from error
        data = data[: data.rfind(b"\n") + 1]
        self._offset += len(data)
        messages: list[Message] = []
        for line in data.splitlines():
            self._line += 1
            try:
                parsed = json.loads(line)
                if POINTS in parsed:
                    self.points = list(parsed[POINTS])
                elif self.points:
                    messages.append(decode(parsed))
                else:
                    raise StateError("the ids of the points do not stand before it")
            except (ValueError, StateError) as error:
                raise broken_line(self.path, self._line, str(error)) from error
        return messages
