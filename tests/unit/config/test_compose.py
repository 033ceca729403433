"""Composing many jobs gives what Hydra gives for each of them."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict

from sah.config.compose import SweepComposer
from sah.config.lenient import strict_class
from tests.unit.config.conftest import Sweep


def by_hydra(hydra: Hydra, master: DictConfig, overrides: list[str], number: int) -> DictConfig:
    """Compose a job as Hydra's basic launcher does."""
    config = hydra.config_loader.load_sweep_config(master, overrides)
    with open_dict(config):
        config.hydra.job.id = number
        config.hydra.job.num = number
    return config


def nodes(config: DictConfig, key: str = "") -> dict[str, tuple[type | None, bool | None, bool | None]]:
    """The dataclass and the flags of every section."""
    found = {key: (strict_class(config), config._get_flag("struct"), config._get_flag("readonly"))}
    for name in config:
        node = config._get_node(name)
        if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
            found |= nodes(node, f"{key}.{name}")
    return found


JOBS: dict[str, list[list[str]]] = {
    "values": [["density=0.1", "seed=1"], ["density=0.2", "seed=1"], ["seed=2", "density=0.1"]],
    "choices": [["masker=topk"], ["masker=quest", "density=0.3"], ["model=tiny", "dataset=jsonl", "dataset.path=x"]],
    "recipes": [
        ["masker=[sink,topk]", "masker.topk.heavy_size=0.05"],
        ["masker=[topk,sink]", "masker.topk.heavy_size=0.05"],
        ["masker.sink.sink_size=8", "masker=[sink,local,topk]"],
    ],
    "a second instance": [
        ["masker=topk", "+masker/schema@masker.b=topk", "masker.b.heavy_size=3"],
        ["masker=topk", "+masker/schema@masker.b=random", "masker.b.density=0.3"],
    ],
    "deletions": [
        ["masker=[sink,topk]", "~masker.sink"],
        ["+x={a: 1, b: 2}", "~x.a", "+x.c=3"],
        ["+x=1", "~x=1", "seed=3"],
    ],
    "deleted choices": [["~masker"], ["~masker=topk", "+masker/schema@masker.b=topk"]],
    "new keys": [
        ["+model.model_kwargs.dtype=float32"],
        ["++model.model_kwargs.dtype=float64", "++seed=4"],
        ["+mine.deep.key=1", "+mine.deep.other=[1,2]", "mine.deep.key=2"],
        ["+model.tokenizer_kwargs={padding_side: left, extra: {a: 1}}"],
    ],
    "presets": [
        ["+experiment=paper_quest"],
        ["+experiment=paper_magicpig", "masker.magicpig.lsh_k=8"],
        ["+experiment=smoke", "masker=quest", "density=0.2"],
        ["+experiment=density_curve", "masker=random"],
    ],
    "interpolations": [
        ["output_dir=out/${seed}", "seed=7"],
        ["generation.max_new_tokens=${dataset.depths}"],
        ["dataset.length=${oc.env:SAH_TEST_LENGTH,600}"],
        ["output_dir='${hydra.job.name}'", "+x='${hydra:job.num}'"],
    ],
    "quotes": [
        ["output_dir='a b, c'", 'dense_layers="0-1"'],
        ['output_dir="it\'s"', "phases=[decode]"],
        ["dataset=jsonl", "dataset.path='/tmp/[x],y=1'"],
        ["context_folder=null", "timing=true", "dataset.depths=[0.1,0.5]"],
    ],
    "groups replaced by values": [
        ["masker={topk: {heavy_size: 5}}", "density=0.3"],
        ["masker.topk.heavy_size=5", "masker={topk: {heavy_size: 6}}"],
        ["tracker=none"],
    ],
    "of Hydra itself": [
        ["hydra.job.name=other", "seed=1"],
        ["density=0.1", "hydra.job.config.override_dirname.exclude_keys=[density]"],
        ["hydra.sweep.subdir=mine", "+hydra.job.env_set.A=b"],
        ["hydra/job_logging=none", "masker=quest"],
    ],
}


