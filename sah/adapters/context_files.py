"""Prefilled contexts on disk, for the next run: a folder of bounded size, shared by any number of processes.

A file is named by the hash of all that the keys and values in it depend on. One that cannot be used is never an error:
the context is prefilled instead.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
import transformers

from sah.adapters import attention_switch as switch
from sah.adapters.checkpoint import loaded_checkpoint_identity
from sah.adapters.context_cache import ContextCache, prefill_identity
from sah.adapters.context_format import (
    LayerForm,
    UnfitFile,
    UnfitLayer,
    file_bytes,
    layer_forms,
    read_context,
    write_context,
)
from sah.adapters.huggingface import ModelAdapterHF
from sah.adapters.kv_cache import new_cache
from sah.adapters.prefill import run_context
from sah.sparse_attention.prefill.config import PrefillConfig

_log = logging.getLogger(__name__)

FORMAT_VERSION = 1
"""Changes when files written before must not be read any more."""

_FILE = re.compile(r"[0-9a-f]{64}\.safetensors")
_PARTIAL = re.compile(r"\.[0-9a-f]{64}\.safetensors\.[0-9a-f]{32}\.tmp")
_PARTIAL_LIFE_SECONDS = 3600
"""A file that nobody has written to for so long was left by a process that was killed."""


@dataclass
class _Model:
    identity: str
    """What `identify` was told, as JSON."""

    key: dict[str, Any]
    """What all contexts of the model have in common."""

    forms: list[LayerForm] = field(default_factory=list)
    """What the layers of its cache look like; empty until known."""

    refused: bool = False
    """Whether its cache has layers that cannot be kept."""


class ContextFiles:
    """Keeps prefilled contexts in a folder. Other files in the folder are left alone.

    Args:
        folder: The folder; made at the first write.
        capacity_bytes: Most bytes of its files. The contexts not used for longest make room.
    """

    def __init__(self, folder: Path, capacity_bytes: int) -> None:
        self.folder = folder
        self.capacity_bytes = capacity_bytes
        self._models: WeakKeyDictionary[torch.nn.Module, _Model] = WeakKeyDictionary()
        self._writable = True
        self._told: set[int | None] = set()

    def identify(self, adapter: ModelAdapterHF, identity: Mapping[str, Any]) -> None:
        """Say what a model is. Only contexts of models that were identified are kept.

        Args:
            adapter: An adapter of the model.
            identity: JSON data: the checkpoint, the arguments it was loaded with that may change a key, the version of
                the prompt. What can be seen of the loaded model joins it.
        """
        said = json.dumps(identity, sort_keys=True, default=repr)
        known = self._models.get(adapter.model)
        if known is not None and known.identity == said:
            return
        with adapter.enable_dense_mode():
            attention = sorted({name for _, name in switch.implementations(adapter.model)})
        key = {
            "format": FORMAT_VERSION,
            "identity": json.loads(said),
            "weights": loaded_checkpoint_identity(adapter.model, adapter.model_name),
            "dtype": str(adapter.model.dtype).removeprefix("torch."),
            "attention": attention,
            "prefill": prefill_identity(None),
            "devices": sorted({parameter.device.type for parameter in adapter.model.parameters()}),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
        self._models[adapter.model] = _Model(said, key)

    def load(
        self, context: str, prefill: Callable[..., ContextCache], pattern: PrefillConfig | None = None
    ) -> ContextCache | None:
        """Read a context.

        Args:
            context: The text.
            prefill: `prefill` of an adapter, which says the model.
            pattern: What a sparse prefill keeps; None for a dense one.

        Returns:
            The context as that prefill would give it; None if there is no file that does.

        Raises:
            DataError: If the text cannot be a context, as `prefill` raises it.
        """
        adapter, model = self._model_of(prefill)
        if adapter is None or model is None or model.refused:
            return None
        prompt = adapter.prompts.context_prompt(context)
        key, path = self._place(model, prompt.ids, pattern)
        try:
            if not path.is_file():
                return None
            forms = self._forms(adapter, model, prompt.ids[0])
            if not forms:
                return None
            past = new_cache(adapter.model.config)
            cache = read_context(path, key, adapter.model_name, prompt, forms, past, pattern)
        except FileNotFoundError:
            return None
        except UnfitFile as error:
            _log.warning("The prefilled context in %s is not used: %s. It is prefilled again.", path, error)
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            return None
        except OSError as error:
            self._tell("cannot be read", error)
            return None
        # Its time of change says when it was used last; a folder that is only read has no need of it.
        with contextlib.suppress(OSError):
            os.utime(path)
        return cache

    def save(
        self, cache: ContextCache, prefill: Callable[..., ContextCache], pattern: PrefillConfig | None = None
    ) -> None:
        """Write a context, if it can be kept. After a first failure nothing more is written.

        Args:
            cache: The context, fresh from `prefill`.
            prefill: As for `load`.
            pattern: As for `load`.
        """
        _, model = self._model_of(prefill)
        if model is None or model.refused or not self._writable:
            return
        try:
            forms = layer_forms(cache.past_key_values, cache.length)
        except UnfitLayer as error:
            self._refuse(model, cache.model_name, error)
            return
        model.forms = forms
        key, path = self._place(model, cache.prompt.ids, pattern)
        size = file_bytes(key, cache, forms)
        if size > self.capacity_bytes:
            _log.info("A context of %d tokens takes %d bytes, more than context_folder_gib allows.", cache.length, size)
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._make_room(size)
            write_context(path, key, cache, forms)
            # Another process may have written meanwhile.
            self._make_room(0)
        except OSError as error:
            self._writable = False
            self._tell("cannot be written", error)

    def _model_of(self, prefill: Callable[..., ContextCache]) -> tuple[ModelAdapterHF | None, _Model | None]:
        """Find whose prefill it is. Anything else may compute other keys, and is served from no file."""
        adapter = getattr(prefill, "__self__", None)
        if not isinstance(adapter, ModelAdapterHF) or prefill != adapter.prefill:
            return None, None
        return adapter, self._models.get(adapter.model)

    def _place(self, model: _Model, ids: list[int], pattern: PrefillConfig | None) -> tuple[str, Path]:
        digest = hashlib.sha256(torch.tensor(ids, dtype=torch.int64).numpy().tobytes()).hexdigest()
        own = {"prefill": prefill_identity(pattern), "tokens": len(ids), "ids": digest}
        key = json.dumps({**model.key, **own}, sort_keys=True)
        return key, self.folder / f"{hashlib.sha256(key.encode()).hexdigest()}.safetensors"

    def _forms(self, adapter: ModelAdapterHF, model: _Model, token: int) -> list[LayerForm]:
        """See what the layers look like from a prefill of one token, once for the model."""
        if not model.forms:
            past = new_cache(adapter.model.config)
            run_context(adapter, [token], past)
            try:
                model.forms = layer_forms(past, 1)
            except UnfitLayer as error:
                self._refuse(model, adapter.model_name, error)
        return model.forms

    def _refuse(self, model: _Model, name: str, error: UnfitLayer) -> None:
        model.refused = True
        _log.info("Prefilled contexts of %s are not kept on disk: %s.", name, error)

    def _make_room(self, needed: int) -> None:
        """Remove files until that many bytes can join; a file that somebody else removed meanwhile is no error."""
        total, removable = needed, []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                partial = _PARTIAL.fullmatch(entry.name) is not None
                if not partial and _FILE.fullmatch(entry.name) is None:
                    continue
                with contextlib.suppress(FileNotFoundError):
                    facts = entry.stat(follow_symlinks=False)
                    if partial and time.time() - facts.st_mtime > _PARTIAL_LIFE_SECONDS:
                        os.unlink(entry.path)
                        continue
                    total += facts.st_size
                    if not partial:
                        removable.append((facts.st_mtime_ns, entry.path, facts.st_size))
        for _, path, size in sorted(removable):
            if total <= self.capacity_bytes:
                break
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            total -= size

    def _tell(self, what: str, error: OSError) -> None:
        """Warn of a folder or disk that fails, once for each reason."""
        if error.errno not in self._told:
            self._told.add(error.errno)
            reason = error.strerror or error
            told = "Prefilled contexts in context_folder=%s %s (%s). The run goes on without; contexts are prefilled."
            _log.warning(told, self.folder, what, reason)
