"""Sparse prefill in runs: groups, fidelity, resume, files, plans and what reports show of it."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest

from sah.results.rows import PredictionRow
from sah.results.store import StoredPoint
from sah.runners.group import group_points
from sah.runners.point import Point, prepare_point
from sah.runners.session import Session
from tests.integration.conftest import Work
from tests.integration.groups import experiments, run_settings
from tests.integration.running import arguments, outcomes, plan, run, run_exactly, stored

PREFILLS = ("dense", "a_shape", "block_topk")
MASKERS = ("dense", "topk", "random")
SETTINGS = tuple((f"masker={m}", f"prefill={p}", "fidelity=true") for m in MASKERS for p in PREFILLS)
TIMES = ("seconds", "run", "prefill_reused")


def prefill_of(point: StoredPoint) -> str:
    """Name the prefill of a stored point."""
    prefill = point.identity["prefill"]
    return prefill if isinstance(prefill, str) else str(prefill["name"])


def by_setting(folder: Path) -> dict[tuple[str, str], StoredPoint]:
    """Key the stored points of a folder by recipe and prefill."""
    return {(point.label, prefill_of(point)): point for point in stored(folder).values()}


def without_times(row: Any) -> dict[str, Any]:
    """A row's content without what differs between two runs of the same work."""
    fields = dataclasses.asdict(row)
    return {name: value for name, value in fields.items() if not any(part in name for part in TIMES)}


