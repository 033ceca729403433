"""What decides a point's results, as plain data. A point's id is its hash."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sah.adapters.context_cache import prefill_identity
from sah.config.experiment import Experiment
from sah.sparse_attention.config import parse_dense_layers
from sah.sparse_attention.layers import LayerSet
from sah.sparse_attention.masker_config import MaskerConfig

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
    experiment: Experiment, model: dict[str, Any], num_layers: int, dataset: dict[str, Any], *, dense: bool
) -> dict[str, Any]:
    """Describe a point, or the dense point that it is compared with.

    Args:
        experiment: The point.
        model: From `model_identity`.
        num_layers: Layers that the model has.
        dataset: What the data set says of itself.
        dense: Describe the dense baseline on the same examples.

    Returns:
        JSON data. The seed is part of it only where something is drawn with it, the density only in the maskers that
        read it, phases and dense layers only where a masker runs, so that points which cannot differ are one.
        What is measured beside the answers (fidelity, attention error) changes none and is no part.
    """
    identity: dict[str, Any] = {
        "model": model,
        "dataset": dataset,
        "generation": {"max_new_tokens": experiment.generation.max_new_tokens, "decoding": "greedy"},
        "prompt_version": PROMPT_VERSION,
        "prefill": prefill_identity(None if dense else experiment.prefill),
    }
    if dense or not experiment.maskers:
        return {**identity, "recipe": "dense"}
    dense_layers = parse_dense_layers(experiment.dense_layers)
    sparse_layers = [layer for layer in range(num_layers) if layer not in dense_layers]
    recipe = [masker_identity(config, sparse_layers) for _, config in experiment.maskers]
    seeded = any(config.is_sampler for _, config in experiment.maskers)
    return {
        **identity,
        "recipe": recipe,
        "phases": list(experiment.phases),
        "dense_layers": str(LayerSet(frozenset(range(num_layers)) - frozenset(sparse_layers))),
        "execution": resolved_execution(experiment),
        "seed": experiment.seed if seeded else None,
    }


def masker_identity(config: MaskerConfig, sparse_layers: Iterable[int]) -> dict[str, Any]:
    """Describe one masker by its class, its values and those of a model's sparse layers that it works in."""
    kind = config.name or f"{type(config).__module__}.{type(config).__qualname__}"
    layers = LayerSet(frozenset(layer for layer in sparse_layers if layer in config.layer_set))
    return {"masker": kind, **config.identity(), "layers": str(layers)}


def resolved_execution(experiment: Experiment) -> str:
    """Resolve `auto`: evaluation asks for no gradients and no attention weights, so it takes the efficient form."""
    return "efficient" if experiment.execution == "auto" else experiment.execution


def requested_density(experiment: Experiment) -> float | None:
    """Return the density that the recipe aims at; None where it has none, or not the same in all layers."""
    # A field of budgeted maskers only.
    densities = {float(getattr(config, "density")) for _, config in experiment.maskers if config.has_density()}  # noqa: B009
    return densities.pop() if len(densities) == 1 else None
