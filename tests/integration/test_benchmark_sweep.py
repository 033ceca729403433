"""`benchmarks.sweep` runs and reports what it says it reports; how fast anything is, is not looked at."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir

from benchmarks import sweep
from benchmarks.sweep_lanes import DENSE, NO_TOKEN, QUESTIONS, SETTINGS, Sweep, endless, model_calls
from benchmarks.sweep_memory import peak_bytes, reset_peak
from benchmarks.sweep_own import PARTS, PRESETS, Clock, write_presets
from benchmarks.sweep_report import Target
from sah.adapters.factory import create_adapter
from sah.adapters.huggingface import ModelAdapterHF
from sah.config.build import build_experiment
from sah.config.paths import conf_dir
from sah.runners.session import attention_config

pytestmark = pytest.mark.slow

LANES = len(SETTINGS) * len(QUESTIONS)


@pytest.fixture(scope="module")
def adapter() -> ModelAdapterHF:
    """A dense adapter of the tiny model."""
    return create_adapter("tiny:llama")


@pytest.fixture(scope="module")
def small(adapter: ModelAdapterHF) -> Sweep:
    """The lanes over a short context."""
    return Sweep(adapter, "One sentence after another. " * 20, 4, 1 << 30)


def test_everything_is_measured_and_compared_with_its_target(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures.json"
    parts = [part for part in sweep.PARTS if part != "workers"]
    sweep.main(["--fast", "--rounds", "2", "--alone-rounds", "1", "--parts", *parts, "--json", str(file)])
    text = capsys.readouterr().out
    assert "its figures mean nothing" in text
    figures = json.loads(file.read_text())
    lanes, memory, own, plan = (figures[part] for part in parts)
    assert lanes["lanes"] == lanes["equal"] == lanes["copied_equal"] == LANES
    assert list(lanes["settings"]) == list(SETTINGS)
    assert [len(lanes[arm]["rounds"]) for arm in ("prefill", "together", "dense_lanes", "alone")] == [2, 2, 2, 1]
    for name, one in lanes["settings"].items():
        assert (one["selection_wall"] > 0) == (name != DENSE)
        assert one["alone"]["cpu"] > 0 and one["calls"]["wall"] <= one["wall"]
        assert re.search(rf"^{re.escape(name)} +[\d.]+ +[\d.]+ ", text, flags=re.MULTILINE)
    assert memory["lanes"]["lanes"] == LANES and memory[DENSE]["lanes"] == 1
    for arm in memory.values():
        assert arm["before"] < arm["after_prefill"] <= arm["whole"] and arm["to_prefill"] <= arm["whole"]
    spent = own["spent"]
    assert own["answers"] == len(SETTINGS)
    assert spent["calls"][0] > 0 and sum(spent[part][1] for part in PARTS) + spent["calls"][1] < spent["whole"][1]
    assert plan["points"] == 8

    sweep.main(["--fast", "--rounds", "2", "--alone-rounds", "1", "--parts", "--json", str(file)])
    assert capsys.readouterr().out == text, "what a file holds is not measured again"
    with pytest.raises(SystemExit, match="other conditions"):
        sweep.main(["--fast", "--rounds", "1", "--alone-rounds", "1", "--parts", "--json", str(file)])

    measured = {line[:68].strip(): line[68:].split() for line in text.splitlines() if re.search("(met|MISSED), ", line)}
    whole = lanes["prefill"]["cpu"] + lanes["together"]["cpu"]
    expected = {
        f"after prefill: {LANES} lanes / one by one": lanes["together"]["cpu"] / lanes["alone"]["cpu"],
        f"the whole / a prefill for each of {LANES}": whole / (LANES * lanes["prefill"]["cpu"] + lanes["alone"]["cpu"]),
        "the whole / the floor": whole / (lanes["prefill"]["cpu"] + lanes["dense_lanes"]["cpu"]),
    }
    for name, ratio in expected.items():
        assert f"{ratio:.3g}" in " ".join(measured[name])
    assert sum("4 lanes" in name for name in measured) == 4
    assert (
        sum("own time" in name for name in measured) == sum("composing and planning" in name for name in measured) == 2
    )
    assert sum("peak memory" in name for name in measured) == 2


@pytest.mark.parametrize("given", [["--fast", "--write"], ["--write", "--parts"], ["--alone-rounds", "9"]])
def test_what_would_spoil_the_page_is_refused(given: list[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        sweep.main(given)
    assert refused.value.code == 2


def test_the_page_has_the_block_and_the_named_test_exists() -> None:
    page = sweep.PAGE.read_text(encoding="utf-8")
    assert f"<!-- {sweep.BLOCK} -->" in page and f"<!-- /{sweep.BLOCK} -->" in page
    path, _, name = sweep.WORKERS_TEST.partition("::")
    assert f"\ndef {name}" in (sweep.ROOT / path).read_text(encoding="utf-8")


def test_presets_of_the_command_line_are_the_settings(tmp_path: Path) -> None:
    write_presets(tmp_path / "experiment")
    found: list[list[Any]] = []
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        for name in PRESETS:
            given = [f"hydra.searchpath=[file://{tmp_path}]", f"+experiment=setting_{name}"]
            config = attention_config(build_experiment(compose("config", given)))
            found.append([] if config is None else config.masker_configs)
    assert found == list(SETTINGS.values())


def test_answers_do_not_end_early_and_the_model_is_as_before(small: Sweep, adapter: ModelAdapterHF) -> None:
    before = adapter.stop_ids
    with endless(adapter):
        assert adapter.stop_ids == {NO_TOKEN}
        run = small.together(list(SETTINGS))
        alone, each = small.alone([DENSE])
    assert adapter.stop_ids == before != {NO_TOKEN}
    assert [len(answer.token_ids) for answer in run.answers.values()] == [4] * LANES
    assert [answer.token_ids for answer in alone] == [run.answers[lane].token_ids for lane in range(len(QUESTIONS))]
    assert len(each.cpu) == len(QUESTIONS) and len(run.calls.cpu) == 4
    assert sum(run.calls.wall) <= run.wall


def test_lanes_that_do_not_fit_into_one_batch_are_not_measured(adapter: ModelAdapterHF) -> None:
    with endless(adapter), pytest.raises(SystemExit, match="not one batch"):
        Sweep(adapter, "One sentence after another. " * 20, 4, 1).together([DENSE])


def test_calls_of_the_model_are_timed(small: Sweep, adapter: ModelAdapterHF) -> None:
    with model_calls(adapter) as calls:
        adapter.prefill("Some text.")
    assert len(calls.cpu) == len(calls.wall) == 1
    adapter.prefill("Some text.")
    assert len(calls.cpu) == 1, "nothing is left in the model"


def test_the_peak_is_forgotten_and_found_again() -> None:
    big = torch.ones(64 << 20, dtype=torch.uint8)
    high = peak_bytes()
    del big
    assert reset_peak() <= high - (60 << 20)
    assert peak_bytes() <= high - (50 << 20)
    before = peak_bytes()
    big = torch.ones(64 << 20, dtype=torch.uint8)
    del big
    assert peak_bytes() >= before + (60 << 20)


def test_our_time_is_without_the_models() -> None:
    clock = Clock()

    def part() -> None:
        time.sleep(0.05)
        clock.begin()
        time.sleep(0.2)
        clock.end()

    clock.part("the plan", part)()
    assert 0.2 <= clock.spent["calls"][1] < 0.25
    assert 0.05 <= clock.spent["the plan"][1] < 0.1


def test_a_target_tells_by_how_much() -> None:
    assert Target("x", "at most 2x", 1.5, 2, "x").line().endswith("1.5x  met, 25% below the limit")
    assert Target("x", "at most 2x", 3.0, 2, "x").line().endswith("3x  MISSED, 50% above the limit")
