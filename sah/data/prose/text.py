"""The text of the prose: a file, or what comes with Python."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from sah.data.niah.haystack import python_prose
from sah.errors import DataError


@lru_cache(maxsize=4)
def read_text(path: str | None) -> str:
    """Read the text.

    Args:
        path: A text file in UTF-8, `~` is expanded; None for the prose of Python's language reference.

    Returns:
        The text as it stands.

    Raises:
        DataError: If the file does not exist, is no text, or is empty.
    """
    if path is None:
        return python_prose()
    file = Path(path).expanduser()
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"dataset.path={path} cannot be read (looked for {file.absolute()}): {error.strerror or error}. "
            "Write the path of a text file, or dataset.path=null for the prose that comes with Python."
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"dataset.path={path} is no text in UTF-8: {error}. Convert it, e.g. with iconv -t UTF-8."
        ) from error
    if not text.strip():
        raise DataError(f"dataset.path={path} is empty. Write the path of a text file.")
    return text


def text_hash(text: str) -> str:
    """Return the hexadecimal sha256 of a text in UTF-8."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
