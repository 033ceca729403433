"""The studies run in their fast form and write their pages."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from experiments.density_curve.__main__ import METHODS
from experiments.method_quality.bound import bound_line, sign_test
from experiments.method_quality.methods import FIXED, OTHERS, PREFILLS
from experiments.methods import ADAPTIVE, MAGICPIG, RANDOM, adaptive, magicpig, setting
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
    short = ["dataset=niah", "dataset.needle=number", "dataset.haystack=noise", "dataset.length=512"]
    done = study("niah_forms", "--fast", *places, *short, "model.name=/no/such/folder,tiny:llama")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Some points failed" in done.stderr
    page = (tmp_path / "page" / "README.md").read_text(encoding="utf-8")
    assert "| niah | number | noise | 0.00 | no |" in page


def rows_of(page: Path, heads: str) -> list[dict[str, str]]:
    """Read the lines of all tables of a page whose first columns have these names."""
    rows: list[dict[str, str]] = []
    names: list[str] = []
    for text in page.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in text.strip("|").split("|")]
        if not text.startswith("|"):
            names = []
        elif not names:
            names = cells
        elif not text.startswith("| ---") and " | ".join(names).startswith(heads):
            rows.append(dict(zip(names, cells, strict=True)))
    return rows


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_networks")
def test_method_quality_runs_every_method_in_four_settings(tmp_path: Path) -> None:
    folder = tmp_path / "page"
    done = study("method_quality", "--fast", "--folder", str(folder), "--output-dir", str(tmp_path / "rows"))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = rows_of(folder / "README.md", "method | setting | density measured | score")
    assert Counter(row["method"] for row in rows) == dict.fromkeys([*FIXED, *OTHERS], 4)
    assert len({(row["method"], row["setting"]) for row in rows}) == len(rows)
    prefills = rows_of(folder / "README.md", "method | setting | density measured | prefill density measured")
    assert Counter(row["method"] for row in prefills) == dict.fromkeys(PREFILLS, 4)
    assert {row["density measured"] for row in prefills} == {"1.0000"}
    assert all(0 < float(row["prefill density measured"]) < 1 for row in prefills)
    assert all(float(row["output error"]) > 0 for row in rows), "every point has its output error"
    assert {row["density measured"] for row in rows if row["method"] == "topk"} == {
        "0.0200",
        "0.0500",
        "0.1000",
        "0.2000",
    }
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert page.count("- density ") == 4
    assert all((folder / f"quality-{name}.png").stat().st_size > 1000 for name in ("density", "output-error"))


FEWER = ["generation.max_new_tokens=2"]
"""The studies' settings in full, with short answers."""


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_networks")
def test_density_curve_runs_all_methods_on_needle_and_prose(tmp_path: Path) -> None:
    folder = tmp_path / "page"
    done = study("density_curve", "--fast", "--folder", str(folder), "--output-dir", str(tmp_path / "rows"), *FEWER)
    assert done.returncode == 0, done.stdout + done.stderr
    needle = rows_of(folder / "README.md", "method | setting | density measured | score")
    prose = rows_of(folder / "README.md", "method | setting | density measured | perplexity")
    expected = {name: len(settings) for name, settings in METHODS.items()}
    assert Counter(row["method"] for row in needle) == Counter(row["method"] for row in prose) == expected
    made = {path.stem for path in folder.glob("*.png")}
    assert made == {"needle-density", "prose-perplexity", "prose-kl", "prose-output-error"}
    assert not list(folder.glob("*.svg"))
    recipe = {masker for settings in METHODS.values() for overrides in settings for masker in maskers_of(overrides)}
    assert recipe | {"causal", "dense"} == {path.stem for path in (ROOT / "conf/masker").glob("*.yaml")}


def maskers_of(overrides: Sequence[str]) -> list[str]:
    return overrides[0].removeprefix("masker=").strip("[]").split(",")


@pytest.mark.slow
def test_phases_pairs_each_setting_with_itself_decode_only(tmp_path: Path) -> None:
    folder = tmp_path / "page"
    done = study("phases", "--fast", "--folder", str(folder), "--output-dir", str(tmp_path / "rows"), *FEWER)
    assert done.returncode == 0, done.stdout + done.stderr
    pairs = rows_of(folder / "README.md", "method | setting | density question and answer")
    assert len(pairs) == len({(row["method"], row["setting"]) for row in pairs}) == 12
    points = rows_of(folder / "README.md", "method | setting | sparse in")
    assert Counter(row["sparse in"] for row in points) == {"question+decode": 12, "decode": 12}


