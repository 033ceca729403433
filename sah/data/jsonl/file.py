"""The file of a data set: which kinds there are, that it exists, and the hash of its content."""

from __future__ import annotations

import hashlib
from pathlib import Path

from sah.errors import DataError

LINE_SUFFIXES = (".jsonl", ".ndjson")
TABLE_SUFFIXES = (".parquet",)


def content_hash(path: str) -> str:
    """Hash a file's content.

    Args:
        path: Its path; `~` is expanded.

    Returns:
        The hexadecimal sha256 of its bytes.

    Raises:
        DataError: If there is no such file.
    """
    with existing(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def existing(path: str) -> Path:
    """Find a file.

    Args:
        path: Its path; `~` is expanded.

    Returns:
        The path.

    Raises:
        DataError: If there is no such file.
    """
    file = Path(path).expanduser()
    if file.is_file():
        return file
    what = "is a folder" if file.is_dir() else "does not exist"
    raise DataError(
        f"dataset.path={path} {what} (looked for {file.absolute()}). Write the path of a .jsonl, .ndjson "
        f"or .parquet file."
    )
