"""What decides a point's results, as plain data. A point's id is its hash."""

from __future__ import annotations

import dataclasses
from typing import Any

from sah.config.experiment import Experiment
from sah.sparse_attention.config import MaskerConfig

PROMPT_VERSION = 1
"""Changes when the same configuration would put other tokens before the model."""

# Where a model lies and how it is fetched changes no result.
_PLACEMENT = frozenset(
    {
        "device_map",
        "cache_dir",
        "token",
        "local_files_only",
        "force_download",
        "proxies",
        "max_memory",
        "offload_folder",
    }
)


def model_identity(experiment: Experiment, checkpoint: str, dtype: str) -> dict[str, Any]:
    """Describe the model.

    Args:
        experiment: The point.
        checkpoint: Hash of the weights, or the hub's commit, or the name where neither is known.
        dtype: Type of the loaded weights.

    Returns:
        JSON data.
    """
    model = experiment.model
    return {
        "checkpoint": checkpoint,
        "dtype": dtype,
        "model_kwargs": {k: v for k, v in model.model_kwargs.items() if k not in _PLACEMENT | {"dtype", "torch_dtype"}},
        "tokenizer_kwargs": {k: v for k, v in model.tokenizer_kwargs.items() if k not in _PLACEMENT},
    }


def point_identity(
    experiment: Experiment, model: dict[str, Any], dataset: dict[str, Any], *, dense: bool
) -> dict[str, Any]:
    """Describe a point, or the dense point that it is compared with.

    Args:
        experiment: The point.
        model: From `model_identity`.
        dataset: What the data set says of itself.
        dense: Describe the dense baseline on the same examples.

    Returns:
        JSON data. The seed is part of it only where a masker draws at random, the density only in the maskers that
        read it, so that points which cannot differ are one.
    """
    identity: dict[str, Any] = {
        "model": model,
        "dataset": dataset,
        "generation": {"max_new_tokens": experiment.generation.max_new_tokens, "decoding": "greedy"},
        "prompt_version": PROMPT_VERSION,
        "prefill": "dense",
        "phases": ["question", "decode"],
    }
    if dense or experiment.is_dense:
        return {**identity, "recipe": "dense"}
    recipe = [masker_identity(config) for _, config in experiment.maskers]
    seeded = any(config.is_sampler for _, config in experiment.maskers)
    return {
        **identity,
        "recipe": recipe,
        "execution": resolved_execution(experiment),
        "seed": experiment.seed if seeded else None,
    }


def masker_identity(config: MaskerConfig) -> dict[str, Any]:
    """Describe one masker by its class and values."""
    kind = config.name or f"{type(config).__module__}.{type(config).__qualname__}"
    return {"masker": kind, **dataclasses.asdict(config)}


def resolved_execution(experiment: Experiment) -> str:
    """Resolve `auto`: evaluation needs no gradients and no attention weights, so it takes the efficient form."""
    return "efficient" if experiment.execution == "auto" else experiment.execution


def requested_density(experiment: Experiment) -> float | None:
    """Return the density that the recipe aims at, None where its budget is a size or it has none."""
    for _, config in experiment.maskers:
        if config.has_density():
            return float(getattr(config, "density"))  # noqa: B009 - a field of budgeted maskers only
    return None