@pytest.mark.slow
def test_selection_pairs_heads_with_groups(tmp_path: Path) -> None:
    folder = tmp_path / "page"
    done = study("selection", "--fast", "--folder", str(folder), "--output-dir", str(tmp_path / "rows"), *FEWER)
    assert done.returncode == 0, done.stdout + done.stderr
    pairs = rows_of(folder / "README.md", "method | setting | density by query head")
    assert Counter(row["method"] for row in pairs) == dict.fromkeys(["topk", "quest", "double_sparsity"], 4)
    assert all(row["density by query head"] == row["density by KV head"] for row in pairs)
    points = rows_of(folder / "README.md", "method | setting | density measured | perplexity")
    errors = {(row["method"], row["setting"]): float(row["output error"]) for row in points}
    assert errors["topk group", "density 0.1"] > errors["topk", "density 0.1"]


@pytest.mark.slow
def test_sampling_pairs_each_sampler_with_the_largest_keys(tmp_path: Path) -> None:
    folder = tmp_path / "page"
    done = study("sampling", "--fast", "--folder", str(folder), "--output-dir", str(tmp_path / "rows"), *FEWER)
    assert done.returncode == 0, done.stdout + done.stderr
    pairs = rows_of(folder / "README.md", "method | setting | density topk")
    assert Counter(row["method"] for row in pairs) == {ADAPTIVE: 6, MAGICPIG: 6, RANDOM: 6}
    largest = [float(row["density topk"]) for row in pairs if row["method"] == ADAPTIVE]
    assert largest == pytest.approx([0.05, 0.1, 0.2] * 2, abs=0.003)
    # Sinks and window alone are 8 % of the fast form's 256 tokens of prose.
    drawn = [row for row in pairs if row["method"] == RANDOM and row["setting"] != "density 0.05"]
    assert [float(row["density sampled"]) for row in drawn] == pytest.approx([0.1, 0.2] * 2, abs=0.003)


@pytest.mark.slow
def test_depth_length_draws_every_method_over_all_lengths(tmp_path: Path) -> None:
    folder = tmp_path / "page"
    done = study("depth_length", "--fast", "--folder", str(folder), "--output-dir", str(tmp_path / "rows"), *FEWER)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = rows_of(folder / "README.md", "method | 512 | 1,024 | 2,048 | 4,096")
    assert [row["method"] for row in rows] == ["dense", "topk", "double_sparsity", "quest", "streaming_llm"]
    assert {row["4,096"] for row in rows} == {"0.00"}
    assert "8 texts a method" in (folder / "README.md").read_text(encoding="utf-8")
    assert (folder / "depth-length-needle.png").stat().st_size > 1000


def test_points_share_a_process_and_one_that_fails_leaves_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], work: Work
) -> None:
    options = Options(tmp_path / "page", tmp_path / "rows", fast=True, overrides=["generation.max_new_tokens=2"])
    given = {
        "largest": [["masker=topk"]],
        "lost": [["masker=topk", "model.name=/no/such/folder"]],
        "first": [["masker=sink"]],
    }
    points = run_points("method_quality", options, given)
    assert [point.label for point in points] == ["largest", "first"]
    assert all(point.summary.compared == 2 for point in points), "verdicts are corrected for the points there are"
    assert all(point.summary.questions == 2 for point in points)
    assert work.counts == (2, 2, 4), "each context is prefilled once, and answered dense once"
    assert "Failed: " in capsys.readouterr().err
    work.clear()
    assert [point.id for point in run_points("method_quality", options, {"largest": [["masker=topk"]]})] == [
        points[0].id
    ]
    assert work.counts == (0, 0, 0), "finished answers are not repeated"
    with pytest.raises(ConfigError, match="density=2"):
        run_points("method_quality", options, {"a": [["masker=random"]], "b": [["masker=topk", "density=2"]]})
    with pytest.raises(ConfigError, match="dense_layers"):
        run_points("method_quality", options, {"a": [["masker=random"]], "b": [["masker=topk", "dense_layers=[99]"]]})
    assert work.counts == (0, 0, 0), "a mistake is told before the first point runs"


def test_settings_are_named_by_what_differs() -> None:
    assert [setting(overrides) for overrides in METHODS["topk"][:2]] == ["density 0.05", "density 0.1"]
    assert setting(magicpig((10, 75))[0]) == "K 10, L 75"
    assert setting(adaptive((0.01, 18, 0.3))[0]) == "heavy_size 0.01, base_rate 18, epsilon = delta 0.3"


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
