"""What a wrong config says: the key, the value, what is allowed, what to write."""

from __future__ import annotations

import re

import pytest
from hydra.errors import HydraException

from sah.config.explain import explain
from sah.config.overrides import check_choices
from sah.errors import ConfigError


@pytest.mark.parametrize("value", ["0", "-0.1", "1.5", "nan", "inf", "abc", "[0.1]", "true", "null"])
@pytest.mark.parametrize("key", ["density", "masker.topk.density"])
def test_densities(build, key, value):
    if (key, value) == ("masker.topk.density", "null"):
        pytest.skip("null is the default there")
    with pytest.raises(ConfigError) as caught:
        build(f"{key}={value}")
    message = str(caught.value)
    assert message.startswith(f"{key}=")
    assert "a number above 0 and at most 1" in message
    assert f"{key}=0.1" in message
    assert "mistakes" not in message


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["masker.topk.density=0.1", "masker.topk.heavy_size=5"], "masker.topk.heavy_size=5 are both given"),
        (["masker.topk.heavy_size=0"], "masker.topk.heavy_size=0 is not allowed"),
        (["masker.topk.heavy_size=2.0"], "masker.topk.heavy_size=2.0 is not allowed"),
        (["masker.topk.heavy_size=many"], "masker.topk.heavy_size='many' is not allowed"),
        (["~masker.topk"], "the recipe is left without a masker"),
        (["~masker"], "the recipe is left without a masker"),
        (["masker=[]"], "the recipe is left without a masker"),
        (["masker=[dense,topk]"], "dense cannot be combined with topk"),
        (["masker=dense", "+masker.dense.size=1"], "masker.dense.size: the dense baseline takes no values"),
        (["masker=[topk,random]"], "topk and random both read the top-level density"),
        (["masker=[streaming_llm,topk]"], "streaming_llm and topk both read the top-level density"),
        (
            ["masker=[topk,random]", "masker.topk.layers=0-2", "masker.random.layers=2-"],
            "topk and random both read the top-level density",
        ),
        (
            ["masker=[topk,random]", "masker.topk.density=0.1", "masker.random.density=0.1"],
            "2 density maskers (topk, random) in one layer",
        ),
        (["masker.topk.layers=few"], "masker.topk.layers='few' is not allowed. Allowed: layer numbers"),
        (["masker.topk.layers=-1"], "masker.topk.layers='-1' is not allowed"),
        (["masker.topk.layers=[1,x]"], "masker.topk.layers=[1, 'x'] is not allowed"),
        (["masker.topk.selection=pair"], "masker.topk.selection='pair' is not allowed. Allowed: head, group"),
        (["+masker/schema@masker.b=sink", "masker.b.layers=x"], "masker.b.layers='x' is not allowed"),
        (["dense_layers=few"], "dense_layers='few' is not allowed. Allowed: layer numbers from 0 and ranges"),
        (["dense_layers=2-1"], "dense_layers='2-1' is not allowed"),
        (["dense_layers=null"], "dense_layers=None is not allowed. Allowed: layer numbers and ranges, [] for none"),
        (["dense_layers=0.5"], "dense_layers=0.5 is not allowed"),
        (["phases=decode"], "phases='decode' is not allowed. Allowed: [question,decode]"),
        (["attention_error=2"], "attention_error=2 is not allowed. Allowed: a number from 0 to 1"),
        (["attention_error=-0.1"], "attention_error=-0.1 is not allowed"),
        (["attention_error=some"], "attention_error='some' is not allowed"),
        (["attention_error=null"], "attention_error=None is not allowed"),
        (["phases=[]"], "phases=[] is not allowed"),
        (["phases=[question]"], "phases=['question'] is not allowed"),
        (["phases=null"], "phases=None is not allowed"),
        (["phases=[prefill,question,decode]"], "phases=['prefill', 'question', 'decode'] is not allowed"),
        (["+masker.topk.foo=1"], "masker.topk.foo is not a key of masker.topk. Allowed: density, group_score, "),
        (
            ["masker=sink", "+masker.topk.density=0.1"],
            "masker.topk.density is set, but the recipe has no masker",
        ),
        (
            ["+masker.mine.size=1"],
            "masker.mine.size is set, but there is no masker 'mine'. Allowed: adaptive, causal, ",
        ),
        (["+masker.mine=3"], "masker.mine=3 holds no masker"),
        (["+masker.mine={_target_: no.such.Class}"], "masker.mine._target_=no.such.Class cannot be imported"),
        (["+masker.mine={_target_: pathlib.Path}"], "masker.mine: Path is no masker config"),
        (
            ["+masker/schema@masker.b=topk", "masker.topk.heavy_size=4", "masker.b.density=7"],
            "masker.b.density=7",
        ),
        (["execution=fast"], "execution='fast' is not allowed. Allowed: auto, research, efficient"),
        (["generation.max_new_tokens=0"], "generation.max_new_tokens=0 is not allowed"),
        (["generation.max_new_tokens=few"], "generation.max_new_tokens='few' is not allowed"),
        (["+generation.temperature=1"], "generation.temperature is not a key of generation"),
        (["seed=-1"], "seed=-1 is not allowed"),
        (["seed=0.5"], "seed=0.5 is not allowed. Allowed: a whole number"),
        (["threads=0"], "threads=0 is not allowed"),
        (["context_cache_gib=-1"], "context_cache_gib=-1.0 is not allowed"),
        (["output_dir="], "output_dir='' is not allowed"),
        (["output_dir=null"], "output_dir=None is not allowed"),
        (["dataset.length=0"], "dataset.length=0 is not allowed"),
        (["+dataset.lenght=100"], "dataset.lenght is not a key of dataset. Allowed: "),
        (["+model.foo=1"], "model.foo is not a key of model. Allowed: "),
        (["wandb.mode=sometimes"], "wandb.mode='sometimes' is not allowed"),
        (["+wandb.foo=1"], "wandb.foo is not a key of wandb. Allowed: "),
        (["+foo=1"], "foo is not a key of the config. Allowed: attention_error, context_cache_gib, "),
        (["output_dir=${no_such_key}"], "no_such_key"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_one_mistake_is_named(build, overrides, expected):
    with pytest.raises(ConfigError, match=re.escape(expected)) as caught:
        build(*overrides)
    assert "mistakes:" not in str(caught.value)


def test_all_mistakes_are_reported_together(build):
    with pytest.raises(ConfigError) as caught:
        build(
            "density=2",
            "seed=-1",
            "execution=fast",
            "generation.max_new_tokens=0",
            "masker.topk.density=abc",
            "masker.topk.heavy_size=-3",
            "dataset.length=-1",
            "dataset.num_examples=x",
            "phases=[answer]",
            "dense_layers=[-1]",
            "+foo=1",
        )
    message = str(caught.value)
    assert message.startswith("The config has 11 mistakes:")
    for key in (
        "density=2",
        "seed=-1",
        "execution='fast'",
        "generation.max_new_tokens=0",
        "masker.topk.density='abc'",
        "masker.topk.heavy_size=-3",
        "dataset.length=-1",
        "dataset.num_examples='x'",
        "phases=['answer']",
        "dense_layers=[-1]",
        "foo is not a key",
    ):
        assert key in message


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("masker=null", "masker=None is not allowed"),
        ("masker=3", "masker=3 is not allowed"),
        ("dataset=null", "dataset=None is not allowed"),
        ("model=[llama,tiny]", "only masker takes a list"),
        ("masker=[topk,topk]", "masker: topk stands more than once"),
        ("masker=sink,[topk,topk]", "masker: topk stands more than once"),
    ],
)
def test_choices_that_hydra_lets_through(argument, expected):
    with pytest.raises(ConfigError, match=re.escape(expected)):
        check_choices(["-m", argument])


