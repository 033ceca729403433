"""Where HashAttention's networks come from: trained for the model at hand, or a file. Imports no torch."""

from __future__ import annotations

import hashlib
from pathlib import Path

from sah.errors import ConfigError

WEIGHTS_KEY = "masker.hash_attention.weights"

HASH_VERSION = 1
"""Raised when training changes what it finds, so that an old result is not taken for a new one."""


def weights_identity(path: str | None) -> str:
    """Describe where networks come from by what decides them.

    Args:
        path: The value of `weights`: a file, or None for those trained for the model.

    Returns:
        `file:` and the sha256 of the file's bytes, wherever it lies; or `trained:` with the training's version. The
        model and the number of bits are not part of it.

    Raises:
        ConfigError: If there is no such file, or it cannot be read.
    """
    if path is None:
        return f"trained:v{HASH_VERSION}"
    try:
        with Path(path).expanduser().open("rb") as handle:
            return f"file:{hashlib.file_digest(handle, 'sha256').hexdigest()}"
    except OSError as error:
        raise ConfigError(
            f"{WEIGHTS_KEY}={str(path)!r} cannot be read: {error.strerror or error}. Allowed: a safetensors file of "
            f"networks, as python -m sah.train_hash writes it. Or write {WEIGHTS_KEY}=null for those trained for the "
            "model"
        ) from error
