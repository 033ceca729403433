"""What a plan can tell of `context_folder`: which contexts lie there, and how much the folder will grow.

A file's key names the weights and the devices too, which only the loaded model knows: a plan leaves them out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers

from sah.adapters.context_cache import ids_digest, prefill_identity
from sah.adapters.context_files import FORMAT_VERSION
from sah.runners.session import LoadedModel, context_identity
from sah.sparse_attention.prefill.config import PrefillConfig


class StoredContexts:
    """The heads of a folder's files.

    Args:
        folder: The folder; None, or one that does not exist, holds nothing.
        capacity_bytes: Most bytes of its files.
    """

    def __init__(self, folder: Path | None, capacity_bytes: int) -> None:
        self._room = float(capacity_bytes)
        self._capacity = capacity_bytes
        self._digests: dict[str, set[str]] = {}
        """What a file was written by to the digests of the contexts' ids."""
        for path in () if folder is None else folder.glob("*.safetensors"):
            try:
                key = _read_key(path)
                made_by = _made_by(key["format"], key["identity"], key["torch"], key["transformers"], key["prefill"])
                self._digests.setdefault(made_by, set()).add(key["ids"])
                self._room -= path.stat().st_size
            except (OSError, ValueError, KeyError, TypeError):
                continue  # no context; the run says so where it matters

    def holds(self, model: LoadedModel, context: str, prefill: PrefillConfig | None = None) -> bool:
        """Tell whether a context of a model, prefilled in that way, is there, without verifying it."""
        identity = context_identity(model.identity)
        versions = FORMAT_VERSION, identity, torch.__version__, transformers.__version__
        known = self._digests.get(_made_by(*versions, prefill_identity(prefill)))
        if not known:
            return False
        digest = ids_digest(model.adapter.prompts.context_prompt(context).ids)
        return any(ids.startswith(digest) for ids in known)

    def add(self, sizes: Iterable[float]) -> float:
        """Add contexts; a full folder does not grow, since others make room.

        Args:
            sizes: Bytes of each.

        Returns:
            Bytes by which the folder grows.
        """
        grown = min(sum(size for size in sizes if size <= self._capacity), max(self._room, 0.0))
        self._room -= grown
        return grown


def _read_key(path: Path) -> Any:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            raise ValueError("no safetensors file")
        return json.loads(json.loads(file.read(length))["__metadata__"]["key"])


def _made_by(*given: Any) -> str:
    return json.dumps(given, sort_keys=True, default=repr)
