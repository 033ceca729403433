"""What the points of one process share: the loaded model, examples, and prefilled contexts."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sah.adapters.context_cache import ContextStore
from sah.adapters.context_files import ContextFiles
from sah.adapters.factory import load_adapter_cached, outline_adapter_cached, resolve_model
from sah.adapters.huggingface import ModelAdapterHF
from sah.config.experiment import Experiment
from sah.data.example import Example
from sah.errors import DataError, SahError
from sah.runners.identity import PROMPT_VERSION, model_identity
from sah.sparse_attention.config import (
    AutoAttentionConfig,
    EfficientAttentionConfig,
    MaskedAttentionConfig,
    ResearchAttentionConfig,
)

_EXECUTIONS: dict[str, type[MaskedAttentionConfig]] = {
    "auto": AutoAttentionConfig,
    "efficient": EfficientAttentionConfig,
    "research": ResearchAttentionConfig,
}


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run."""

    adapter: ModelAdapterHF
    """Dense; `with_sparse_attention` gives the sparse ones."""

    label: str
    identity: dict[str, Any]
    checkpoint_hash: str | None


class Session:
    """Caches of one process. The points of a sweep that run in it load the model once and prefill a context once.

    Args:
        weights: Whether models are loaded whole. Without weights they serve for planning: points and examples come out
            the same, and nothing can be computed.
    """

    def __init__(self, *, weights: bool = True) -> None:
        self.weights = weights
        self.contexts = ContextStore(0)
        self._plain: dict[int, ModelAdapterHF] = {}
        """Adapters without a chat template by the id of those with it, which share their model and so keep it alive."""
        self.tried: dict[str, set[str]] = {}
        """For each store's folder the keys of the rows that this command has made; failed ones are not tried twice."""
        self.errors: dict[str, SahError] = {}
        """For each store's folder what ended its point."""
        self._examples: dict[str, Sequence[Example]] = {}

    def without_weights(self) -> Session:
        """Give a session for planning that shares this one's caches."""
        other = copy.copy(self)
        other.weights = False
        return other

    def begin(self) -> None:
        """Forget what an earlier command in this process tried in vain."""
        self.tried.clear()
        self.errors.clear()

    def model(self, experiment: Experiment) -> LoadedModel:
        """Load the point's model, once for the process.

        Args:
            experiment: The point.

        Returns:
            The model.

        Raises:
            ModelError: If it cannot be had.
        """
        if experiment.threads is not None:
            torch.set_num_threads(experiment.threads)
        self.contexts.capacity_bytes = experiment.context_cache_bytes
        resolved = resolve_model(experiment.model.name, experiment.model.model_kwargs)
        adapter = (load_adapter_cached if self.weights else outline_adapter_cached)(experiment.model)
        if not experiment.dataset.chat_template:
            adapter = self._plain.setdefault(id(adapter), adapter.with_plain_prompts())
        commit = getattr(adapter.model.config, "_commit_hash", None)
        checkpoint = resolved.checkpoint_hash or (f"{experiment.model.name}@{commit}" if commit else resolved.label)
        identity = model_identity(experiment, checkpoint, str(adapter.model.dtype).removeprefix("torch."))
        if self.weights:
            self._use_folder(experiment, adapter, identity)
        return LoadedModel(
            adapter=adapter,
            label=experiment.model.label or resolved.label,
            identity=identity,
            checkpoint_hash=resolved.checkpoint_hash,
        )

    def _use_folder(self, experiment: Experiment, adapter: ModelAdapterHF, identity: dict[str, Any]) -> None:
        """Let contexts be kept in the folder that the point names, if it names one."""
        folder, capacity = experiment.context_folder, experiment.context_folder_bytes
        files = self.contexts.files
        if folder is None:
            self.contexts.files = None
            return
        if files is None or (files.folder, files.capacity_bytes) != (folder, capacity):
            self.contexts.files = files = ContextFiles(folder, capacity)
        files.identify(adapter, context_identity(identity))

    def examples(self, experiment: Experiment, model: LoadedModel, identity: dict[str, Any]) -> Sequence[Example]:
        """Make or read the point's examples, once for the process.

        Args:
            experiment: The point.
            model: The loaded model, whose tokens are counted.
            identity: What the data set says of itself.

        Returns:
            The examples.

        Raises:
            DataError: If there are none, or one cannot be made.
        """
        dataset = experiment.dataset
        key = json.dumps([model.identity, identity, dataset.num_examples], sort_keys=True)
        if key not in self._examples:
            adapter = model.adapter
            examples = dataset.load(adapter.count_prompt_tokens, adapter.window)
            if not examples:
                raise DataError(
                    "dataset gives no example. Allowed: at least one. Check dataset.num_examples and its files."
                )
            self._examples[key] = examples
        return self._examples[key]


def context_identity(identity: dict[str, Any]) -> dict[str, Any]:
    """Take from a model's identity what contexts in `context_folder` depend on.

    The ids that the tokenizer makes are part of each context's key, its arguments are not.
    """
    by_model = {name: value for name, value in identity.items() if name != "tokenizer_kwargs"}
    return {**by_model, "prompt_version": PROMPT_VERSION}


def attention_config(experiment: Experiment) -> MaskedAttentionConfig | None:
    """Build the sparse attention's config of a point; None where no masker runs, whatever the prefill.

    Raises:
        ConfigError: If the recipe cannot be run.
    """
    if not experiment.maskers:
        return None
    return _EXECUTIONS[experiment.execution](
        masker_configs=[config for _, config in experiment.maskers],
        seed=experiment.seed,
        dense_layers=experiment.dense_layers,
        phases=list(experiment.phases),
    )
