"""What is read from a point for a search, and how its result is told."""

from __future__ import annotations

import json

import pytest

from sah.config.schema import ExperimentConfig
from sah.report.pareto import SearchPoint, front_markdown, search_result
from sah.report.summary import OBJECTIVES, objective_values, summarise_point


def metrics(**sparse) -> dict:
    arm = {
        "status": {"ok": 4},
        "scores": {"match": {"mean": 1.0, "count": 4}},
        "measures": {"density_measured": None},
        "prefill": {"count": 0, "seconds": None},
        "decode_ms_per_token": None,
        "decode_kv_bytes": 4000.0,
    }
    found = {"metrics": ["match"], "label": "dense", "dense": arm}
    if sparse:
        found |= {
            "label": "topk",
            "phases": ["decode"],
            "dense_layers": "",
            "sparse": {**arm, "measures": {"density_measured": sparse["density"]}, "decode_kv_bytes": sparse["bytes"]},
            "comparison": {"scores": {"match": {"pairs": 4, "dense": 1.0, "sparse": 0.5, "difference": -0.5}}},
        }
    return found


def point(label: str, score: float, density: float, jobs: int = 1) -> SearchPoint:
    values = {"score": score, "density": density}
    return SearchPoint(label, density, values, jobs, (f"masker={label}",), f"id of {label}", f"points/{label}")


def test_values_come_in_the_order_asked_for():
    sparse = summarise_point(metrics(density=0.125, bytes=700.0))
    assert objective_values(sparse, ["score"]) == (0.5,)
    assert objective_values(sparse, ["bytes", "score", "density"]) == (700.0, 0.5, 0.125)


def test_a_dense_point_reads_everything():
    assert objective_values(summarise_point(metrics()), ["score", "density", "bytes"]) == (1.0, 1.0, 4000.0)


@pytest.mark.parametrize("missing", ["density", "bytes"])
def test_what_was_not_measured_gives_no_values(missing):
    sparse = summarise_point(metrics(**{"density": 0.1, "bytes": 7.0, missing: None}))
    assert objective_values(sparse, ["score", missing]) is None
    assert objective_values(sparse, ["score"]) == (0.5,)


def test_every_objective_that_the_config_takes_has_a_direction():
    assert set(ExperimentConfig.OBJECTIVES) == set(OBJECTIVES)


def test_the_set_is_told_best_score_first():
    found = search_result(
        [point("low", 0.0, 0.01), point("worse", 0.5, 0.2), point("best", 1.0, 0.3), point("mid", 0.5, 0.1, jobs=3)],
        ["score", "density"],
    )
    assert [entry.label for entry in found.front] == ["best", "mid", "low"]
    assert [entry.label for entry in found.dominated] == ["worse"]
    page = front_markdown(found)
    assert page.startswith("Pareto set of score (maximize), density (minimize): 3 of 4 points\n\n| setting |")
    assert "| mid | 0.100 | 0.500 | 0.1000 | 3 |\n" in page and "worse" not in page
    kept = json.loads(json.dumps(found.to_json()))
    assert kept["objectives"] == {"score": "maximize", "density": "minimize"}
    assert kept["front"][1]["values"] == {"score": 0.5, "density": 0.1}
    assert kept["dominated"][0]["point"] == "id of worse"
