"""What the points of one process share: the loaded model, examples, and prefilled contexts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sah.adapters.context_cache import ContextStore
from sah.adapters.factory import load_adapter_cached, resolve_model
from sah.adapters.huggingface import ModelAdapterHF
from sah.config.experiment import Experiment
from sah.data.example import Example
from sah.errors import DataError
from sah.runners.identity import model_identity
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
    """Caches of one process. The points of a sweep that run in it load the model once and prefill a context once."""

    def __init__(self) -> None:
        self.contexts = ContextStore(0)
        self._examples: dict[str, Sequence[Example]] = {}

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
        adapter = load_adapter_cached(experiment.model)
        commit = getattr(adapter.model.config, "_commit_hash", None)
        checkpoint = resolved.checkpoint_hash or (f"{experiment.model.name}@{commit}" if commit else resolved.label)
        return LoadedModel(
            adapter=adapter,
            label=experiment.model.label or resolved.label,
            identity=model_identity(experiment, checkpoint, str(adapter.model.dtype).removeprefix("torch.")),
            checkpoint_hash=resolved.checkpoint_hash,
        )

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


def attention_config(experiment: Experiment) -> MaskedAttentionConfig | None:
    """Build the sparse attention's config of a point; None for the dense baseline.

    Raises:
        ConfigError: If the recipe cannot be run.
    """
    if experiment.is_dense:
        return None
    return _EXECUTIONS[experiment.execution](
        masker_configs=[config for _, config in experiment.maskers],
        seed=experiment.seed,
        dense_layers=experiment.dense_layers,
        phases=list(experiment.phases),
    )
