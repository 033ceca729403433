"""Hydra's own launchers for Ray and submitit run a sweep job by job, as they come with their packages."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.running import jobs, run
from tests.integration.same_rows import check_same_rows

pytestmark = pytest.mark.slow

SWEEP = ("-m", "masker=topk,random", "density=0.1,2", "tracker=none")
"""Two points, and two that cannot be run."""


def check(launcher: str) -> None:
    """Run the sweep with a launcher and with Hydra's basic one, and compare all that they leave."""
    expected = run(*SWEEP, "hydra/launcher=basic", "output_dir=basic")
    assert expected.code == 1
    done = run(*SWEEP, f"hydra/launcher={launcher}", "output_dir=remote")
    assert done.code == 1, done.text
    assert "density=2 is not allowed" in done.err
    check_same_rows(Path("basic"), Path("remote"))
    told = [(record["overrides"][:-1], record["status"], record.get("point")) for record in jobs(Path("remote"))]
    assert told == [(record["overrides"][:-1], record["status"], record.get("point")) for record in jobs(Path("basic"))]
    assert [status for _, status, _ in told] == ["ok", "failed", "ok", "failed"]
    assert list(Path("remote/sweeps").rglob("table.md"))


@pytest.mark.usefixtures("ray_cluster")
def test_the_ray_launcher() -> None:
    check("ray")


def test_the_submitit_launcher() -> None:
    check("submitit_local")
