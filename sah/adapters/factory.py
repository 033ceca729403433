"""Finds models and makes adapters. Everything about *where* a model comes from is here, and nothing else."""

from __future__ import annotations

import json
import logging
import re
import threading
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sah.adapters import hub
from sah.adapters.checkpoint import checkpoint_hash
from sah.adapters.sources import all_sources, find_source
from sah.adapters.sources.quiet import quiet
from sah.config.model import ModelConfig
from sah.errors import ModelError

if TYPE_CHECKING:
    from sah.adapters.huggingface import ModelAdapterHF
    from sah.sparse_attention.config import SparseAttentionConfig

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9_+.-]+):")


@dataclass(frozen=True)
class ResolvedModel:
    """A model that is there to be loaded.

    Args:
        path_or_id: A folder, or a hub id that the hub will serve; what `from_pretrained` takes.
        checkpoint_hash: Identity of the weights: for models that sah makes, of their source; for a local
            folder, of its files; for a hub model, its commit. None if the hub does not name one.
        label: Short name for tables, folders and figures.
    """

    path_or_id: str
    checkpoint_hash: str | None
    label: str


def resolve_model(name: str, model_kwargs: dict[str, Any] | None = None) -> ResolvedModel:
    """Find a model, fetching or making it if sah brings it itself.

    Args:
        name: `embedded:...` or `tiny:...`, a local folder, or a hub id.
        model_kwargs: What `from_pretrained` will get.

    Returns:
        Where the model is. A name never stands for another model than the one it says.

    Raises:
        ModelError: If there is no such model, or it cannot be had now: the message says what can be done.
    """
    if not name.strip():
        raise ModelError(f"model.name is empty. {_known()}")
    source = all_sources().get(name)
    if source is not None:
        return ResolvedModel(str(source.ensure()), source.checkpoint_hash, source.label)
    options = model_kwargs or {}
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _local(folder, options)
    scheme = _SCHEME.match(name)
    if scheme is not None:
        raise ModelError(f"There is no model {name!r}. {_known()}")
    if folder.exists():
        raise ModelError(f"model.name={name!r} is a file. Give the folder that holds the model's config.json.")
    if name.startswith(("/", "./", "../", "~")) or name.count("/") > 1 or "\\" in name:
        raise ModelError(f"model.name={name!r}: there is no such folder. {_known()}")
    alias = find_source(name)
    if alias is not None:
        raise ModelError(f"{name!r} is a config, not a model name. Write model={name}, or model.name={alias.name}.")
    found = hub.find(name, options)
    return ResolvedModel(found.path_or_id, found.commit, name.rsplit("/", 1)[-1])


def create_adapter(
    model: ModelConfig | str,
    sparse_attention_config: SparseAttentionConfig | None = None,
    *,
    tokenizer_kwargs: dict[str, Any] | None = None,
    model_kwargs: dict[str, Any] | None = None,
) -> ModelAdapterHF:
    """Find a model, choose a device if none is given, and load it into an adapter.

    Args:
        model: A model's configuration, or its name alone.
        sparse_attention_config: The sparse attention, or None for an adapter that always runs dense.
        tokenizer_kwargs: For `AutoTokenizer.from_pretrained`, over those of the configuration.
        model_kwargs: For `AutoModelForCausalLM.from_pretrained`, over those of the configuration. Without a
            `device_map`, CUDA is taken, else MPS, else the CPU.

    Returns:
        The adapter. Example: `create_adapter("tiny:llama")`.

    Raises:
        ModelError: If the model cannot be found or loaded.
        ConfigError: If the sparse attention cannot be built.
    """
    config = ModelConfig(name=model) if isinstance(model, str) else model
    for_tokenizer = {**config.tokenizer_kwargs, **(tokenizer_kwargs or {})}
    for_model = {**config.model_kwargs, **(model_kwargs or {})}
    return _create(config, sparse_attention_config, for_tokenizer, for_model, weights=True)


