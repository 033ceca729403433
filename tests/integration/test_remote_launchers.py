"""Hydra's own launchers for Ray and submitit run a sweep job by job, as they come with their packages."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.running import Outcome, jobs, run
from tests.integration.same_rows import check_same_rows

pytestmark = pytest.mark.slow

SWEEP = ("-m", "masker=topk,random", "tracker=none")


def records(folder: Path) -> list[tuple[list[str], str, str | None]]:
    """What the jobs of a sweep left, apart from the folder's name: overrides, status and point."""
    return [
        (
            [override for override in record["overrides"] if not override.startswith("output_dir=")],
            record["status"],
            record.get("point"),
        )
        for record in jobs(folder)
    ]


def check(launcher: str, *more: str, code: int = 0) -> Outcome:
    """Run the sweep with a launcher and with Hydra's basic one, and compare all that they leave."""
    expected = run(*SWEEP, *more, "hydra/launcher=basic", "output_dir=basic")
    assert expected.code == code, expected.text
    # Absolute, since the workers of a cluster that is there already have a working folder of their own.
    done = run(*SWEEP, *more, f"hydra/launcher={launcher}", f"output_dir={Path('remote').resolve()}")
    assert done.code == code, done.text
    check_same_rows(Path("basic"), Path("remote"))
    assert records(Path("remote")) == records(Path("basic"))
    assert list(Path("remote/sweeps").rglob("table.md"))
    return done


@pytest.mark.usefixtures("ray_cluster")
def test_the_ray_launcher() -> None:
    done = check("ray", "density=0.1,2", code=1)
    assert "density=2 is not allowed" in done.err
    assert [status for _, status, _ in records(Path("remote"))] == ["ok", "failed", "ok", "failed"]


def test_the_submitit_launcher() -> None:
    check("submitit_local")
