"""Composes configs in this process, as `python -m sah.run` would."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
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


Sweep = Callable[..., tuple[Hydra, DictConfig]]


@pytest.fixture
def sweep() -> Iterator[Sweep]:
    """A function from a sweep's own overrides to Hydra and the sweep's config."""
    register_configs()
    GlobalHydra.instance().clear()

    def begin(*overrides: str, folder: Path | None = None) -> tuple[Hydra, DictConfig]:
        GlobalHydra.instance().clear()
        path = create_config_search_path(str(conf_dir()))
        if folder is not None:
            path.append(provider="command-line", path=f"file://{folder}")
        hydra = Hydra.create_main_hydra2("sah", path)
        given = ["hydra.mode=MULTIRUN", *overrides]
        master = hydra.compose_config("config", given, run_mode=RunMode.MULTIRUN, with_log_configuration=False)
        return hydra, master

    yield begin
    GlobalHydra.instance().clear()