def _create(
    config: ModelConfig,
    sparse_attention_config: SparseAttentionConfig | None,
    for_tokenizer: dict[str, Any],
    for_model: dict[str, Any],
    *,
    weights: bool,
) -> ModelAdapterHF:
    own = config.name in all_sources()
    path = resolve_model(config.name, for_model).path_or_id
    if not own and not Path(config.name).expanduser().is_dir():
        # The tokenizer comes from the model's own revision. If it is told to come from another, both go
        # through the hub id, since a snapshot's folder holds one revision only.
        revision = for_model.get("revision")
        if revision is not None:
            for_tokenizer.setdefault("revision", revision)
        if for_tokenizer.get("revision") != revision:
            path = config.name
    for options in (for_model, for_tokenizer):
        # Left out, transformers would ask on the terminal whether to run a checkpoint's own code.
        options.setdefault("trust_remote_code", False)
    _choose_device(for_model, own)
    if not weights:
        for_model["device_map"] = "meta"

    from sah.adapters.huggingface import ModelAdapterHF

    # A bar for each load, however short, would stand before every table; a hub model's may take minutes.
    with quiet() if own else nullcontext():
        return ModelAdapterHF(sparse_attention_config, path, for_tokenizer, for_model)


def load_adapter_cached(model: ModelConfig) -> ModelAdapterHF:
    """Give the process's one dense adapter of a model, loading it the first time.

    One model is kept: loading another forgets it, so that its memory is free once nobody else holds it.

    Args:
        model: The model's configuration. Configurations that differ only in their label share an adapter.

    Returns:
        The dense adapter; `with_sparse_attention` makes others that share its weights.

    Raises:
        ModelError: If the model cannot be found or loaded.
    """
    key = _key(model)
    with _loading:
        if key not in _loaded:
            _loaded.clear()
            _loaded[key] = create_adapter(model)
        return _loaded[key]


def outline_adapter_cached(model: ModelConfig) -> ModelAdapterHF:
    """Give an adapter that knows a model's config, type and tokenizer, for planning.

    Args:
        model: The model's configuration.

    Returns:
        The loaded adapter if there is one, else one whose weights have shapes and no values. A model that transformers
        cannot make without its weights is loaded.

    Raises:
        ModelError: If the model cannot be found or loaded.
    """
    key = _key(model)
    with _loading:
        if key in _loaded:
            return _loaded[key]
        if key not in _outlines:
            try:
                given = dict(model.tokenizer_kwargs), dict(model.model_kwargs)
                _outlines[key] = _create(model, None, *given, weights=False)
            except ModelError as error:
                _log.debug("%s cannot be made without weights: %s", model.name, error)
        if key in _outlines:
            return _outlines[key]
    return load_adapter_cached(model)


def _key(model: ModelConfig) -> str:
    return json.dumps([model.name, model.tokenizer_kwargs, model.model_kwargs], sort_keys=True, default=repr)


_log = logging.getLogger(__name__)
_loaded: dict[str, ModelAdapterHF] = {}
_outlines: dict[str, ModelAdapterHF] = {}
_loading = threading.Lock()


def _choose_device(model_kwargs: dict[str, Any], own: bool) -> None:
    """Take a GPU if there is one and the user gave no `device_map`; float32 for sah's own models on CPU."""
    import torch

    if "device_map" not in model_kwargs:
        if torch.cuda.is_available():
            model_kwargs["device_map"] = "cuda"
        elif torch.backends.mps.is_available():
            model_kwargs["device_map"] = "mps"
    if own and "device_map" not in model_kwargs and not {"dtype", "torch_dtype"} & model_kwargs.keys():
        model_kwargs["dtype"] = torch.float32


def _known() -> str:
    return f"model.name is one of {', '.join(sorted(all_sources()))}, a local folder, or a hub id (owner/name)."


def _local(folder: Path, model_kwargs: dict[str, Any]) -> ResolvedModel:
    """Check a local folder and tell its files' identity."""
    subfolder = str(model_kwargs.get("subfolder") or "")
    needed = folder / subfolder / str(model_kwargs.get("gguf_file") or "config.json")
    if not needed.is_file():
        raise ModelError(
            f"The local folder {folder} has no {needed.relative_to(folder)}, so transformers cannot load it. "
            "Give the folder that save_pretrained wrote, with config.json, weights and tokenizer."
        )
    return ResolvedModel(str(folder.resolve()), checkpoint_hash(folder, subfolder), folder.resolve().name)
