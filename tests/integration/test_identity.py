"""Which settings make another point, and which do not."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from sah.config.build import build_experiment
from sah.config.paths import conf_dir
from sah.config.register import register_configs
from sah.runners.point import Point, prepare_point
from sah.runners.session import Session
from tests.integration.running import ROOT, arguments, run, stored


@functools.cache
def prepared(*given: str) -> Point:
    """Prepare the point of some settings; nothing is computed or written."""
    register_configs()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        return prepare_point(build_experiment(compose("config", arguments(*given))), Session())


def ids(*given: str) -> tuple[str, str]:
    """Give the ids of the dense baseline and of the point of some settings."""
    point = prepared(*given)
    return point.dense.store.id, point.main.store.id


@pytest.mark.parametrize(
    "change",
    [
        "dataset.length=600",
        "dataset.seed=1",
        "dataset.haystack=prose",
        "dataset.depths=[0.5]",
        "dataset.max_new_tokens=12",
        "model.name=tiny:qwen2",
        "generation.max_new_tokens=5",
        "+model.model_kwargs.dtype=bfloat16",
        "+model.model_kwargs.attn_implementation=eager",
    ],
)
def test_what_changes_answers_is_another_point_and_another_baseline(change: str) -> None:
    before, after = ids(), ids(change)
    assert before[0] != after[0]
    assert before[1] != after[1]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (["masker=topk"], ["masker=random"]),
        (["density=0.1"], ["density=0.2"]),
        (["masker=random", "seed=0"], ["masker=random", "seed=1"]),
        (["masker=[sink,topk]"], ["masker=[sink,topk]", "masker.sink.sink_size=8"]),
        (["masker=topk"], ["masker=topk", "masker.topk.heavy_size=0.1"]),
        (["masker.topk.heavy_size=1"], ["masker.topk.heavy_size=1.0"]),
        (["execution=efficient"], ["execution=research"]),
        (["masker=topk"], ["phases=[decode]"]),
        (["masker=topk"], ["dense_layers=[0]"]),
        (["dense_layers=[0]"], ["dense_layers=[1]"]),
        (["masker=[sink,topk]"], ["masker=[sink,topk]", "masker.topk.layers=1-"]),
        (["masker=topk"], ["masker.topk.selection=group"]),
    ],
)
def test_another_recipe_shares_the_baseline(before: list[str], after: list[str]) -> None:
    first, second = ids(*before), ids(*after)
    assert first[0] == second[0]
    assert first[1] != second[1]


@pytest.mark.parametrize(
    "change",
    [
        "output_dir=elsewhere",
        "tracker=wandb",
        "threads=null",
        "margin=0.2",
        "context_cache_gib=0",
        "dataset.num_examples=1",
        "dataset.metrics=[token_f1]",
        "model.label=mine",
        "execution=efficient",
        "phases=[question,decode]",
        "attention_error=0.5",
        "fidelity=false",
        "masker.topk.layers=0-",
        "masker.topk.layers=[2,1,0]",
        "seed=7",
        "density=1e-1",
        "masker.topk.density=0.1",
        "+model.model_kwargs.device_map=cpu",
        "+model.model_kwargs.dtype=float32",
    ],
)
def test_what_changes_no_answer_is_the_same_point(change: str) -> None:
    assert ids() == ids(change)


@pytest.mark.parametrize("change", ["density=0.5", "seed=3"])
@pytest.mark.parametrize("masker", ["sink", "[sink,local]", "topp", "causal"])
def test_what_a_recipe_does_not_read_is_no_part_of_it(masker: str, change: str) -> None:
    assert ids(f"masker={masker}") == ids(f"masker={masker}", change)


@pytest.mark.parametrize("change", ["phases=[decode]", "dense_layers=[0,1]", "dense_layers=99", "attention_error=1"])
def test_the_baseline_reads_no_place_of_sparsity(change: str) -> None:
    assert ids("masker=dense") == ids("masker=dense", change)


def test_layers_are_one_however_they_are_written() -> None:
    forms = {ids(f"dense_layers={form}") for form in ("[0,1]", "0-1", "[1,0]", '"0,1"')}
    assert len(forms) == 1
    recipe = ("masker=[sink,topk]", "dense_layers=[0]")
    forms = {ids(*recipe, f"masker.topk.layers={form}") for form in ("[1,2]", "1-", "0-", "[0,1,2]")}
    assert forms == {ids(*recipe)}, "a masker works in no dense layer"


def test_whole_and_decimal_densities_are_one() -> None:
    assert ids("density=1") == ids("density=1.0")


def test_a_file_is_known_by_its_content(tmp_path: Path) -> None:
    source = ROOT / "tests/data/qa.jsonl"
    copy = Path(shutil.copy(source, tmp_path / "renamed.jsonl"))
    here = ids("dataset=jsonl", f"dataset.path={source}")
    assert here == ids("dataset=jsonl", f"dataset.path={copy}")
    prepared.cache_clear()
    copy.write_text(copy.read_text(encoding="utf-8").replace("Gull Rock", "Seal Rock"), encoding="utf-8")
    assert here != ids("dataset=jsonl", f"dataset.path={copy}")


def test_preparing_a_point_writes_nothing(tmp_path: Path) -> None:
    prepared.cache_clear()
    prepared("masker=topk")
    assert list(tmp_path.iterdir()) == []


def test_points_that_do_not_read_what_differs_run_once_and_are_shown_once() -> None:
    done = run("-m", "masker=sink", "density=0.05,0.1,0.2")
    assert done.code == 0, done.text
    assert sorted(point.label for point in stored().values()) == ["dense", "sink"]
    assert sum(line.split()[:1] == ["sink"] for line in done.out.splitlines()) == 1
    assert done.out.count("is the same point as") == 2
    assert all(len(point.predictions) == 2 for point in stored().values())
    (table,) = Path("outputs/sweeps").rglob("table.md")
    assert table.read_text(encoding="utf-8").count("is the same point as") == 2