@pytest.mark.parametrize("kind", JOBS)
def test_a_job_equals_hydras_own(kind: str, sweep: Sweep) -> None:
    hydra, master = sweep()
    OmegaConf.select(master, "hydra.sweep.dir")  # the time in it is resolved once, for all jobs
    composer = SweepComposer(hydra.config_loader, master)
    composed = [composer.compose(overrides, number) for number, overrides in enumerate(JOBS[kind])]
    for number, (overrides, config) in enumerate(zip(JOBS[kind], composed, strict=True)):
        expected = by_hydra(hydra, master, overrides, number)
        assert OmegaConf.to_container(config, resolve=False) == OmegaConf.to_container(expected, resolve=False)
        assert list(OmegaConf.to_container(config, resolve=False)) == list(OmegaConf.to_container(expected))
        assert nodes(config) == nodes(expected)
        assert OmegaConf.get_cache(config) == OmegaConf.get_cache(expected) != {}
        with open_dict(expected):
            del expected["hydra"]
        task = composer.compose_task(overrides, number)
        assert OmegaConf.to_container(task, resolve=False) == OmegaConf.to_container(expected, resolve=False)
        assert list(task) == list(expected) and nodes(task) == nodes(expected)
        assert OmegaConf.get_cache(task) == OmegaConf.get_cache(expected)


def test_overrides_of_the_sweep_itself_reach_every_job(sweep: Sweep, tmp_path: Path) -> None:
    own = tmp_path / "masker"
    own.mkdir()
    (own / "own.yaml").write_text("defaults: [schema/topk@topk, _self_]\ntopk: {heavy_size: 9}\n")
    given = [f"hydra.searchpath=[{tmp_path}]", "hydra.sweep.subdir=${hydra.job.override_dirname}", "masker=own,topk"]
    hydra, master = sweep(*given)
    composer = SweepComposer(hydra.config_loader, master)
    for number, overrides in enumerate([["masker=own", "seed=1"], ["masker=topk", "seed=1"]]):
        config = composer.compose(overrides, number)
        assert config == by_hydra(hydra, master, overrides, number)
        assert config.hydra.sweep.subdir == " ".join(overrides).replace(" ", ",")
    assert composer.compose(["masker=own"], 0).masker.topk.heavy_size == 9


@pytest.mark.parametrize(
    "overrides",
    [
        ["masker=nosuch", "seed=1"],
        ["masker.nosuch.x=1"],
        ["nosuch=1"],
        ["density=0.1,0.2"],
        ["+density=0.1"],
        ["~nosuch"],
        ["seed@other=1"],
        ["density=["],
        ["+masker=quest"],
    ],
)
def test_a_refusal_is_hydras_own(overrides: list[str], sweep: Sweep) -> None:
    hydra, master = sweep()
    composer = SweepComposer(hydra.config_loader, master)
    with pytest.raises(HydraException) as expected:
        by_hydra(hydra, master, overrides, 0)
    for compose in (composer.compose, composer.compose_task):
        with pytest.raises(HydraException) as refused:
            compose(overrides, 0)
        assert (type(refused.value), str(refused.value)) == (type(expected.value), str(expected.value))
        assert type(refused.value.__cause__) is type(expected.value.__cause__)


def test_jobs_share_nothing(sweep: Sweep) -> None:
    hydra, master = sweep()
    composer = SweepComposer(hydra.config_loader, master)
    overrides = ["masker=topk", "+x=[1,2]"]
    first = composer.compose(overrides, 0)
    with open_dict(first):
        first.x.append(3)
        first.masker.topk.heavy_size = 7
        del first["hydra"]
    task = composer.compose_task(["masker=topk"], 0)
    task.masker.topk.heavy_size = 7
    expected = by_hydra(hydra, master, overrides, 1)
    assert composer.compose(overrides, 1) == expected
    assert composer.compose_task(["masker=topk"], 1).masker == expected.masker


def test_hydra_composes_what_is_common_once(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    hydra, master = sweep()
    loads: list[list[str]] = []
    load = ConfigLoaderImpl.load_sweep_config

    def counting(self: ConfigLoaderImpl, config: DictConfig, overrides: list[str]) -> DictConfig:
        loads.append(overrides)
        return load(self, config, overrides)

    monkeypatch.setattr(ConfigLoaderImpl, "load_sweep_config", counting)
    composer = SweepComposer(hydra.config_loader, master)
    jobs = [
        [f"masker={masker}", f"density={density}"]
        for masker, density in itertools.product(("topk", "quest"), [number / 100 for number in range(1, 9)])
    ]
    for number, overrides in enumerate(jobs):
        composer.compose(overrides, number)
    assert loads == [["masker=topk"], ["masker=quest"]]
