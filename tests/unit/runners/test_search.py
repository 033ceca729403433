"""The Pareto set of a sweep's records, and directions that fit the objectives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from sah.config.paths import conf_dir
from sah.config.register import register_configs
from sah.errors import ConfigError
from sah.runners.search import (
    PARETO_FILE,
    PARETO_PAGE,
    check_directions,
    collect_search,
    keep_search,
    search_summary,
    search_table,
)
from tests.unit.report.test_pareto import metrics


@pytest.fixture
def hydra() -> Iterator[None]:
    register_configs()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        yield


def sweep(*overrides: str) -> DictConfig:
    """The config of a sweep, Hydra's own part included."""
    return compose("config", overrides=["hydra.mode=MULTIRUN", *overrides], return_hydra_config=True)


def record(point: str, label: str, score: float, density: float, *overrides: str, **other: Any) -> dict[str, Any]:
    return {
        "status": "ok",
        "overrides": [f"masker={label}", *overrides],
        "point": point,
        "folder": f"points/{point}",
        "examples": "e",
        "label": label,
        "metrics": metrics(density=density, bytes=density * 4000),
        "objectives": {"score": score, "density": density},
        **other,
    }


RECORDS = [
    record("a", "topk", 1.0, 0.1),
    record("b", "quest", 0.5, 0.1, "masker.quest.page_size=8"),
    record("a", "topk", 1.0, 0.1),
    record("c", "quest", 0.0, 0.05, "masker.quest.page_size=16"),
    record("d", "random", 1.0, 0.01, status="failed"),
    {"status": "failed", "overrides": ["masker=sink"]},
]


def test_points_are_taken_once_and_failed_ones_not() -> None:
    found = collect_search(RECORDS)
    assert found is not None
    assert [(point.point, point.jobs) for point in found.front] == [("a", 2), ("c", 1)]
    assert [point.label for point in found.dominated] == ["quest masker.quest.page_size=8"]
    assert found.dominated[0].overrides == ("masker=quest", "masker.quest.page_size=8")


def test_one_objective_has_no_pareto_set() -> None:
    assert collect_search([{**RECORDS[0], "objectives": {"score": 1.0}}]) is None
    assert collect_search([RECORDS[-1]]) is None


def test_a_point_without_all_values_is_left_out() -> None:
    unmeasured = {key: value for key, value in RECORDS[0].items() if key != "objectives"}
    found = collect_search([unmeasured, *RECORDS[1:2]])
    assert found is not None and [point.point for point in found.front] == ["b"]


def test_the_set_is_kept_in_the_folder_and_laid_out_for_the_tracker(tmp_path: Path) -> None:
    found = collect_search(RECORDS)
    assert found is not None
    keep_search(found, tmp_path)
    kept = json.loads((tmp_path / PARETO_FILE).read_text(encoding="utf-8"))
    assert [point["values"] for point in kept["front"]] == [point.values for point in found.front]
    assert "2 of 3 points" in (tmp_path / PARETO_PAGE).read_text(encoding="utf-8")
    summary = search_summary(found)
    assert (summary["searched_points"], summary["pareto_points"]) == (3, 2)
    assert summary["pareto"]["1"] == {"setting": "quest masker.quest.page_size=16", "score": 0.0, "density": 0.05}
    columns, rows = search_table(found)
    assert {len(row) for row in rows} == {len(columns)}
    assert [(row[0], row[1]) for row in rows] == [
        ("topk", True),
        ("quest masker.quest.page_size=16", True),
        ("quest masker.quest.page_size=8", False),
    ]


@pytest.mark.parametrize(
    "given",
    [
        ["hydra/sweeper=optuna", "hydra.sweeper.direction=maximize"],
        ["hydra/sweeper=optuna", "hydra.sweeper.direction=minimize", "objectives=[bytes]"],
        ["+experiment=search_bytes"],
        ["hydra/sweeper=basic", "objectives=[density,score]"],
        ["hydra/sweeper=optuna", "objectives=[nosuch]"],
    ],
)
def test_directions_that_fit(hydra: None, given: list[str]) -> None:
    check_directions(sweep(*given))


@pytest.mark.parametrize(
    ("given", "instead"),
    [
        (["hydra/sweeper=optuna"], "hydra.sweeper.direction=maximize"),
        (["+experiment=search_bytes", "objectives=[score]"], "hydra.sweeper.direction=maximize"),
        (["+experiment=search_bytes", "objectives=[bytes,score]"], "hydra.sweeper.direction=[minimize,maximize]"),
        (["+experiment=search_bytes", "hydra.sweeper.direction=maximize"], "direction=[maximize,minimize]"),
    ],
)
def test_directions_that_do_not_fit(hydra: None, given: list[str], instead: str) -> None:
    with pytest.raises(ConfigError, match="direction") as caught:
        check_directions(sweep(*given))
    assert instead in str(caught.value)
