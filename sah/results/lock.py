"""One writer a folder: a lock that the system releases when its holder dies, and a note of who holds it."""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import platform
import time
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sah.errors import StateError
from sah.results.files import read_json, replace_json, storage_error

_log = logging.getLogger(__name__)

LOCK_NAME = "writer.lock"
HOLDER_NAME = "writer.json"


class WriterLock:
    """The right to write in a folder, held by one process at a time.

    It rests on `flock` (through filelock), so that a holder that is killed leaves no lock behind. Beside it
    lies `writer.json` with the holder's pid and host, for the message that a second writer gets.

    Args:
        folder: The folder to guard; it must exist.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = FileLock(str(folder / LOCK_NAME))

    def acquire(self, wait_seconds: float = 0.0) -> None:
        """Take the lock.

        Args:
            wait_seconds: How long to wait for another holder to end; 0 gives up at once.

        Raises:
            StateError: If another process holds it all that time, or the folder cannot be written.
        """
        try:
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                if wait_seconds <= 0:
                    raise
                _log.info("Another run writes in %s; waiting for it, up to %g s.", self._folder, wait_seconds)
                self._lock.acquire(timeout=wait_seconds, poll_interval=0.05)
        except Timeout:
            raise self._refusal(wait_seconds) from None
        except OSError as error:
            raise storage_error("lock", self._folder, error, "What it holds is untouched.") from error
        try:
            replace_json(
                self._folder / HOLDER_NAME,
                {
                    "pid": os.getpid(),
                    "host": platform.node(),
                    "since": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                },
            )
        except BaseException:
            self._lock.release()
            raise

    def release(self) -> None:
        """Give the lock back."""
        with contextlib.suppress(OSError):
            (self._folder / HOLDER_NAME).unlink(missing_ok=True)
        self._lock.release()

    def holder(self) -> dict[str, Any] | None:
        """Say who holds the lock, or held it when it was killed.

        Returns:
            `pid`, `host` and `since` (UTC), or None where nobody wrote them down.
        """
        try:
            note = read_json(self._folder / HOLDER_NAME)
        except StateError:
            return None
        return note if isinstance(note, dict) else None

    def _refusal(self, wait_seconds: float) -> StateError:
        holder = self.holder()
        for _ in range(10):
            if holder is not None and not _is_gone(holder):
                break
            time.sleep(0.02)  # the holder has the lock and is about to write its note
            holder = self.holder()
        if holder is None:
            who = "another process (it has left no note of its pid)"
        else:
            who = f"process {holder.get('pid')} on {holder.get('host')} (since {holder.get('since')})"
            if holder.get("pid") == os.getpid() and holder.get("host") == platform.node():
                who += ", which is this process"
        waited = f" after waiting {wait_seconds:g} s" if wait_seconds > 0 else ""
        return StateError(
            f"{self._folder} is being written by {who}{waited}. "
            "Only one writer a point is possible. "
            "Wait until it ends or stop it, then run the same command again: "
            "it continues where the other stopped. Or choose another folder with output_dir=PATH."
        )


def _is_gone(holder: dict[str, Any]) -> bool:
    if holder.get("host") != platform.node() or not isinstance(holder.get("pid"), int):
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
