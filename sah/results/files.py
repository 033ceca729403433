"""Writing files so that a crash at any moment leaves them readable.

Two ways only: a whole file is replaced at once, and a JSON-lines file grows by whole lines that are on disk
before the call returns. Operating system errors become `StateError`s that say what is safe.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sah.errors import StateError

_log = logging.getLogger(__name__)


def storage_error(action: str, path: Path, error: OSError, safe: str) -> StateError:
    """Build the message for a folder or disk that cannot be written.

    Args:
        action: What was tried, e.g. `append a row to`.
        path: The file or folder.
        error: What the operating system said.
        safe: A sentence about what is not lost.

    Returns:
        The error, to be raised by the caller.
    """
    return StateError(
        f"Could not {action} {path}: {error.strerror or error}. {safe} "
        "Free space or permissions there, or choose another folder with output_dir=PATH, "
        "and run the same command again."
    )


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_all(handle: int, data: bytes) -> None:
    """Write every byte, however many calls it takes.

    Args:
        handle: An open file descriptor.
        data: The bytes.

    Raises:
        OSError: If the system refuses; some of the bytes may have been written.
    """
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def replace_file(path: Path, data: bytes) -> None:
    """Write a whole file at once: readers see the old content or the new one, never a part.

    Args:
        path: The file; its folder must exist.
        data: The new content.

    Raises:
        StateError: If it cannot be written. The old content is then untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            write_all(handle, data)
            os.fsync(handle)
        finally:
            os.close(handle)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise storage_error("write", path, error, "What the file held before is untouched.") from error


def replace_json(path: Path, value: Any) -> None:
    """Write a JSON file at once, indented and with a final newline.

    Args:
        path: The file; its folder must exist.
        value: Plain JSON data.

    Raises:
        StateError: If it cannot be written. The old content is then untouched.
    """
    replace_file(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode("ascii"))


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Args:
        path: The file.

    Returns:
        Its content, or None if there is no such file.

    Raises:
        StateError: If it cannot be read or is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StateError(
            f"{path} cannot be read as JSON: {error}. Move its folder away, or choose another with output_dir=PATH."
        ) from error


def read_json_lines(path: Path) -> tuple[Iterator[tuple[int, Any]], int, bool]:
    """Read a JSON-lines file of which the last line may have been cut short by a crash.

    Args:
        path: The file. A missing one counts as empty.

    Returns:
        The parsed lines with their numbers (from 1; empty lines are skipped); how many bytes of the file are
        whole lines; whether a whole last line lacks only its newline.

    Raises:
        StateError: If the file cannot be read. While iterating: if a line that is not the last is no JSON.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        data = b""
    except OSError as error:
        raise StateError(f"{path} cannot be read: {error.strerror or error}.") from error
    whole, newline_missing = data.rfind(b"\n") + 1, False
    if whole < len(data):
        try:
            json.loads(data[whole:])
            whole, newline_missing = len(data), True
        except ValueError:
            _log.warning(
                "%s ends in a line that was cut short (%d bytes). That row is ignored and computed again.",
                path,
                len(data) - whole,
            )
    return _parsed_lines(path, data[:whole]), whole, newline_missing


def _parsed_lines(path: Path, data: bytes) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except ValueError as error:
            raise broken_line(path, number, str(error)) from error


def broken_line(path: Path, number: int, reason: str) -> StateError:
    """Build the message for a line that cannot be read.

    Args:
        path: The JSON-lines file.
        number: The line, from 1.
        reason: What is wrong with it.

    Returns:
        The error, to be raised by the caller.
    """
    return StateError(
        f"{path}, line {number} cannot be read: {reason}. The other lines are untouched. "
        "Delete that line to have its question answered again, or choose another folder with output_dir=PATH."
    )


class LineFile:
    """A JSON-lines file open for appending by its only writer.

    Args:
        path: The file; created if missing.
        size: Bytes of whole lines in it; what lies behind them is cut off.
        newline_missing: Whether a newline must be added first.

    Raises:
        StateError: If it cannot be opened for writing.
    """

    def __init__(self, path: Path, size: int, newline_missing: bool) -> None:
        self._path = path
        self._size = size
        try:
            self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise storage_error("open", path, error, "Rows already in it are untouched.") from error
        try:
            os.ftruncate(self._handle, size)
            if newline_missing:
                write_all(self._handle, b"\n")
                self._size += 1
            os.fsync(self._handle)
            _sync_folder(path.parent)
        except OSError as error:
            os.close(self._handle)
            raise storage_error("prepare", path, error, "Rows already in it are untouched.") from error

    def append(self, line: bytes) -> None:
        """Add one line; on return it is on disk.

        Args:
            line: Bytes that end in a newline.

        Raises:
            StateError: If it cannot be written. The lines before it are whole, and part of this one is taken
                back.
        """
        try:
            if os.fstat(self._handle).st_size != self._size:
                os.ftruncate(self._handle, self._size)
            write_all(self._handle, line)
            os.fsync(self._handle)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._handle, self._size)
            raise storage_error("append a row to", self._path, error, "All rows before it are safe.") from error
        self._size += len(line)

    def close(self) -> None:
        """Close the file. Appending afterwards is an error."""
        os.close(self._handle)