def test_other_arguments_are_left_to_hydra():
    check_choices(
        [
            "-m",
            "--config-dir",
            "some=where",
            "masker=topk,[sink,topk]",
            "masker=glob(*)",
            "density=null",
            "~masker",
        ]
        + ["not an override", "+experiment=smoke", "hydra/launcher=null", "masker.topk.heavy_size=range(1,4)"]
    )


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["mskr=topk"], "mskr is not a key of the config. Allowed: attention_error, context_cache_gib, "),
        (["mskr=topk"], "Write for example: masker=..."),
        (["nosuch=1"], "Remove nosuch"),
        (["dataset.lenght=3"], "Write for example: dataset.length=..."),
        (["dataset.nosuch.deep=3"], "dataset.nosuch is not a key of dataset. Allowed: depths, "),
        (["generation.temperature=1"], "generation.temperature is not a key of generation. Allowed: max_new_tokens"),
        (["density.x=3"], "density.x is not a key of density"),
        (["masker=dense", "masker.dense.x=1"], "masker.dense.x: the dense baseline takes no values"),
        (["masker.sink.sink_size=3"], "masker.sink.sink_size is set, but the recipe has no masker 'sink'"),
        (["masker.mine.size=3"], "masker.mine.size is set, but there is no masker 'mine'. Allowed: adaptive, causal, "),
        (["tracker=none", "wandb.mode=offline"], "wandb.mode is set, but the tracker is 'none'. Write tracker=wandb"),
        (["model.model_kwargs.dtype=bfloat16"], "Write +model.model_kwargs.dtype=..."),
        (["hydra.nosuch=1"], "hydra.nosuch is not a key of hydra"),
        (["masker=tpk"], "masker='tpk' is not allowed. Allowed: adaptive, causal, dense, "),
        (["masker=tpk"], "Write for example: masker=topk"),
        (["masker=[sink,tpk]"], "Write for example: 'masker=[sink,topk]'"),
        (["+experiment=smok"], "+experiment='smok' is not allowed. Allowed: density_curve, "),
        (["+masker/schema@masker.b=tpk"], "Write for example: +masker/schema@masker.b=topk"),
        (["experiment=smoke"], "use +experiment=smoke"),
        (["masker=[sink"], "masker: this argument cannot be read"),
        (["dataset.metrics.7=x"], "dataset.metrics.7=x\nlist index out of range"),
        (["~masker.sink"], "'masker.sink' does not exist"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_hydra_refuses_is_told_in_our_words(composed, overrides, expected):
    with pytest.raises(HydraException) as caught:
        composed(*overrides)
    message = explain(caught.value, overrides)
    assert expected in message
    assert "append to your config" not in message and "Config search path" not in message


def test_a_choice_inside_a_file_names_the_file(composed, tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\ndefaults:\n  - override /masker: tpk\n")
    overrides = ["+experiment=mine", f"hydra.searchpath=[file://{tmp_path}]"]
    with pytest.raises(HydraException) as caught:
        composed(*overrides)
    message = explain(caught.value, overrides)
    assert "masker='tpk' is not allowed" in message and "masker: topk" in message
