"""`DoubleSparsity` and `HashAttention`: the recipes that their configs make, and the same output as those."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from sah.adapters.base import Request
from sah.adapters.hash_files import write_weights
from sah.adapters.huggingface import ModelAdapterHF
from sah.errors import ConfigError
from sah.fetching import CACHE_VARIABLE
from sah.sparse_attention import (
    ChannelConfig,
    DoubleSparsity,
    DoubleSparsityConfig,
    DoubleSparsityTopKMaskerConfig,
    EfficientAttention,
    EfficientAttentionConfig,
    HashAttention,
    HashAttentionConfig,
    HashAttentionTopKMaskerConfig,
    LocalMaskerConfig,
    SinkMaskerConfig,
    SparseAttention,
)
from tests.support.attention import SHAPES, attend, hash_layer, make_inputs, with_channels
from tests.support.models import folder

ENDS = [SinkMaskerConfig(2), LocalMaskerConfig(5)]
PAIRS: dict[str, tuple[Any, list[Any]]] = {
    "double_sparsity": (
        DoubleSparsityConfig(
            sink_size=2, window_size=5, density=0.3, channel_config=ChannelConfig(group_factor=4, label_bits=None)
        ),
        [*ENDS, DoubleSparsityTopKMaskerConfig(density=0.3, group_factor=4, label_bits=None)],
    ),
    "double_sparsity-alone": (
        DoubleSparsityConfig(sink_size=0, window_size=0.0, heavy_size=9, selection="group", group_score="max"),
        [DoubleSparsityTopKMaskerConfig(heavy_size=9, selection="group", group_score="max")],
    ),
    "hash_attention": (
        HashAttentionConfig(sink_size=2, window_size=5, heavy_size=0.2, bits=16, selection="group"),
        [*ENDS, HashAttentionTopKMaskerConfig(heavy_size=0.2, bits=16, selection="group")],
    ),
    "hash_attention-sinks": (
        HashAttentionConfig(window_size=0, density=0.2),
        [SinkMaskerConfig(4), HashAttentionTopKMaskerConfig(density=0.2)],
    ),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_the_output_is_that_of_the_recipe(pair: str) -> None:
    config, recipe = PAIRS[pair]
    assert config.masker_configs == recipe
    named = with_channels(SparseAttention.create_from_config(config))
    wide = with_channels(EfficientAttention(EfficientAttentionConfig(masker_configs=recipe)))
    assert type(named) is (DoubleSparsity if pair.startswith("double") else HashAttention)
    for shape in SHAPES[:5]:
        inputs = make_inputs(shape)
        assert torch.equal(attend(named, inputs), attend(wide, inputs))


def test_the_recipe_follows_its_values() -> None:
    config = HashAttentionConfig(density=0.1, seed=3, dense_layers=[0], phases=["decode"])
    assert (config.seed, config.dense_layers, config.phases) == (3, [0], ["decode"])
    config.bits = 64
    assert config.masker_configs[-1] == HashAttentionTopKMaskerConfig(density=0.1, bits=64)
    assert dataclasses.replace(config, sink_size=0).masker_configs == config.masker_configs[1:]
    before = config.masker_configs
    for name, value in (("bits", 12), ("heavy_size", 9), ("density", None), ("window_size", -1)):
        with pytest.raises(ConfigError, match=r"masker\.(hash_attention|local)"):
            setattr(config, name, value)
        assert config.masker_configs == before and config.bits == 64
    with pytest.raises(ConfigError, match="follow from its other values"):
        config.masker_configs = []
    with pytest.raises(TypeError):
        HashAttentionConfig(masker_configs=[])  # type: ignore[call-arg]


def test_a_name_takes_its_own_config() -> None:
    plain = EfficientAttentionConfig(masker_configs=[HashAttentionTopKMaskerConfig(density=0.1)])
    for config in (plain, DoubleSparsityConfig(density=0.1)):
        with pytest.raises(ConfigError, match="HashAttention is made from a HashAttentionConfig"):
            HashAttention(config)
        with pytest.raises(ConfigError, match="not HashAttention"):
            HashAttention.create_from_config(config)


@pytest.mark.parametrize("values", [{"group_factor": 0}, {"label_bits": 17}, {"channels": " "}])
def test_channels_are_checked(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"masker\.double_sparsity\.{next(iter(values))}"):
        ChannelConfig(**values)
    with pytest.raises(ConfigError, match="Allowed: a ChannelConfig"):
        DoubleSparsityConfig(density=0.1, channel_config={"group_factor": 8})  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["double_sparsity", "hash_attention"])
def test_an_adapter_takes_the_config(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    if method == "double_sparsity":
        config: Any = DoubleSparsityConfig(density=0.2, window_size=8, channel_config=ChannelConfig(group_factor=2))
    else:
        weights = tmp_path / "hash.safetensors"
        write_weights(weights, {layer: hash_layer(4, 2, 16, 16, seed=layer) for layer in range(3)}, {})
        config = HashAttentionConfig(density=0.2, window_size=8, bits=16, weights=str(weights))
    adapter = ModelAdapterHF(config, folder("llama"))
    wide = adapter.with_sparse_attention(EfficientAttentionConfig(masker_configs=config.masker_configs))
    request = Request("a b c d e f " * 20, " which one?", max_new_tokens=4)
    assert type(adapter.sparse_attention) is (DoubleSparsity if method == "double_sparsity" else HashAttention)
    assert adapter.process_request(request) == wide.process_request(request)
