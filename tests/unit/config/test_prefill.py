"""The group `prefill`: what it composes to, its mistakes, and maskers that cannot stand behind a sparse prefill."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from sah.config.diagnose import Diagnoser
from sah.config.experiment import Experiment, prefill_label
from sah.config.paths import conf_dir
from sah.config.prefill import check_pair
from sah.errors import ConfigError
from sah.sparse_attention.discovery import masker_configs
from sah.sparse_attention.masker_config import MaskerConfig
from sah.sparse_attention.maskers.topk_config import TopKMaskerConfig
from sah.sparse_attention.prefill.discovery import prefill_configs
from sah.terminal.checked import check_command

Build = Callable[..., Experiment]


def test_every_pattern_has_a_file_of_its_name() -> None:
    assert {path.stem for path in (conf_dir() / "prefill").glob("*.yaml")} == {"dense", *prefill_configs()}


@pytest.mark.parametrize("name", prefill_configs())
def test_a_file_holds_the_defaults_of_its_pattern(build: Build, name: str) -> None:
    assert build(f"prefill={name}").prefill == prefill_configs()[name]()


def test_dense_decoding_over_a_sparse_prefill_is_not_the_dense_baseline(build: Build) -> None:
    plain, sparse = build("masker=dense"), build("masker=dense", "prefill=block_topk", "prefill.density=0.2")
    assert plain.prefill is None and plain.is_dense
    assert sparse.maskers == () and not sparse.is_dense
    assert sparse.title == "dense + prefill block_topk 0.2"
    assert plain.title == "dense"


def test_a_label_tells_what_is_not_the_pattern_s_own(build: Build) -> None:
    assert build("prefill=a_shape").prefill_label == "a_shape 0.1"
    given = build("prefill=block_topk", "prefill.blocks=4", "prefill.selection=group").prefill
    assert given is not None and prefill_label(given) == "block_topk blocks=4 selection=group"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["prefill=block_topk", "prefill.densty=1"], "Write for example: prefill.density=..."),
        (["prefill=block_topk", "prefill.density=2"], "prefill.density=2.0 is not allowed. Allowed: a number above 0"),
        (["prefill.density=0.2"], "prefill.density is set, but the prefill is dense"),
        (
            ["prefill=zzz", "prefill.density=0.3"],
            "prefill='zzz' is not allowed. Allowed: a_shape, block_topk, dense, vert",
        ),
    ],
)
def test_mistakes(sweep: Any, given: list[str], told: str) -> None:
    hydra, master = sweep()
    _, mistakes = Diagnoser(hydra.config_loader, master.hydra.mode).experiment([*given, "model=tiny", "tracker=none"])
    assert len(mistakes) == 1
    assert told in mistakes[0]


def test_a_value_holds_for_all_patterns_of_a_sweep() -> None:
    right = check_command(["prefill=block_topk,a_shape", "prefill.density=0.3", "model=tiny"], multirun=True)
    assert right.mistakes == []
    assert [one.prefill_label for one in right.experiments] == ["block_topk 0.3", "a_shape 0.3"]
    wrong = check_command(["prefill=dense,a_shape", "prefill.density=0.3", "model=tiny"], multirun=True)
    assert len(wrong.mistakes) == 1 and "the prefill is dense and takes no values" in wrong.mistakes[0]


def test_a_pattern_of_ones_own(build: Build) -> None:
    target = "+prefill._target_=sah.sparse_attention.prefill.a_shape_config.AShapeConfig"
    assert build(target, "+prefill.density=0.3").prefill == prefill_configs()["a_shape"](density=0.3)
    with pytest.raises(ConfigError, match="no prefill config"):
        build("+prefill._target_=sah.sparse_attention.maskers.topk_config.TopKMaskerConfig")


@dataclass
class _SumsConfig(MaskerConfig):
    name: ClassVar[str] = "sums"
    observes: ClassVar[str] = "mass"


@dataclass
class _WindowConfig(MaskerConfig):
    name: ClassVar[str] = "window"
    observes: ClassVar[str] = "window"


def test_a_masker_that_needs_all_attention_is_refused_behind_a_sparse_prefill() -> None:
    sums, window, topk = ("sums", _SumsConfig()), ("window", _WindowConfig()), ("topk", TopKMaskerConfig(density=0.1))
    for pattern in prefill_configs().values():
        (told,) = check_pair(pattern(), (topk, sums, window))
        assert told.startswith(f"masker: sums cannot stand behind prefill={pattern.name}")
        assert "Write prefill=dense" in told
        assert check_pair(pattern(), (topk, window)) == []
    assert check_pair(None, (sums,)) == []


def test_every_such_masker_is_refused_on_the_command_line(build: Build) -> None:
    files = {path.stem for path in (conf_dir() / "masker").glob("*.yaml")}
    names = [name for name, config in masker_configs().items() if config.observes == "mass" and name in files]
    for name in names:
        with pytest.raises(ConfigError, match=f"{name} cannot stand behind prefill=block_topk"):
            build(f"masker={name}", "prefill=block_topk")
