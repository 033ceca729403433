"""The loose twins that Hydra composes with."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError

from sah.config.lenient import schema_node, strict_class
from sah.config.schema import ExperimentConfig, GenerationOptions
from sah.sparse_attention.maskers.topk_config import TopKMaskerConfig


def test_a_node_has_the_fields_and_defaults_and_knows_its_class():
    node = schema_node(TopKMaskerConfig)
    assert OmegaConf.to_container(node) == {
        "density": None,
        "heavy_size": None,
        "layers": None,
        "selection": "head",
        "group_score": "mean",
    }
    assert strict_class(node) is TopKMaskerConfig


def test_any_value_fits_but_no_new_key():
    node = schema_node(TopKMaskerConfig)
    node.density = "abc"
    with pytest.raises(ConfigAttributeError):
        node.colour = 1


def test_the_class_survives_a_merge_and_a_copy():
    merged = OmegaConf.merge(schema_node(TopKMaskerConfig), {"density": [1]})
    assert strict_class(merged.copy()) is TopKMaskerConfig


def test_nested_classes_have_twins_too():
    assert strict_class(schema_node(ExperimentConfig).generation) is GenerationOptions


def test_plain_values_have_no_class():
    assert strict_class(OmegaConf.create({"a": 1})) is None
    assert strict_class(3) is None
