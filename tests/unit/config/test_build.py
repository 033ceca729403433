"""What the command line composes to, on the real conf/ tree."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sah.config.paths import conf_dir
from sah.errors import ConfigError
from sah.sparse_attention.discovery import masker_configs
from sah.sparse_attention.maskers.topk_config import TopKMaskerConfig

GROUP_FILES = sorted(path for path in conf_dir().glob("*/*.yaml") if path.parent.name != "experiment")


def test_the_default_point(build):
    experiment = build()
    assert experiment.label == "topk"
    assert experiment.maskers == (("topk", TopKMaskerConfig(density=0.1)),)
    assert experiment.model.name == "embedded:smollm2-135m-instruct"
    assert experiment.dataset.name == "niah"
    assert experiment.density == 0.1
    assert experiment.execution == "auto"
    assert experiment.phases == ("question", "decode")
    assert experiment.dense_layers == []
    assert experiment.generation.max_new_tokens is None
    assert experiment.seed == 0
    assert experiment.output_dir == Path("outputs").resolve()
    assert experiment.context_cache_bytes == 4 * 2**30
    assert experiment.threads == 1
    assert experiment.timing is False
    assert experiment.margin == 0.05


@pytest.mark.parametrize("path", GROUP_FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_option_of_every_group_composes(build, path):
    overrides = [f"{path.parent.name}={path.stem}"]
    if path.stem == "jsonl":
        overrides.append("dataset.path=some.jsonl")
    build(*overrides)


@pytest.mark.parametrize("path", sorted((conf_dir() / "experiment").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_preset_composes(build, path):
    build(f"+experiment={path.stem}")


@pytest.mark.parametrize(
    "path", sorted(p for p in conf_dir().rglob("*.yaml")), ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_every_file_opens_with_its_command(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = list(itertools.takewhile(lambda line: line.startswith("#"), lines))
    assert any(line.startswith("# python -m sah.run") for line in comments)


def test_every_masker_has_a_file_of_its_name():
    files = {path.stem for path in (conf_dir() / "masker").glob("*.yaml")}
    assert files >= {"dense", *masker_configs()}


def test_dense_has_no_maskers(build):
    experiment = build("masker=dense")
    assert experiment.is_dense
    assert experiment.maskers == ()
    assert experiment.label == "dense"


def test_a_list_keeps_its_order(build):
    assert build("masker=[sink,local,topk]").label == "sink+local+topk"
    assert build("masker=[topk,sink]").label == "topk+sink"


def test_an_own_size_replaces_the_top_level_density(build):
    ((_, masker),) = build("masker.topk.heavy_size=64", "density=0.2").maskers
    assert (masker.heavy_size, masker.density) == (64, None)


def test_an_own_density_replaces_the_top_level_one(build):
    ((_, masker),) = build("masker.topk.density=0.3", "density=0.2").maskers
    assert masker.density == 0.3


def test_int_sizes_and_float_shares_stay_apart(build):
    assert type(build("masker.topk.heavy_size=1").maskers[0][1].heavy_size) is int
    assert type(build("masker.topk.heavy_size=1.0").maskers[0][1].heavy_size) is float


def test_a_second_instance_of_a_masker(build):
    experiment = build("+masker/schema@masker.b=topk", "masker.topk.heavy_size=4", "masker.b.density=0.5")
    assert experiment.maskers == (
        ("topk", TopKMaskerConfig(heavy_size=4)),
        ("b", TopKMaskerConfig(density=0.5)),
    )


def test_a_masker_is_taken_out_by_its_key(build):
    assert build("masker=[sink,topk]", "~masker.sink").label == "topk"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("dense_layers=[0,1]", [0, 1]),
        ('dense_layers="0-1"', "0-1"),
        ("dense_layers=0-1", "0-1"),
        ('dense_layers="0,28-"', "0,28-"),
        ("dense_layers=3", 3),
        ("dense_layers=[]", []),
    ],
)
def test_dense_layers_may_be_written_in_several_ways(build, given, expected):
    assert build(given).dense_layers == expected
    ((_, masker),) = build(given.replace("dense_layers", "masker.topk.layers")).maskers
    assert masker.layers == expected


def test_phases(build):
    assert build("phases=[decode]").phases == ("decode",)
    assert build("phases=[question,decode]").phases == ("question", "decode")


def test_maskers_of_different_layers_both_read_the_top_level_density(build):
    experiment = build(
        "masker=[topk,random,sink]", 'masker.topk.layers="0-1"', 'masker.random.layers="2-"', "density=0.3"
    )
    assert [getattr(masker, "density", None) for _, masker in experiment.maskers] == [0.3, 0.3, None]


@pytest.mark.parametrize(
    ("argument", "points"),
    [
        ("phases=[question,decode],[decode]", ["[question,decode]", "[decode]"]),
        ('dense_layers=[],[0,1],"0-1",28-', ["[]", "[0,1]", '"0-1"', "28-"]),
        ('masker.topk.layers="0,2-",[1,2]', ['"0,2-"', "[1,2]"]),
    ],
)
def test_a_sweep_over_places_needs_no_quotes_but_the_shell_s(argument, points):
    override = OverridesParser.create().parse_override(argument)
    assert list(override.sweep_string_iterator()) == points


def test_model_kwargs_take_new_keys(build):
    assert build("+model.model_kwargs.dtype=bfloat16").model.model_kwargs == {"dtype": "bfloat16"}


def test_a_masker_of_ones_own_is_named_by_its_class(build):
    experiment = build(
        "masker=sink",
        "+masker.mine={_target_: sah.sparse_attention.maskers.topk_config.TopKMaskerConfig, heavy_size: 8}",
    )
    assert experiment.maskers[1] == ("mine", TopKMaskerConfig(heavy_size=8))


def test_the_tracker_and_its_values(build):
    assert build("wandb.mode=disabled").tracker.mode == "disabled"
    assert type(build("tracker=none").tracker).name == "none"


def test_generation_limits(build):
    generation = build().generation
    assert generation.limit(None) == 50
    assert generation.limit(7) == 7
    assert build("generation.max_new_tokens=3").generation.limit(7) == 3


@pytest.mark.parametrize("value", ["-0.1", "1.5", "wide", "null", ".nan"])
def test_a_margin_is_a_difference_of_scores(build, value):
    with pytest.raises(ConfigError, match="margin"):
        build(f"margin={value}")
    assert build("margin=0").margin == 0.0


@pytest.mark.slow
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(value=st.floats(allow_nan=True, allow_infinity=True) | st.integers(-3, 3))
def test_any_density_is_taken_exactly_or_refused(build, value):
    if 0 < value <= 1:
        assert build(f"density={value!r}").maskers[0][1].density == value
    else:
        with pytest.raises(ConfigError, match="density="):
            build(f"density={value!r}")
