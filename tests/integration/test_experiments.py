"""The studies run in their fast form and write their pages."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from experiments.method_quality.bound import bound_line, sign_test
from experiments.method_quality.methods import FIXED, OTHERS
from experiments.points import run_points
from experiments.study import Options
from sah.errors import ConfigError
from tests.integration.conftest import Work

ROOT = Path(__file__).parents[2]


def study(name: str, *given: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"experiments.{name}", *given]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_niah_forms_fills_a_cell_for_each_form(tmp_path: Path) -> None:
    short = ["dataset=niah,niah_multikey", "dataset.needle=number", "dataset.haystack=noise", "dataset.length=1024"]
    places = ["--folder", str(tmp_path / "page"), "--output-dir", str(tmp_path / "rows")]
    done = study("niah_forms", "--fast", *places, *short)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "page" / "README.md").read_text(encoding="utf-8")
    assert "| niah | number | noise | 0.00 | no |" in page
    assert "| niah_multikey | number | noise | 0.00 | no |" in page


@pytest.mark.slow
def test_a_failing_point_leaves_the_page_of_the_others(tmp_path: Path) -> None:
    places = ["--folder", str(tmp_path / "page"), "--output-dir", str(tmp_path / "rows")]
    done = study(
        "density_curve", "--fast", *places, "masker=topk", "density=0.1", "model.name=tiny:llama,/no/such/folder"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Some points failed" in done.stderr
    page = (tmp_path / "page" / "README.md").read_text(encoding="utf-8")
    assert page.count("| topk | question+decode | 2 |") == 1


@pytest.mark.slow
def test_method_quality_runs_every_method_in_four_settings(tmp_path: Path) -> None:
    places = ["--folder", str(tmp_path / "page"), "--output-dir", str(tmp_path / "rows")]
    done = study("method_quality", "--fast", *places)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "page" / "README.md").read_text(encoding="utf-8")
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:1] == "|"]
    rows = lines[2:]
    assert Counter(row[0] for row in rows) == dict.fromkeys([*FIXED, *OTHERS], 4)
    assert len({(row[0], row[1]) for row in rows}) == 48
    assert all(float(row[5]) > 0 for row in rows), "every point has its output error"
    assert {row[4] for row in rows if row[0] == "topk"} == {"0.0200", "0.0500", "0.1000", "0.2000"}
    assert page.count("- density ") == 4
    assert all((tmp_path / "page" / name).stat().st_size > 1000 for name in ("score.png", "error.png"))


def test_points_share_a_process_and_one_that_fails_leaves_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], work: Work
) -> None:
    options = Options(tmp_path / "page", tmp_path / "rows", fast=True, overrides=["generation.max_new_tokens=2"])
    given = [["masker=topk"], ["masker=topk", "dense_layers=[99]"], ["masker=sink"]]
    first, failed, last = run_points("method_quality", options, given)
    assert first is not None and failed is None and last is not None
    assert (first.summary.label, last.summary.label) == ("topk", "sink")
    assert first.summary.questions == len(first.scores) == 2
    assert work.counts == (2, 2, 4), "each context is prefilled once, and answered dense once"
    assert "Failed: dense_layers=[99]" in capsys.readouterr().err
    work.clear()
    assert [point and point.scores for point in run_points("method_quality", options, given[:1])] == [first.scores]
    assert work.counts == (0, 0, 0), "finished answers are not repeated"
    with pytest.raises(ConfigError, match="density=2"):
        run_points("method_quality", options, [["masker=random"], ["masker=topk", "density=2"]])
    assert work.counts == (0, 0, 0), "a mistake is told before the first point runs"


def test_a_method_above_the_oracle_is_named_with_its_prompts_and_the_noise() -> None:
    oracle = {str(prompt): float(prompt < 8) for prompt in range(16)}
    same = dict(oracle)
    luckier = {**oracle, "9": 1.0, "10": 1.0, "0": 0.0}
    better = dict.fromkeys(oracle, 1.0)
    line = bound_line(0.05, oracle, {"same": same, "luckier": luckier, "better": better, "partly": {"9": 1.0}})
    assert line.startswith("- density 0.05: above topk: luckier by 1 of 16 prompts (better in 2, worse in 1; ")
    assert "sign test 0.500: within noise); better by 8 of 16 prompts" in line
    assert "better in 8, worse in 0; sign test 0.004: more than noise" in line
    assert "partly by 1 of 1 prompts" in line and "same" not in line
    worse = dict.fromkeys(oracle, 0.0)
    assert bound_line(0.2, oracle, {"worse": worse}) == "- density 0.2: no method with this budget scores above topk."


def test_a_fair_coin() -> None:
    assert [sign_test(0, 0), sign_test(0, 3), sign_test(1, 1), sign_test(3, 0)] == [1, 1, 0.75, 0.125]


def test_fast_never_overwrites_the_real_page() -> None:
    done = study("density_curve", "--fast")
    assert done.returncode != 0
    assert "--folder" in done.stderr
