"""The main job on the embedded model, short: `python -m sah.run model=llama masker=topk`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sah.results.store import StoredPoint, read_point

ROOT = Path(__file__).resolve().parents[2]
SHORT = ("dataset.length=512", "dataset.num_examples=2", "dataset.depths=2")

pytestmark = pytest.mark.e2e


def start(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "sah.run", *arguments, *SHORT],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the main job was run, what it printed in `stdout.txt`."""
    folder = tmp_path_factory.mktemp("main_job")
    done = start(folder, "model=llama", "masker=topk")
    assert done.returncode == 0, done.stderr
    (folder / "stdout.txt").write_text(done.stdout, encoding="utf-8")
    return folder


def point(folder: Path, label: str) -> StoredPoint:
    """Read the only point of a label."""
    points = [read_point(path) for path in (folder / "outputs/points").iterdir()]
    (found,) = (point for point in points if point.label == label)
    return found


def score(found: StoredPoint) -> float:
    """Give the mean score of a point."""
    return sum(row.scores["string_match_all"] for row in found.scores.values()) / len(found.scores)


def test_topk_keeps_the_dense_score(folder: Path) -> None:
    dense, topk = point(folder, "dense"), point(folder, "topk")
    assert len(dense.predictions) == len(topk.predictions) == 2
    assert score(dense) == score(topk) == 1.0
    (line,) = (line.split() for line in (folder / "stdout.txt").open(encoding="utf-8") if line.split()[:1] == ["topk"])
    assert line[1:6] == ["question+decode", "2", "1.000", "1.000", "+0.000"]
    assert line[6:12] == ["[-0.84,", "+0.84]", "not", "enough", "data", "0.100"]
    for row in topk.predictions.values():
        assert row.density_measured == pytest.approx(0.1, abs=0.01)
        assert row.stop_reason in ("eos", "length")
        assert row.attention_calls and row.attention_calls % 30 == 0


def test_random_at_the_same_density_falls_far_below(folder: Path) -> None:
    path = point(folder, "dense").folder / "predictions.jsonl"
    before = path.read_bytes()
    done = start(folder, "-m", "model=llama", "masker=random,streaming_llm")
    assert done.returncode == 0, done.stderr
    assert path.read_bytes() == before, "dense answers are there already"
    assert score(point(folder, "dense")) == 1.0
    assert score(point(folder, "random")) == 0.0
    assert score(point(folder, "streaming_llm")) <= 0.5
