"""What a job leaves in its own folder. Imports no model."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

from hydra.types import RunMode

from sah.report.records import CONFIG_FILE, JOB_FILE


def sweep_name(hydra: Any) -> str | None:
    """Name what a job belongs to: its preset, or a sweep by its command line; None for a single run without a preset.

    Args:
        hydra: Hydra's part of the config.

    Returns:
        The name. The same command is the same sweep, whenever it is resumed.
    """
    preset: str | None = hydra.runtime.choices.get("experiment")
    if hydra.mode != RunMode.MULTIRUN:
        return preset
    return preset or "sweep-" + hashlib.sha256(" ".join(sys.argv[1:]).encode()).hexdigest()[:8]


def clear_records(folder: Path) -> None:
    """Remove the records of an earlier sweep from a sweep's folder; its results lie elsewhere.

    A config without a record would tell of a job that did not end.
    """
    for path in folder.glob(f"*/{JOB_FILE}"):
        path.unlink()
        path.with_name(CONFIG_FILE).unlink(missing_ok=True)
