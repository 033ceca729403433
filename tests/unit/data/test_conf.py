"""Every data set file in conf/ composes into a valid config, alone and with overrides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from sah.config.build import build_experiment
from sah.config.paths import conf_dir
from sah.config.register import register_configs
from sah.data.config import DatasetConfig
from sah.data.discovery import dataset_configs

FILES = sorted(path.stem for path in (Path(conf_dir()) / "dataset").glob("*.yaml"))


def dataset(*overrides: str) -> DatasetConfig:
    register_configs()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return build_experiment(compose("config", overrides=["masker=dense", *overrides])).dataset


@pytest.mark.parametrize("name", FILES)
def test_a_file_composes_and_begins_with_its_command(name: str) -> None:
    first = (Path(conf_dir()) / "dataset" / f"{name}.yaml").read_text().splitlines()[0]
    assert first.startswith(f"# python -m sah.run dataset={name}")
    config = dataset(*first.removeprefix("# python -m sah.run ").split())
    assert type(config) in dataset_configs().values()


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), {"task": "single", "needle": "number", "haystack": "noise", "length": 1024, "num_examples": 8}),
        (("dataset.depths=[0.1,0.9]", "dataset.length=512"), {"depths": [0.1, 0.9], "length": 512}),
        (("dataset.task=multikey", "dataset.num_keys=6"), {"num_keys": 6}),
        (("dataset=niah_multikey",), {"task": "multikey", "haystack": "essays", "num_keys": 4}),
        (("dataset=niah_multiquery", "dataset.num_queries=6"), {"num_queries": 6, "max_new_tokens": 64}),
        (("dataset.metrics=[string_match_any]",), {"metrics": ["string_match_any"]}),
    ],
)
def test_overrides_reach_the_config(overrides: tuple[str, ...], expected: dict[str, Any]) -> None:
    config = dataset(*overrides)
    assert {key: getattr(config, key) for key in expected} == expected


def test_nested_field_names_are_overridden_one_by_one() -> None:
    config: Any = dataset("dataset=jsonl", "dataset.path=a.jsonl", "dataset.fields.context=passage")
    assert config.fields.context == "passage" and config.fields.question == "question"
    assert not OmegaConf.is_config(config.fields)
