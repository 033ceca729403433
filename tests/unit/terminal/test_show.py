"""`sah show`: tables, curves, what failed, what cannot be read, and one point in full."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from sah.report.load import load_report
from sah.terminal.profiles import show_table

ROOT = Path(__file__).resolve().parents[3]
FIDELITY = {
    "questions": 12,
    "tokens": 96,
    "kl": {"mean": 0.25, "low": 0.125, "high": 0.5},
    "top1_agreement": {"mean": 0.75, "low": 0.5, "high": 0.875},
    "log_likelihood_difference": {"mean": -0.5, "low": -0.75, "high": -0.25},
}
BY_HEAD = {
    "rate": 0.1,
    "layers": [0, 1, 2],
    "rows": [4, 4, 4],
    "output_error": [[0.1, 0.3], [0.3, 0.5], [0.9, 0.7]],
}


def test_failures_come_first(sah, sweep):
    code, out, err = sah("show", sweep)
    assert (code, err) == (0, "")
    assert out.startswith(f"{sweep}: 4 points, 1 failed\n")
    assert "masker=quest\n    The page is [too] long." in out
    assert out.index("masker=quest") < out.index("string_match_all")


def test_table_curves_and_verdicts(sah, sweep):
    _, out, _ = sah("show", sweep)
    curve = out[out.index("string_match_all by rising density") :]
    assert "heights from 0.000 to 1.000" in curve
    assert "topk    ▇█  0.833 to 1.000" in curve
    assert "random  ▁▃  0.000 to 0.250" in curve
    assert "dense   █   1.000 [" in curve
    assert "at 0.1, 0.2" in curve
    assert "4 sparse settings against dense: 2 worse, 2 not enough data." in out


def test_piped_output_has_no_colours_and_one_width(sah, sweep, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    _, out, _ = sah("show", sweep)
    assert "\x1b" not in out
    assert max(len(line) for line in out.splitlines() if "─" in line) > 100


def test_a_narrow_terminal_has_the_columns_that_judge(sweep):
    target = Console(force_terminal=True, width=100, file=io.StringIO(), color_system=None)
    (points,) = load_report(sweep).groups().values()
    show_table(points, "tiny:llama, niah", target)
    out = target.file.getvalue()
    (line,) = (line for line in out.splitlines() if line.startswith("  random 0.2"))
    assert line.split()[2:6] == ["12", "1.000", "0.250", "-0.750"]
    assert line.split()[-2:] == ["worse", "0.2000"]
    assert "All columns need a width of" in out
    assert "prefill" not in out


def test_commands_of_points_where_no_sweep_is_known(sah, sweep):
    _, out, _ = sah("show", sweep)
    assert "python -m sah.run masker=topk density=0.1" in out


def test_command_of_a_sweep(sah, sweep):
    saved = (
        "hydra:\n  overrides:\n    hydra: [hydra.mode=MULTIRUN, hydra.sweep.dir=x]\n    task: ['masker=topk,random']\n"
    )
    (sweep / "multirun.yaml").write_text(saved)
    _, out, _ = sah("show", sweep)
    assert "python -m sah.run -m masker=topk,random hydra.sweep.dir=x" in out
    (sweep / "multirun.yaml").write_text("hydra: {over")
    assert "python -m sah.run masker=topk density=0.1" in sah("show", sweep)[1]


def test_fidelity_and_layers_only_where_measured(sah, work, sweep):
    assert "Fidelity" not in sah("show", sweep)[1]
    assert "over layers" not in sah("show", sweep)[1]
    figures = {"fidelity": FIDELITY, "attention_by_head": BY_HEAD}
    work.sparse("quest", 0.1, [1.0] * 12, [1.0] * 12, figures)
    _, out, _ = sah("show", work.root)
    assert "0.2500 [0.1250, 0.5000]" in out
    assert "0.750 [0.500, 0.875]" in out
    assert "-0.5000 [-0.7500, -0.2500]" in out
    assert "output error of attention over layers, heights from 0.2000 to 0.8000" in out
    assert "quest 0.1  ▁▃█  layers 0 to 2  largest 0.8000 in layer 2, over 4 queries a layer" in out
    assert "Output error is a mean over 4 queries a layer, sampled in each point." in out
    assert "Tied means that the interval lies within the margin of 0.05 around 0." in out
    assert "Fidelity failed" not in out


def test_fidelity_that_failed_for_some_questions_or_all(sah, work):
    part = {"fidelity": {**FIDELITY, "questions": 5, "failed": 7}, "attention_by_head": BY_HEAD}
    work.sparse("quest", 0.1, [1.0] * 12, [1.0] * 12, part)
    none = {"fidelity": {"questions": 0, "tokens": 0, "failed": 12, "kl": {"mean": None, "low": None, "high": None}}}
    work.sparse("topk", 0.1, [1.0] * 12, [1.0] * 12, none)
    _, out, _ = sah("show", work.root)
    assert "leave out: quest 0.1 7 of 12, topk 0.1 12 of 12." in out
    table = [line.split() for line in out[out.index("Fidelity to dense") :].splitlines()]
    assert ["5", "of", "12", "96"] in [line[-4:] for line in table]
    assert ["topk", "0.1", "failed", "failed", "failed", "0", "of", "12", "-"] in table
    _, out, _ = sah("show", work.root, "--point", "quest 0.1")
    assert "fidelity over      5 of 12 questions" in out
    assert "output error       0.4667 over 4 queries a layer" in out


def test_points_are_sorted_by_setting_and_density_and_not_by_id(sah, work):
    for label, density in (("topk", 0.2), ("topk", 0.02), ("quest", 0.3), ("quest", 0.1), ("random", 0.1)):
        work.sparse(label, density, [1.0, 0.0], [1.0, 1.0])
    _, out, _ = sah("show", work.root)
    lines = [line.split() for line in out[: out.index("sparse settings against dense")].splitlines()]
    named = [line[0] for line in lines if line and line[0] in ("dense", "quest", "random", "topk")]
    assert named == ["dense", "quest", "quest", "random", "topk", "topk"]
    asked = [line[-2] for line in lines if line and line[0] == "topk"]
    assert asked == ["0.0200", "0.2000"]


def test_one_point_in_full(sah, sweep):
    code, out, _ = sah("show", sweep, "--point", "topk 0.1", "--examples", "2")
    assert code == 0
    for expected in (
        "score, sparse      0.833 [",
        "KL to dense        not measured\n",
        "recipe.0.masker            topk",
        "commit             0123456789ab",
        "python -m sah.run masker=topk density=0.1",
        "and 10 more: --examples 12",
    ):
        assert expected in out
    assert out.index("05120010:0  task single, length 512, depth 0.909") < out.index("05120011:0")
    assert "dense      1.000  4116001\n    sparse     0.000  11\n" in out


def test_points_by_id_recipe_and_unknown_name(sah, work, sweep):
    point = next(iter(sorted((work.root / "points").iterdir())))
    assert point.name in sah("show", work.root, "--point", point.name[:6])[1]
    _, out, _ = sah("show", sweep, "--point", "random")
    assert "random 0.1: " in out and "random 0.2: " in out
    code, _, err = sah("show", sweep, "--point", "topk 0.3")
    assert code == 1
    assert "has no point 'topk 0.3'. Allowed: a name or an id of 'topk 0.1' (" in err.replace("\n", " ")
    assert "Did you mean 'topk 0.2'?" in err or "Did you mean 'topk 0.1'?" in err


def test_json(sah, sweep):
    _, out, _ = sah("show", sweep, "--json")
    (report,) = json.loads(out)
    assert [point["name"] for point in report["points"]] == ["topk 0.1", "topk 0.2", "random 0.1", "random 0.2"]
    assert report["points"][2]["summary"]["difference"] == -1
    assert report["failures"] == [{"overrides": "masker=quest", "error": "The page is [too] long."}]
    (group,) = report["groups"].values()
    assert group == [point["id"] for point in report["points"]]
    (point,) = json.loads(sah("show", sweep, "--point", "random 0.1", "--json", "--examples", "3")[1])
    assert len(point["examples"]) == 3
    assert point["examples"][0]["dense_scores"] == {"string_match_all": 1.0}


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda folder: None, "is no folder. Give one that sah wrote to"),
        (lambda folder: folder.mkdir(), "holds no results: no points/, no job.json and no point.json"),
        (lambda folder: (folder / "points").mkdir(parents=True), "holds no results"),
    ],
)
def test_folders_without_results(sah, tmp_path, make, expected):
    make(tmp_path / "empty")
    code, out, err = sah("show", "empty")
    assert (code, out) == (1, "")
    assert expected in " ".join(err.split())


def test_what_cannot_be_read_is_named_and_the_rest_shown(sah, work, sweep):
    points = {json.loads((p / "point.json").read_text())["label"]: p for p in (work.root / "points").iterdir()}
    (points["topk"] / "metrics.json").unlink()
    other = json.loads((points["random"] / "point.json").read_text())
    (points["random"] / "point.json").write_text(json.dumps({**other, "schema_version": 99}))
    code, out, _ = sah("show", work.root)
    assert code == 0
    assert out.index("Not shown, or in part only") < out.index("tiny:llama, niah")
    assert "its run did not end" in out
    assert "has schema_version 99" in out
    assert out.startswith(f"{work.root}: 3 points")


def test_a_missing_dense_arm(sah, work):
    identity = work.sparse("topk", 0.1, [1.0, 0.0], [1.0, 1.0])
    dense = next(p for p in (work.root / "points").iterdir() if p.name != identity)
    shutil.rmtree(dense)
    code, out, _ = sah("show", work.root / "points" / identity)
    assert code == 0
    assert "The dense arm of topk cannot be read" in out
    assert "-0.500" in out


def test_several_folders_one_of_them_wrong(sah, sweep):
    code, out, err = sah("show", "nowhere", sweep)
    assert code == 1
    assert "nowhere is no folder" in err
    assert f"{sweep}: 4 points" in out


def test_models_and_lengths_stay_apart(sah, work):
    work.sparse("topk", 0.1, [1.0, 0.0], [1.0, 1.0])
    work.sparse("topk", 0.1, [1.0, 0.0], [1.0, 1.0], length=1024)
    _, out, _ = sah("show", work.root)
    assert "tiny:llama, niah, dataset.length=512" in out
    assert "tiny:llama, niah, dataset.length=1024" in out


def test_an_encoding_without_blocks(sweep):
    command = [sys.executable, "-m", "sah.cli", "show", str(sweep)]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "topk    *#  0.833 to 1.000" in done.stdout
    assert done.stdout.isascii()


def test_a_reader_that_stops_early(sweep):
    command = f"{sys.executable} -m sah.cli show {sweep} --json | head -n 1"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[\n", "")
