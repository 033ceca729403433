"""What a report writes to disk."""

from __future__ import annotations

import builtins
import csv
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report_folder import HOSTILE, METRIC, Sweep, make_sweep
from sah.errors import StateError
from sah.report.load import ReportData, load_report
from sah.report.page import write_report
from tests.support.finished import Work

SWEEP = Sweep(methods=2, densities=(0.05, 0.1), lengths=(512,), contexts=7)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ReportData:
    return load_report(make_sweep(tmp_path_factory.mktemp("outputs"), SWEEP))


@pytest.fixture
def no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in an installation without the extra `plot`."""
    real = builtins.__import__

    def importing(name: str, *arguments: Any, **named: Any) -> Any:
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", importing)
    yield


def content(path: Path) -> Any:
    """What a data file hands to the page."""
    text = path.read_text(encoding="ascii")
    found = re.fullmatch(r'sahData\("(\w+)",(.*)\);\n', text, re.DOTALL)
    assert found and found[1] == path.stem
    return json.loads(found[2])


def test_no_network_and_no_template(data: ReportData, tmp_path: Path, no_matplotlib: None) -> None:
    page = write_report(data, tmp_path)
    for path in [page, *(tmp_path / "assets").iterdir()]:
        text = path.read_text(encoding="utf-8")
        assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg|jfly)[^\s\")]*", text), path
        assert "innerHTML" not in text and "insertAdjacentHTML" not in text and "document.write" not in text
    assert 'lang="en"' in page.read_text(encoding="utf-8")


def test_each_point_has_its_rows_in_a_file_of_its_own(data: ReportData, tmp_path: Path, no_matplotlib: None) -> None:
    write_report(data, tmp_path)
    index = content(tmp_path / "data" / "index.js")
    [section] = index["sections"]
    assert [point["place"] for point in section["points"]] == sorted(
        range(len(data.points)), key=lambda place: data.points[place].name
    )
    assert HOSTILE not in json.dumps(index)
    for point in section["points"]:
        stored, shown = data.points[point["place"]], content(tmp_path / "data" / f"p{point['place']}.js")
        assert shown["id"] == stored.id
        assert shown["command"] == stored.command
        assert dict(shown["provenance"])["seed"] == "0"
        assert [row["key"] for row in shown["rows"]] == [pair.key for pair in stored.pairs()]
        for row, pair in zip(shown["rows"], stored.pairs(), strict=True):
            assert pair.dense is not None and pair.sparse is not None
            assert (row["dense"]["text"], row["sparse"]["text"]) == (pair.dense.prediction, pair.sparse.prediction)
            assert row["sparse"]["score"] == pair.sparse_scores[METRIC]
            assert row["answers"] == list(pair.row.answers)


def test_scripts_hold_nothing_that_ends_them(data: ReportData, tmp_path: Path, no_matplotlib: None) -> None:
    write_report(data, tmp_path)
    hostile = 0
    for path in (tmp_path / "data").iterdir():
        text = path.read_text(encoding="ascii")
        assert "<" not in text and "\u2028" not in text
        hostile += text.count("window.stolen")
    assert hostile
    rows = content(tmp_path / "data" / "p0.js")["rows"]
    assert any(HOSTILE in row["sparse"]["text"] for row in rows)


def test_without_matplotlib_the_page_says_what_brings_pictures(
    data: ReportData, tmp_path: Path, no_matplotlib: None
) -> None:
    write_report(data, tmp_path)
    [note] = [note for note in content(tmp_path / "data" / "index.js")["notes"] if "PNG" in note]
    assert "pip install 'sah[plot]'" in note
    assert {path.suffix for path in (tmp_path / "figures").iterdir()} == {".csv"}


@pytest.mark.slow
def test_every_figure_is_there_in_all_forms(data: ReportData, tmp_path: Path) -> None:
    write_report(data, tmp_path)
    [section] = content(tmp_path / "data" / "index.js")["sections"]
    figures = [*section["plots"], *section["heads"]]
    slugs = {figure["slug"] for figure in figures}
    assert {"density", "difference", "pareto-density", "pareto-bytes", "kl", "top1", "time-shared", "needle"} < slugs
    for figure in figures:
        assert set(figure["files"]) == {"png", "svg", "csv"}
        assert (tmp_path / figure["files"]["png"]).read_bytes().startswith(b"\x89PNG")
        svg = ElementTree.parse(tmp_path / figure["files"]["svg"])
        words = " ".join("".join(text.itertext()) for text in svg.iter("{http://www.w3.org/2000/svg}text"))
        assert figure["title"] in words
        assert len((tmp_path / figure["files"]["csv"]).read_text().splitlines()) > 1


def test_csv_holds_what_is_drawn(data: ReportData, tmp_path: Path, no_matplotlib: None) -> None:
    write_report(data, tmp_path)
    with (tmp_path / "figures" / "g1-density.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    by_name = {line["setting"]: line for line in lines}
    for point in data.points:
        name = point.name.split()[0] + f" {point.summary.density_requested:g}"
        assert float(by_name[name][f"score ({METRIC})"]) == point.summary.sparse
        assert float(by_name[name]["low"]) == point.summary.sparse_range[0]
    assert by_name["dense"]["low"]
    with (tmp_path / "figures" / "g1-points.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert {line["point"] for line in table} == {point.id for point in data.points}
    assert {line["verdict"] for line in table} <= {"better", "worse", "tied", "not enough data"}
    assert all(float(line["difference low"]) <= float(line["difference"]) for line in table)


def test_what_figures_stand_on_is_shown(tmp_path: Path, no_matplotlib: None) -> None:
    work = Work(tmp_path / "outputs")
    interval = {"mean": 0.25, "low": 0.125, "high": 0.5}
    fidelity = {"questions": 5, "tokens": 40, "failed": 7, "kl": interval, "top1_agreement": interval}
    by_head = {"rate": 0.1, "layers": [0, 1], "rows": [3, 4], "output_error": [[0.1], [0.3]]}
    work.sparse("quest", 0.1, [1.0] * 12, [1.0] * 12, {"fidelity": fidelity, "attention_by_head": by_head})
    write_report(load_report(work.root), tmp_path / "page")
    [section] = content(tmp_path / "page" / "data" / "index.js")["sections"]
    [cells] = [point["cells"] for point in section["points"] if not point["dense"]]
    heads = {column["key"]: column["head"] for column in section["columns"]}
    assert (cells["fidelity_failed"], heads["fidelity_failed"]) == (7, "fidelity failed")
    assert (cells["error_queries"], heads["error_queries"]) == (3, "queries compared")
    assert "Fidelity failed for some questions, which its figures leave out: quest 0.1 7 of 12." in section["headline"]
    assert "within the margin of 0.05 around 0" in section["headline"]


def test_verdicts_are_corrected_for_the_sweep(data: ReportData, tmp_path: Path, no_matplotlib: None) -> None:
    write_report(data, tmp_path)
    [section] = content(tmp_path / "data" / "index.js")["sections"]
    assert f"corrected for {len(data.points)} comparisons" in section["headline"]
    for point in section["points"]:
        assert point["text"].startswith(point["name"].rsplit(" ", 1)[0])
        assert point["verdict"] in point["text"]


def test_a_report_is_replaced_and_nothing_else(data: ReportData, tmp_path: Path, no_matplotlib: None) -> None:
    output = tmp_path / "report"
    write_report(data, output)
    (output / "data" / "p99.js").write_text("old")
    (output / "figures" / "g9-density.png").write_text("old")
    (output / "mine.txt").write_text("kept")
    write_report(data, output)
    assert not (output / "data" / "p99.js").exists() and not (output / "figures" / "g9-density.png").exists()
    assert (output / "mine.txt").read_text() == "kept"


def test_another_folder_is_left_alone(data: ReportData, tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "own.png").write_text("kept")
    (tmp_path / "thesis.tex").write_text("kept")
    with pytest.raises(StateError, match="holds something else than a report.*--output"):
        write_report(data, tmp_path)
    assert (tmp_path / "figures" / "own.png").read_text() == "kept"


def test_formulas_in_names_stay_text(tmp_path: Path) -> None:
    from sah.report.plot_files import write_csv

    write_csv(tmp_path / "a.csv", [["=1+1", "@cmd", -1.5, None, "topk"]])
    assert (tmp_path / "a.csv").read_text().strip() == "'=1+1,'@cmd,-1.5,,topk"
