"""Points that differ in their phases alone have names of their own, and tables keep settings and groups apart."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from sah.report.curves import method_labels, prefill_bars, prefill_curves
from sah.report.load import ReportData, load_report
from sah.report.page import write_report
from sah.report.plots import group_plots
from sah.report.story import Block, Heading, Items, Table, make_story
from sah.report.table import markdown_table
from tests.support.finished import METRIC, Work

PHASES = (["question", "decode"], ["decode"])
DENSE = [1.0, 1.0, 1.0, 0.0, 1.0, 1.0]
SPARSE = {("decode", 512): [1.0, 1.0, 1.0, 0.0, 1.0, 1.0], ("decode", 1024): [1.0, 1.0, 1.0, 0.0, 1.0, 0.0]}
NAMES = {"topk 0.1 in question+decode", "topk 0.1 in decode"}


def two_phases(root: Path, lengths: Iterable[int] = (512,)) -> ReportData:
    work = Work(root)
    ids = []
    for length in lengths:
        for phases in PHASES:
            sparse = SPARSE.get(("+".join(phases), length), [0.0, 1.0, 0.0, 0.0, 1.0, 0.0])
            heads = {"layers": [0], "rows": [4], "output_error": [[0.1, 0.2]]}
            given = {"attention_by_head": heads, "measures": {"attention_seconds": 0.1, "density_measured": 0.1}}
            ids.append(work.sparse("topk", 0.1, sparse, DENSE, given, phases=phases, length=length))
    return load_report(work.sweep("one", ids))


def after(blocks: Iterable[Block], heading: str, kind: type[Block]) -> Block:
    rest = iter(blocks)
    next(block for block in rest if block == Heading(heading))
    return next(block for block in rest if isinstance(block, kind))


def test_phases_are_part_of_names_where_they_differ(tmp_path: Path) -> None:
    data = two_phases(tmp_path)
    assert {point.name for point in data.points} == NAMES
    assert {point.label for point in data.points} == {"topk"}
    verdicts = after(make_story(data).blocks, "Verdicts", Items)
    assert isinstance(verdicts, Items)
    assert len({text.partition(":")[0] for text in verdicts.texts}) == 2
    assert all("topk at density 0.1 in " in text for text in verdicts.texts)
    alone = load_report(data.points[0].main.folder)
    assert [point.name for point in alone.points] == ["topk 0.1"]


def test_every_csv_tells_its_points_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    data = two_phases(tmp_path / "work", (512, 1024))
    write_report(data, tmp_path / "report")
    ids = {point.name + str(point.main.identity["dataset"]["length"]): point.id for point in data.points}
    assert len(ids) == len(set(ids.values())) == 4
    seen = set()
    for path in (tmp_path / "report" / "figures").glob("*.csv"):
        with path.open(newline="") as file:
            lines = list(csv.DictReader(file))
        sparse = {(line["setting"].removesuffix(" (another run)"), line["point"]) for line in lines if line["point"]}
        assert {name for name, _ in sparse} == NAMES, path
        assert len(sparse) == 2, path
        assert {identity for _, ids_of in sparse for identity in ids_of.split()} <= set(ids.values())
        seen.add(path.stem.partition("-")[2])
    assert {"density", "points", "heads-output-error", "needle", "time-shared", "pareto-density"} <= seen


def test_scores_by_task_are_those_of_one_setting_on_one_data_set(tmp_path: Path) -> None:
    data = two_phases(tmp_path, (512, 1024))
    table = after(make_story(data).blocks, "Scores by task", Table)
    assert isinstance(table, Table)
    assert table.columns == ("model and data", "setting", "single")
    titles = list(data.groups())
    assert len(titles) == 2 and all("length=" in title for title in titles)
    assert [row[:2] for row in table.rows].count((titles[0], "dense")) == 1
    cells = {row[:2]: row[2] for row in table.rows}
    assert len(cells) == len(table.rows) == 6
    for title, points in data.groups().items():
        for point in points:
            for name, arm in (("dense", "dense"), (point.name, "sparse")):
                stored = point.metrics[arm]["scores"][METRIC]
                assert cells[title, name] == f"{stored['mean']:.3f} [{stored['low']:.2f}, {stored['high']:.2f}]"
    decode = {title: cells[title, "topk 0.1 in decode"][:5] for title in titles}
    assert sorted(decode.values()) == ["0.667", "0.833"]


def test_a_sparse_prefill_is_part_of_names(tmp_path: Path) -> None:
    work = Work(tmp_path)
    times = {"prefill": {"density": 0.25, "seconds": 2.0, "cpu_seconds": 2.0, "count": 6, "reused": 0}}
    ids = [work.sparse("topk", 0.1, DENSE, DENSE)]
    ids += [work.sparse("topk", 0.1, DENSE, DENSE, times, prefill=f"block_topk {share}") for share in ("0.1", "0.2")]
    data = load_report(work.sweep("one", ids))
    names = ["topk 0.1", "topk 0.1 + prefill block_topk 0.1", "topk 0.1 + prefill block_topk 0.2"]
    assert [point.name for point in data.points] == names
    assert [point.label for point in data.points] == ["topk"] * 3
    assert [point.summary.prefill_density for point in data.points] == [None, 0.25, 0.25]
    assert method_labels(data.points) == ["topk", *(name.replace("topk 0.1 ", "topk ", 1) for name in names[1:])]
    (curve,) = prefill_curves(data.points)
    assert curve.label == "topk 0.1 + prefill block_topk" and [dot.x for dot in curve.points] == [0.25, 0.25]
    assert [(bar.name, dict(bar.parts)) for bar in prefill_bars(data.points)] == [
        (name.removeprefix("topk 0.1 + prefill "), {"prefill": 2000.0}) for name in names[1:]
    ]
    assert {plot.slug for plot in group_plots(data.points)} >= {"prefill-density", "time-prefill"}
    assert not {"prefill-density", "time-prefill"} & {plot.slug for plot in group_plots(data.points[:1])}
    table = markdown_table([point.summary for point in data.points])
    assert "| prefill density |" in table
    assert "| topk + prefill block_topk 0.2 | prefill+question+decode |" in table
    assert "prefill" not in data.points[0].summary.name and "prefill density" not in markdown_table(
        [data.points[0].summary]
    )
