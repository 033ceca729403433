"""The figures of a report as data: what they show, and what they leave out."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report_folder import HEADS, LAYERS, METRIC, Sweep, make_sweep
from sah.report import curves
from sah.report.grids import depth_length, layer_head, needle_sets
from sah.report.load import ReportData, ReportPoint, load_report

DENSITIES = (0.05, 0.1)
SWEEP = Sweep(methods=2, densities=DENSITIES, lengths=(512, 1024), contexts=6, questions=2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ReportData:
    return load_report(make_sweep(tmp_path_factory.mktemp("outputs"), SWEEP))


@pytest.fixture(scope="module")
def points(data: ReportData) -> list[ReportPoint]:
    """Of one length: the only ones that compare."""
    return next(iter(data.groups().values()))


@pytest.fixture(scope="module")
def with_dense(data: ReportData) -> list[ReportPoint]:
    """All points of the output folder on one length, the dense one among them."""
    everything = load_report(Path(data.points[0].main.folder).parents[1])
    return next(group for group in everything.groups().values() if any(point.is_dense for point in group))


def changed(point: ReportPoint, **part: Any) -> ReportPoint:
    """The point with another part of its sparse figures."""
    sparse = {**point.metrics["sparse"], **part}
    return dataclasses.replace(point, metrics={**point.metrics, "sparse": sparse})


def test_a_curve_a_method_by_rising_density(points: list[ReportPoint]) -> None:
    found = curves.density_curves(list(reversed(points)))
    assert {curve.label for curve in found} == {"topk", "quest"}
    for curve in found:
        assert [point.x for point in curve.points] == pytest.approx([1.01 * density for density in DENSITIES])
        for point in curve.points:
            source = list(reversed(points))[point.place]
            assert (point.name, point.y) == (source.name, source.summary.sparse)
            stored = source.metrics["sparse"]["scores"][METRIC]
            assert (point.low, point.high) == (stored["low"], stored["high"])


def test_differences_have_the_interval_of_the_pairs(points: list[ReportPoint]) -> None:
    [first, *_] = curves.density_curves(points, curves.difference)
    stored = points[first.points[0].place].metrics["comparison"]["scores"][METRIC]
    assert (first.points[0].low, first.points[0].y, first.points[0].high) == (
        stored["low"], stored["difference"], stored["high"],
    )  # fmt: skip
    assert stored["low"] <= stored["difference"] <= stored["high"]


def test_dense_points_are_no_curve(with_dense: list[ReportPoint]) -> None:
    assert "dense" not in {curve.label for curve in curves.density_curves(with_dense)}
    band = curves.dense_band(with_dense)
    assert band is not None and band.low is not None and band.high is not None
    assert band.low <= band.value <= band.high


def test_what_was_not_measured_is_left_out(points: list[ReportPoint]) -> None:
    bare = [changed(points[0], fidelity=None), *points[1:]]
    read = partial(curves.fidelity, name="kl")
    assert sum(len(curve.points) for curve in curves.density_curves(points, read)) == len(points)
    assert sum(len(curve.points) for curve in curves.density_curves(bare, read)) == len(points) - 1
    assert curves.density_curves(points, curves.perplexity) == []
    assert layer_head(changed(points[0], attention_by_head=None), "density") is None
    without = dataclasses.replace(points[0], summary=dataclasses.replace(points[0].summary, density_measured=None))
    assert sum(len(curve.points) for curve in curves.density_curves([without, *points[1:]])) == len(points) - 1


def test_points_with_another_metric_are_no_part_of_the_scores(points: list[ReportPoint]) -> None:
    other = dataclasses.replace(points[0], summary=dataclasses.replace(points[0].summary, metric="f1"))
    assert curves.main_metric([other, *points[1:]]) == METRIC
    assert sum(len(curve.points) for curve in curves.density_curves([other, *points[1:]])) == len(points) - 1


def test_phases_part_methods_of_one_name(points: list[ReportPoint]) -> None:
    decode = dataclasses.replace(points[0], summary=dataclasses.replace(points[0].summary, sparse_in="decode"))
    labels = curves.method_labels([*points, decode])
    assert "topk in decode" in labels and "topk in question+decode" in labels


def test_labels_say_what_differs_within_a_recipe(points: list[ReportPoint]) -> None:
    labels = [f"quest masker.quest.page_size={size} dataset.length=512" for size in (8, 16)] + ["topk"]
    named = [dataclasses.replace(points[0], label=label) for label in labels]
    assert curves.method_labels(named) == ["quest quest.page_size=8", "quest quest.page_size=16", "topk"]


def test_no_other_point_beats_the_front(with_dense: list[ReportPoint]) -> None:
    for cost in ("density", "bytes"):
        found = curves.pareto(with_dense, cost)  # type: ignore[arg-type]
        assert found[0].label == "dense"
        assert len(found) == 1 + sum(not point.is_dense for point in with_dense)
        for point in found:
            beaten = any((o.x <= point.x and o.y >= point.y) and (o.x, o.y) != (point.x, point.y) for o in found)
            assert point.on_front is not beaten
    assert curves.pareto(with_dense, "density")[0].x == 1.0
    assert curves.pareto(with_dense, "bytes")[0].x == with_dense[0].metrics["dense"]["decode_kv_bytes"]


def test_times_add_up(points: list[ReportPoint]) -> None:
    [split] = curves.time_split(points)
    assert split.kind == "shared"
    dense, *sparse = split.bars
    assert dense.name == "dense" and dense.parts == pytest.approx({"attention": 50.0})
    assert [bar.name for bar in sparse] == [point.name for point in points]
    for bar, point in zip(sparse, points, strict=True):
        assert sum(bar.parts.values()) == pytest.approx(point.summary.attention_ms[1])
        assert bar.same_run is point.summary.timed_together is True


def test_prefills_are_counted_once(points: list[ReportPoint]) -> None:
    found = curves.prefill_seconds(points)
    assert found is not None
    assert found[0] == pytest.approx(points[0].metrics["dense"]["prefill"]["seconds"])
    assert found[1] == SWEEP.contexts * SWEEP.questions


def test_perplexity_turns_the_interval_around(points: list[ReportPoint]) -> None:
    scores = {curves.LOG_LIKELIHOOD: {"mean": -2.0, "low": -2.5, "high": -1.5, "count": 3}}
    value, low, high = curves.perplexity(changed(points[0], scores=scores))
    assert (value, low, high) == pytest.approx((math.exp(2.0), math.exp(1.5), math.exp(2.5)))


@pytest.mark.parametrize("value", [None, True, "0.5", math.nan, math.inf, [1]])
def test_only_finite_numbers_are_numbers(value: object) -> None:
    assert curves.number(value) is None


def test_heads_are_laid_out_by_layer(points: list[ReportPoint]) -> None:
    grid = layer_head(points[0], "mass_recalled")
    assert grid is not None
    assert (len(grid.y), len(grid.x)) == (LAYERS, HEADS)
    assert [list(row) for row in grid.cells] == points[0].metrics["sparse"]["attention_by_head"]["mass_recalled"]
    ragged = {"layers": [3, 7], "output_error": [[0.1, None, math.nan], [0.2]]}
    grid = layer_head(changed(points[0], attention_by_head=ragged), "output_error")
    assert grid is not None
    assert (grid.y, grid.cells) == (("3", "7"), ((0.1, None, None), (0.2, None, None)))


def test_needles_of_all_lengths_come_together(data: ReportData) -> None:
    [family] = data.groups(same_needles=True).values()
    sets = needle_sets(family)
    assert len(sets) == len(data.points) / 2
    name, members = next(iter(sets.items()))
    assert len(members) == 2 and "length" not in name
    grid = depth_length(members)
    assert grid is not None and grid.counts is not None
    assert grid.y == ("512", "1024")
    assert len(grid.x) == SWEEP.contexts
    assert all(count == SWEEP.questions for row in grid.counts for count in row)
    total = sum(value or 0 for row in grid.cells for value in row) * SWEEP.questions
    rows = [pair.sparse_scores[METRIC] for point in members for pair in point.pairs()]
    assert total == pytest.approx(sum(rows))


def test_rows_without_a_depth_make_no_heatmap(points: list[ReportPoint]) -> None:
    rows = {key: dataclasses.replace(row, metadata={}) for key, row in points[0].main.predictions.items()}
    bare = dataclasses.replace(points[0], main=dataclasses.replace(points[0].main, predictions=rows))
    assert depth_length(bare) is None
    assert depth_length(points[0], "dense") is not None
