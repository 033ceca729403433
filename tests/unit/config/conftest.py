"""Composes configs in this process, as `python -m sah.run` would."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from sah.config.build import build_experiment
from sah.config.experiment import Experiment
from sah.config.paths import conf_dir
from sah.config.register import register_configs


@pytest.fixture
def composed() -> Iterator[Callable[..., DictConfig]]:
    """A function from overrides to the composed config."""
    register_configs()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        yield lambda *overrides: compose("config", overrides=list(overrides))


@pytest.fixture
def build(composed: Callable[..., DictConfig]) -> Callable[..., Experiment]:
    """A function from overrides to the validated experiment."""
    return lambda *overrides: build_experiment(composed(*overrides))
