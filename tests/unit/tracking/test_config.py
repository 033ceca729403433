from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf

from sah.errors import ConfigError
from sah.tracking.discovery import create_tracker, tracker_configs
from sah.tracking.none_config import NoTrackerConfig
from sah.tracking.trackio_config import TrackioConfig
from sah.tracking.wandb_config import WandbConfig

CONF = Path(__file__).parents[3] / "conf"


def test_trackers_are_found_by_their_modules() -> None:
    assert tracker_configs() == {
        "none": NoTrackerConfig,
        "trackio": TrackioConfig,
        "wandb": WandbConfig,
    }


def test_config_modules_import_neither_wandb_nor_torch() -> None:
    script = (
        "import sys; from sah.tracking.discovery import tracker_configs; tracker_configs(); "
        "sys.exit(int(bool({'wandb', 'trackio', 'torch', 'transformers', 'filelock'} & set(sys.modules))))"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=CONF.parent)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mode": "of"}, "auto, online, offline, disabled"),
        ({"project": " "}, "wandb.project"),
        ({"tags": "a"}, r"wandb\.tags=\[first,second\]"),
        ({"start_timeout": 0}, "wandb.start_timeout"),
        ({"finish_timeout": float("nan")}, "wandb.finish_timeout"),
    ],
)
def test_wrong_values_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        WandbConfig(**values)


def test_a_project_that_trackio_cannot_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="trackio.project='a b' is not allowed"):
        TrackioConfig(project="a b")


def test_a_refused_assignment_keeps_the_old_value() -> None:
    config = WandbConfig()
    with pytest.raises(ConfigError):
        config.mode = "sometimes"
    assert config.mode == "auto"


def _compose(*overrides: str) -> DictConfig:
    store = ConfigStore.instance()
    for name, node in tracker_configs().items():
        store.store(group="tracker/schema", name=name, node=node)
    store.store(name="tracker_test_root", node={"defaults": [{"tracker": "wandb"}, "_self_"], "seed": 0})
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("tracker_test_root", overrides=list(overrides))


@pytest.mark.parametrize(
    ("overrides", "name", "mode"),
    [
        ((), "wandb", "auto"),
        (("wandb.mode=disabled",), "wandb", "disabled"),
        (("tracker=wandb", "wandb.mode=offline", "wandb.tags=[a,b]"), "wandb", "offline"),
        (("tracker=none",), "none", None),
        (("tracker=trackio", "trackio.project=mine"), "trackio", None),
    ],
)
def test_the_command_line_reaches_the_tracker(overrides: tuple[str, ...], name: str, mode: str | None) -> None:
    composed = _compose(*overrides)
    values: Any = OmegaConf.to_container(composed[composed.tracker]) if composed.tracker in composed else {}
    config = tracker_configs()[composed.tracker](**values)
    assert config.name == name and getattr(config, "mode", None) == mode
    tracker = create_tracker(config)
    assert tracker.failure is None and tracker.location is None


@pytest.mark.parametrize("overrides", [("tracker=none", "wandb.mode=disabled"), ("wandb.colour=red",)])
def test_settings_that_nothing_would_use_are_refused(overrides: tuple[str, ...]) -> None:
    with pytest.raises(ConfigCompositionException, match="Could not override 'wandb"):
        _compose(*overrides)
