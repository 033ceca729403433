"""Values are checked when built and when assigned, and messages say what to write instead."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest

from sah import sparse_attention as public
from sah.errors import ConfigError
from sah.sparse_attention import (
    AutoAttentionConfig,
    CausalMaskerConfig,
    EfficientAttentionConfig,
    LocalMaskerConfig,
    OracleTopKConfig,
    RandomSamplingMaskerConfig,
    ResearchAttention,
    ResearchAttentionConfig,
    SinkMaskerConfig,
    SparseAttention,
    StreamingLLMMaskerConfig,
    TopKMaskerConfig,
    TopPMaskerConfig,
)
from sah.sparse_attention.config import SparseAttentionConfig, check_recipe
from sah.sparse_attention.discovery import masker_configs

SHARES = [
    (TopKMaskerConfig, "density", "masker.topk.density"),
    (RandomSamplingMaskerConfig, "density", "masker.random.density"),
    (StreamingLLMMaskerConfig, "density", "masker.streaming_llm.density"),
    (TopPMaskerConfig, "top_p", "masker.topp.top_p"),
]
SIZES = [
    (TopKMaskerConfig, "heavy_size", "masker.topk.heavy_size"),
    (RandomSamplingMaskerConfig, "sampling_rate", "masker.random.sampling_rate"),
    (StreamingLLMMaskerConfig, "window_size", "masker.streaming_llm.window_size"),
    (StreamingLLMMaskerConfig, "sink_size", "masker.streaming_llm.sink_size"),
    (SinkMaskerConfig, "sink_size", "masker.sink.sink_size"),
    (LocalMaskerConfig, "window_size", "masker.local.window_size"),
]
BAD_SHARES = [0, -0.1, 1.1, 2, math.nan, math.inf, -math.inf, "0.1", "much", True, [0.1]]
BAD_SIZES = [-1, -0.5, 1.5, 2.0, math.nan, math.inf, "4", True, [4]]


def says(error: ConfigError, key: str, value: Any) -> None:
    text = str(error)
    assert key in text
    assert repr(value) in text
    assert "Allowed:" in text
    assert f"{key}=" in text.partition("Write")[2]


@pytest.mark.parametrize("value", BAD_SHARES, ids=repr)
@pytest.mark.parametrize(("config", "field", "key"), SHARES, ids=lambda x: x if isinstance(x, str) else "")
def test_a_bad_share_is_refused_when_built(config: Any, field: str, key: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        config(**{field: value})
    says(caught.value, key, value)


@pytest.mark.parametrize("value", BAD_SIZES, ids=repr)
@pytest.mark.parametrize(("config", "field", "key"), SIZES, ids=lambda x: x if isinstance(x, str) else "")
def test_a_bad_size_is_refused_when_built(config: Any, field: str, key: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        config(**{field: value})
    says(caught.value, key, value)


@pytest.mark.parametrize(("config", "field", "key"), SHARES + SIZES, ids=lambda x: x if isinstance(x, str) else "")
def test_a_refused_assignment_keeps_the_old_value(config: Any, field: str, key: str) -> None:
    built = config(**{field: 0.25})
    with pytest.raises(ConfigError) as caught:
        setattr(built, field, -3)
    says(caught.value, key, -3)
    assert getattr(built, field) == 0.25
    setattr(built, field, 0.5)
    assert getattr(built, field) == 0.5


@pytest.mark.parametrize(
    ("config", "size"),
    [
        (TopKMaskerConfig, "heavy_size"),
        (RandomSamplingMaskerConfig, "sampling_rate"),
        (StreamingLLMMaskerConfig, "window_size"),
    ],
)
def test_two_budgets_are_refused_when_built_and_when_assigned(config: Any, size: str) -> None:
    with pytest.raises(ConfigError, match="both given") as caught:
        config(**{"density": 0.1, size: 7})
    for part in (f"masker.{config.name}.density=0.1", f"masker.{config.name}.{size}=7", "Allowed", "Write"):
        assert part in str(caught.value)
    by_size, by_density = config(**{size: 7}), config(density=0.1)
    with pytest.raises(ConfigError):
        by_size.density = 0.1
    assert by_size.density is None
    with pytest.raises(ConfigError):
        setattr(by_density, size, 7)
    assert getattr(by_density, size) is None


def test_defaults() -> None:
    assert SinkMaskerConfig().sink_size == 4
    assert LocalMaskerConfig().window_size == 64
    assert StreamingLLMMaskerConfig().sink_size == 4


def test_types_of_sizes_are_kept() -> None:
    assert isinstance(TopKMaskerConfig(heavy_size=1).heavy_size, int)
    assert isinstance(TopKMaskerConfig(heavy_size=1.0).heavy_size, float)
    assert SinkMaskerConfig(sink_size=0).sink_size == 0


def test_who_reads_the_top_level_density() -> None:
    reads = [TopKMaskerConfig(), RandomSamplingMaskerConfig(), StreamingLLMMaskerConfig()]
    for config in reads:
        assert config.reads_density()
        filled = config.with_density(0.2)
        assert (filled.density, filled.reads_density(), config.density) == (0.2, False, None)
        with pytest.raises(ConfigError):
            config.with_density(0)
    for config in [
        TopKMaskerConfig(heavy_size=3),
        TopKMaskerConfig(density=0.3),
        SinkMaskerConfig(),
        TopPMaskerConfig(),
    ]:
        assert not config.reads_density()
        assert config.with_density(0.2) == config


RECIPE_ERRORS: dict[str, tuple[Any, list[str]]] = {
    "empty": (lambda: [], ["masker=dense"]),
    "no budget": (lambda: [TopKMaskerConfig()], ["masker.topk", "masker.topk.density=0.1", "Allowed"]),
    "two densities": (
        lambda: [TopKMaskerConfig(density=0.1), RandomSamplingMaskerConfig(density=0.2)],
        ["topk", "random", "densit", "nstead"],
    ),
    "two samplers": (
        lambda: [RandomSamplingMaskerConfig(sampling_rate=3), RandomSamplingMaskerConfig(sampling_rate=0.1)],
        ["random", "sampl", "nstead"],
    ),
    "no config": (lambda: ["topk"], ["'topk'", "Write"]),
}


@pytest.mark.parametrize("attention", [ResearchAttentionConfig, EfficientAttentionConfig, AutoAttentionConfig])
@pytest.mark.parametrize("case", RECIPE_ERRORS)
def test_recipes_are_checked_when_built_and_when_assigned(attention: Any, case: str) -> None:
    make, parts = RECIPE_ERRORS[case]
    with pytest.raises(ConfigError) as caught:
        attention(masker_configs=make())
    for part in parts:
        assert part in str(caught.value)
    good = attention(masker_configs=[CausalMaskerConfig()])
    with pytest.raises(ConfigError):
        good.masker_configs = make()
    assert good.masker_configs == [CausalMaskerConfig()]


def test_a_recipe_spoilt_after_it_was_built_is_found_when_the_attention_is() -> None:
    config = ResearchAttentionConfig(masker_configs=[SinkMaskerConfig()])
    config.masker_configs.clear()
    with pytest.raises(ConfigError, match="masker=dense"):
        SparseAttention.create_from_config(config)


PLACES: list[tuple[str, Any]] = [
    ("phases", "decode"),
    ("phases", []),
    ("phases", ["question"]),
    ("phases", ["decode", "question"]),
    ("phases", ["prefill", "question", "decode"]),
    ("phases", None),
    ("phases", 3),
    ("dense_layers", None),
    ("dense_layers", -1),
    ("dense_layers", "all"),
    ("dense_layers", [0, "1"]),
]


@pytest.mark.parametrize(("field", "value"), PLACES, ids=repr)
def test_a_wrong_place_is_refused_when_built_and_when_assigned(field: str, value: Any) -> None:
    good = ResearchAttentionConfig([SinkMaskerConfig()], dense_layers="0-1", phases=["decode"])
    with pytest.raises(ConfigError) as caught:
        ResearchAttentionConfig([SinkMaskerConfig()], **{field: value})
    says(caught.value, field, value)
    with pytest.raises(ConfigError):
        setattr(good, field, value)
    assert (good.phases, good.dense_layers) == (["decode"], "0-1")


def test_where_a_recipe_applies_by_default() -> None:
    config = ResearchAttentionConfig([SinkMaskerConfig()])
    assert (config.phases, config.dense_layers) == (["question", "decode"], [])
    assert config.recipe_of(7) == [0]


def test_create_from_config() -> None:
    config = EfficientAttentionConfig(masker_configs=[SinkMaskerConfig()])
    built = SparseAttention.create_from_config(config)
    assert type(built).__name__ == "EfficientAttention"
    built = SparseAttention.create_from_config(AutoAttentionConfig(masker_configs=[SinkMaskerConfig()]))
    assert type(built).__name__ == "AutoAttention"
    built = SparseAttention.create_from_config(ResearchAttentionConfig(masker_configs=[SinkMaskerConfig()]))
    assert type(built) is ResearchAttention
    for wrong in (SparseAttentionConfig(), SinkMaskerConfig(), None):
        with pytest.raises(ConfigError, match="ResearchAttentionConfig"):
            SparseAttention.create_from_config(wrong)  # type: ignore[arg-type]


def test_every_class_of_the_table_is_public() -> None:
    assert set(masker_configs()) >= {"causal", "sink", "local", "streaming_llm", "topk", "topp", "random"}
    assert OracleTopKConfig is TopKMaskerConfig
    for name in [
        "CausalMasker",
        "SinkMasker",
        "LocalMasker",
        "OracleTopK",
        "TopPMasker",
        "RandomSamplingMasker",
        "ResearchMasker",
        "FixedMasker",
        "TopKMasker",
        "SamplingMasker",
        "Mask",
        "AutoAttention",
        "AutoAttentionConfig",
        "EfficientAttention",
        "ResearchAttention",
        "SparseAttentionConfig",
    ]:
        assert getattr(public, name).__name__ == name
        assert name in dir(public)
    with pytest.raises(AttributeError, match="NoSuchMasker"):
        _ = public.NoSuchMasker


def test_configs_import_no_torch() -> None:
    code = (
        "import sys, sah.sparse_attention as s; from sah.sparse_attention.discovery import masker_configs;"
        "masker_configs();"
        "s.TopKMaskerConfig, s.ResearchAttentionConfig; heavy = {'torch', 'transformers'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("behind", ["topk", "topp", "quest", "double_sparsity", "streaming_llm"])
@pytest.mark.parametrize("sampler", ["random", "adaptive", "magicpig"])
def test_a_sampler_stands_last_but_for_fixed_patterns(sampler: str, behind: str) -> None:
    """A key that was drawn before it is chosen would keep the weight of its draw."""
    found = masker_configs()
    sizes: dict[str, dict[str, Any]] = {"random": {"sampling_rate": 0.1}, "topp": {}, "adaptive": {}, "magicpig": {}}
    recipe = [found[name](**sizes.get(name, {"density": 0.2})) for name in (sampler, behind)]
    with pytest.raises(ConfigError, match=rf"{behind} comes after the sampler {sampler}.*'\[{behind},{sampler}\]'"):
        check_recipe(recipe)
    check_recipe(recipe[::-1])
    check_recipe([recipe[0], found["sink"](), found["local"]()])
    found_apart = [
        found[sampler](**sizes[sampler], layers="0-1"),
        found[behind](**sizes.get(behind, {"density": 0.2}), layers="2-"),
    ]
    check_recipe(found_apart)


def test_values_that_are_not_read_are_no_part_of_the_identity() -> None:
    topk, adaptive = masker_configs()["topk"], masker_configs()["adaptive"]
    assert topk(density=0.1, group_score="max").identity() == topk(density=0.1).identity()  # type: ignore[call-arg]
    by_group = [topk(density=0.1, selection="group", group_score=how).identity() for how in ("max", "mean")]  # type: ignore[call-arg]
    assert by_group[0] != by_group[1]
    assert adaptive(base_rate=100, base_min=5).identity() == adaptive(base_rate=100).identity()  # type: ignore[call-arg]
    assert adaptive(base_min=5).identity() != adaptive().identity()  # type: ignore[call-arg]
