"""A short form of the campaign of kills; `python -m tests.integration.kill_campaign --kills 200` is the long one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.integration.running import ROOT


@pytest.mark.slow
def test_sweeps_killed_at_any_moment_end_as_if_undisturbed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.kill_campaign", "--kills", "20", "--seed", "1"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "20 kills, seed 1" in done.stdout
    for kind in ("local: 14 kills of the main", "slurm: ", "ray: "):
        assert any(line.startswith(kind) for line in done.stdout.splitlines()), done.stdout
    assert "kills of the worker" in done.stdout
