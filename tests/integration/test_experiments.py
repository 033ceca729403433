"""The studies run in their fast form and write their pages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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
    done = study("density_curve", "--fast", *places, "masker=topk", "density=0.1,2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Some points failed" in done.stderr
    page = (tmp_path / "page" / "README.md").read_text(encoding="utf-8")
    assert page.count("| topk | 2 |") == 1


def test_fast_never_overwrites_the_real_page() -> None:
    done = study("density_curve", "--fast")
    assert done.returncode != 0
    assert "--folder" in done.stderr
