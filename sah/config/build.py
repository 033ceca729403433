"""From Hydra's composed config to validated dataclasses, all mistakes reported at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sah.config.experiment import Experiment
from sah.config.mistakes import all_mistakes, unknown_key
from sah.config.model import ModelConfig
from sah.config.overrides import GROUPS
from sah.config.prefill import build_prefill, check_pair
from sah.config.recipe import TARGET_KEY, build_recipe, section_class
from sah.config.schema import ExperimentConfig
from sah.config.typed import MISSING_MARK, build_section
from sah.config.values import check_share
from sah.data.config import DatasetConfig
from sah.data.discovery import dataset_configs
from sah.errors import ConfigError, bad_value
from sah.tracking.base import TrackerConfig
from sah.tracking.discovery import tracker_configs

_GIB = 1 << 30


def build_experiment(config: DictConfig) -> Experiment:
    """Validate a composed config.

    Args:
        config: What Hydra composed from `conf/config.yaml` and the command line.

    Returns:
        The point that it describes.

    Raises:
        ConfigError: If anything in it is wrong; the message lists every mistake found.
    """
    mistakes: list[str] = []
    values: dict[str, Any] = {}
    for key in config:
        name = str(key)
        if name != "hydra":
            values[name] = _plain(config, name, mistakes)
    if mistakes:
        raise all_mistakes(mistakes)
    root_fields = {entry.name for entry in dataclasses.fields(ExperimentConfig)}
    known = root_fields | set(tracker_configs())
    unknown = [name for name in values if name not in known]
    mistakes += [unknown_key(name, root_fields) for name in unknown]
    scalars = {name: values[name] for name in values if name in root_fields and name not in GROUPS}
    root, found = build_section(ExperimentConfig, {**dict.fromkeys(GROUPS), **scalars}, "")
    mistakes += found
    model, found = _model(values.get("model"))
    mistakes += found
    maskers, found = build_recipe(_node(config, "masker"), values.get("masker"), _usable_density(values.get("density")))
    mistakes += found
    prefill, found = build_prefill(_node(config, "prefill"), values.get("prefill"))
    mistakes += found or check_pair(prefill, maskers)
    dataset, found = _dataset(_node(config, "dataset"), values.get("dataset"))
    mistakes += found
    tracker, found = build_tracker(values)
    mistakes += found
    if mistakes or root is None or model is None or dataset is None or tracker is None:
        raise all_mistakes(mistakes)
    return Experiment(
        model=model,
        maskers=maskers,
        dataset=dataset,
        tracker=tracker,
        density=root.density,
        execution=root.execution,
        phases=tuple(root.phases),
        dense_layers=root.dense_layers,
        fidelity=root.fidelity,
        attention_error=float(root.attention_error),
        generation=root.generation,
        seed=root.seed,
        output_dir=Path(root.output_dir).expanduser().resolve(),
        context_cache_bytes=int(root.context_cache_gib * _GIB),
        context_folder=None if root.context_folder is None else Path(root.context_folder).expanduser().resolve(),
        context_folder_bytes=int(root.context_folder_gib * _GIB),
        lanes_bytes=int(root.lanes_gib * _GIB),
        objectives=tuple(root.objectives),
        margin=float(root.margin),
        threads=root.threads,
        timing=root.timing,
        prefill=prefill,
    )


def _plain(config: DictConfig, name: str, mistakes: list[str]) -> Any:
    """Take one top-level value as plain Python, interpolations resolved; a value not given becomes `???`."""
    try:
        if OmegaConf.is_missing(config, name):
            return MISSING_MARK
        value = config[name]
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except OmegaConfBaseException as error:
        mistakes.append(f"{error.full_key or name}: {error.msg or error}")
        return MISSING_MARK


def _node(config: DictConfig, name: str) -> object:
    return None if OmegaConf.is_missing(config, name) else config.get(name)


def _usable_density(value: Any) -> float | None:
    try:
        return check_share("density", value)
    except ConfigError:
        return None


def _no_choice(group: str, options: list[str]) -> list[str]:
    return [f"{group} must be given. Allowed: {', '.join(options)}. Write for example {group}={options[0]}"]


def _model(values: Any) -> tuple[ModelConfig | None, list[str]]:
    if not isinstance(values, Mapping):
        return None, _no_choice("model", ["llama"])
    return build_section(ModelConfig, values, "model")


def _dataset(node: object, values: Any) -> tuple[DatasetConfig | None, list[str]]:
    """Build the data set's config; its class comes from its schema or from `_target_`."""
    if not isinstance(values, Mapping):
        return None, _no_choice("dataset", list(dataset_configs()))
    try:
        config_class = section_class(node, values, "dataset")
    except ConfigError as error:
        return None, [str(error)]
    if config_class is None or not issubclass(config_class, DatasetConfig):
        return None, [
            f"dataset names no data set config. Allowed: {', '.join(dataset_configs())} by their schema, or "
            f"{TARGET_KEY}: <dotted path of a subclass of DatasetConfig>"
        ]
    return build_section(config_class, {k: v for k, v in values.items() if k != TARGET_KEY}, "dataset")


def build_tracker(values: Mapping[str, Any]) -> tuple[TrackerConfig | None, list[str]]:
    """Build the tracker's config from its name and the top-level node of that name.

    Args:
        values: The config's top level, or of it `tracker` and the node that it names.

    Returns:
        The config, or None and what is wrong.
    """
    name = values.get("tracker")
    if not isinstance(name, str) or name == MISSING_MARK:
        return None, _no_choice("tracker", list(tracker_configs()))
    config_class = tracker_configs().get(name)
    if config_class is None:
        return None, [str(bad_value("tracker", name, ", ".join(tracker_configs()), "tracker=none"))]
    given = values.get(name)
    return build_section(config_class, given if isinstance(given, Mapping) else {}, name)