def close(one: Any, other: Any) -> bool:
    """Tell whether two rows agree, numbers up to rounding."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(close, one, other))
    return one == (pytest.approx(other, rel=1e-4, abs=1e-5) if isinstance(other, float) else other)


@pytest.mark.slow
def test_a_group_of_prefills_gives_what_its_points_give_alone(work: Work) -> None:
    run_settings(*SETTINGS, folder="together")
    together = by_setting(Path("together"))
    assert set(together) == {(m, p) for m in MASKERS for p in PREFILLS}
    texts = len(set(work.prefills))
    assert len(work.prefills) == texts * len(PREFILLS), "each context once for each prefill"

    for number, setting in enumerate(SETTINGS[1:]):  # the first is the baseline, which is there with each
        run_settings(setting, folder=f"alone{number}", session=Session())
        for name, point in by_setting(Path(f"alone{number}")).items():
            for one, other in (
                (point.predictions, together[name].predictions),
                (point.fidelity, together[name].fidelity),
            ):
                assert one.keys() == other.keys()
                for key, row in one.items():
                    assert close(without_times(row), without_times(other[key])), (name, key)


def test_what_rows_and_metrics_say_of_a_sparse_prefill() -> None:
    done = run("masker=dense", "prefill=block_topk", "prefill.density=0.3", "prefill.block_size=16", "fidelity=true")
    assert done.code == 0, done.text
    points = by_setting(Path("outputs"))
    sparse, dense = points["dense", "block_topk"], points["dense", "dense"]
    for row in dense.predictions.values():
        assert row.prefill_density == 1.0 and row.prefill_reused is False
    for row in sparse.predictions.values():
        assert row.prefill_density is not None and 0.0 < row.prefill_density < 0.6
        assert row.density_measured == 1.0 and row.density_by_phase == {} and row.attention_calls == 0
        assert row.prefill_seconds is not None and row.prefill_reused is False
    assert len(sparse.fidelity) == 2
    assert all(row.kl is not None and row.kl > 1e-6 for row in sparse.fidelity.values()), "against the dense prefill"
    assert sparse.metrics is not None
    assert sparse.metrics["prefill"] == "block_topk 0.3 block_size=16"
    assert sparse.metrics["dense_point"] == dense.id
    assert sparse.metrics["sparse"]["fidelity"]["questions"] == 2
    assert "error" not in sparse.metrics
    assert "+ prefill block_topk 0.3" in done.text and "prefill density" in done.text


def test_a_prefill_that_keeps_everything_gives_dense_answers() -> None:
    whole = ("prefill.density=1.0", "fidelity=true")
    points = run_settings(*(("masker=topk", f"prefill={name}", *whole) for name in PREFILLS[1:]), ("masker=topk",))
    *sparse, plain = (by_id(point) for point in points)
    for point in sparse:
        for key, row in point.predictions.items():
            assert row.token_ids == plain.predictions[key].token_ids
            assert row.prefill_density == pytest.approx(1.0)
    own = run_settings(("masker=dense", "prefill=block_topk", *whole))[0]
    for fidelity in by_id(own).fidelity.values():
        assert fidelity.kl == pytest.approx(0.0, abs=1e-5) and fidelity.top1_agreement == 1.0


def by_id(point: Point) -> StoredPoint:
    """Read what a point that has run left."""
    return stored()[point.main.store.id]


def test_the_same_command_computes_nothing_again(work: Work) -> None:
    given = ("masker=topk", "prefill=block_topk", "fidelity=true")
    assert run(*given).code == 0
    before = {name: outcomes(point) for name, point in by_setting(Path("outputs")).items()}
    work.clear()
    assert run(*given).code == 0
    assert work.counts == (0, 0, 0)
    assert {name: outcomes(point) for name, point in by_setting(Path("outputs")).items()} == before
    # The dense rows are there, and without fidelity nothing needs the dense prefill.
    assert run("masker=random", "prefill=block_topk").code == 0
    assert work.counts == (0, 0, 2), "the process holds the contexts of both prefills"


@pytest.mark.slow
def test_contexts_on_disk_are_kept_by_prefill(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_anew(*given: str) -> dict[str, PredictionRow]:
        monkeypatch.setattr("sah.runners.job._session", Session())
        folder = f"run{next(numbers)}"
        done = run("masker=topk", "context_folder=contexts", f"output_dir={folder}", *given)
        assert done.code == 0, done.text
        (point,) = (point for point in stored(Path(folder)).values() if point.label == "topk")
        return dict(point.predictions)

    numbers = itertools.count()

    first = run_anew("prefill=block_topk")
    assert len(list(Path("contexts").iterdir())) == 4, "two contexts, dense and sparse"
    run_anew("prefill=block_topk", "prefill.density=0.2")
    assert len(list(Path("contexts").iterdir())) == 6
    text = plan("masker=topk", "context_folder=contexts", "output_dir=new", "prefill=block_topk,dense,a_shape").text
    assert "Prefills: 2; 4 contexts more are read from context_folder." in text
    assert "topk + prefill block_topk 0.1" in text
    work.clear()
    again = run_anew("prefill=block_topk", "seed=1")
    assert work.prefills == []
    for key, row in first.items():
        assert again[key].prefill_density == row.prefill_density
        assert again[key].token_ids == row.token_ids
        assert again[key].prefill_reused is True


def test_a_plan_counts_a_prefill_for_each_pattern() -> None:
    session = Session(weights=False)
    points = [prepare_point(one, session) for one in experiments(*((f"prefill={name}",) for name in PREFILLS))]
    (group,) = group_points(points)
    spec = group.spec()
    for work_item in group.works():
        assert [None if p is None else p.name for p in spec.prefills_of(work_item)] == [None, "a_shape", "block_topk"]


def test_prose_is_read_behind_a_sparse_prefill() -> None:
    prose = ("dataset=prose", "dataset.length=256", "dataset.continuation=16", "dataset.num_examples=2")
    given = [a for a in arguments("masker=topk", "prefill=a_shape", *prose) if not a.startswith("dataset.length=512")]
    done = run_exactly(*given)
    assert done.code == 0, done.text
    points = by_setting(Path("outputs"))
    dense, sparse = points["dense", "dense"].predictions, points["topk", "a_shape"].predictions
    for key, row in sparse.items():
        assert row.log_likelihood is not None and row.log_likelihood != dense[key].log_likelihood


def test_ids_of_dense_prefills_are_what_they_were() -> None:
    session = Session(weights=False)
    for experiment in experiments(("masker=topk",), ("masker=dense",)):
        point = prepare_point(experiment, session)
        # An id is the hash of this: a key more or another value would make other points of finished ones.
        common = {"model", "dataset", "generation", "prompt_version", "prefill", "recipe"}
        assert all(arm.store.identity["prefill"] == "dense" for arm in point.arms)
        assert set(point.dense.store.identity) == common
        if point.sparse is not None:
            own = {"phases", "dense_layers", "execution", "seed"}
            assert set(point.sparse.store.identity) == common | own
    whole = experiments(
        *(("masker=topk", f"prefill={name}") for name in PREFILLS),
        ("masker=topk", "prefill=block_topk", "prefill.density=0.2"),
    )
    ids = [prepare_point(one, session).main.store.id for one in whole]
    assert len(set(ids)) == 4
    dense = {prepare_point(one, session).dense.store.id for one in whole}
    assert len(dense) == 1, "all are compared with one baseline"
