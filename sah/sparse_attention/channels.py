"""Where Double Sparsity's channels come from: a calibration on a stated text, or a file. Imports no torch."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from sah.errors import ConfigError

CHANNELS_KEY = "masker.double_sparsity.channels"

CALIBRATION_TOKENS = 2048
"""Tokens that a model is calibrated on; fewer where its window is shorter."""

CALIBRATION_VERSION = 1
"""Raised when the calibration changes what it finds, so that an old result is not taken for a new one."""

_TEXT_CHARACTERS = 8 * CALIBRATION_TOKENS


@cache
def calibration_text() -> str:
    """Give the text that models are calibrated on: prose paragraphs of the Python language reference.

    Returns:
        The first 16,384 characters of the paragraphs in `pydoc_data.topics` that are neither code nor grammar, in the
        topics' alphabetical order. It is part of every Python, and may change with Python's version.
    """
    from pydoc_data.topics import topics

    blocks = (block for name in sorted(topics) for block in topics[name].split("\n\n"))
    prose = [" ".join(block.split()) for block in blocks if block[:1].isupper() and block.endswith(".")]
    return "\n\n".join(prose)[:_TEXT_CHARACTERS]


def calibration_text_digest() -> str:
    """Return the hexadecimal sha256 of the calibration text."""
    return hashlib.sha256(calibration_text().encode()).hexdigest()


def channels_identity(path: str | None) -> str:
    """Describe where channels come from by what decides them.

    Args:
        path: The value of `channels`: a file, or None for the calibration.

    Returns:
        `file:` and the sha256 of the file's bytes, wherever it lies; or `calibrated:` with the calibration's version,
        number of tokens and text. The model that is calibrated is not part of it.

    Raises:
        ConfigError: If there is no such file, or it cannot be read.
    """
    if path is None:
        return f"calibrated:v{CALIBRATION_VERSION}:{CALIBRATION_TOKENS}:{calibration_text_digest()[:16]}"
    try:
        with Path(path).expanduser().open("rb") as handle:
            return f"file:{hashlib.file_digest(handle, 'sha256').hexdigest()}"
    except OSError as error:
        raise unusable_file(path, error.strerror or str(error)) from error


def unusable_file(path: str | Path, problem: str) -> ConfigError:
    """Build the error for a channel file that cannot be used.

    Args:
        path: The file as it was given.
        problem: What is wrong with it.

    Returns:
        The error, to be raised by the caller.
    """
    return ConfigError(
        f"{CHANNELS_KEY}={str(path)!r} cannot be used: {problem}. Allowed: a safetensors file with one integer tensor "
        "layer.<i> of shape (kv_heads, head_dim) for every full-attention layer i, each row the channels 0 to "
        f"head_dim - 1, most important first. Or write {CHANNELS_KEY}=null: the model is then calibrated on first use"
    )
