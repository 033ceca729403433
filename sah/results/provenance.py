"""Where a run's numbers come from: command, code, versions, machine, seed, checkpoint, time."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import sah
from sah.results.redact import redacted, redacted_argument
from sah.results.rows import plain_json

PACKAGES = (
    "sah",
    "torch",
    "transformers",
    "tokenizers",
    "datasets",
    "hydra-core",
    "omegaconf",
    "numpy",
    "wandb",
)
"""Distributions whose versions may move a result."""


def collect(
    *,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    threads: int | None = None,
    checkpoint_hash: str | None = None,
    extra: Mapping[str, Any] | None = None,
    folder: Path | None = None,
) -> dict[str, Any]:
    """Gather the provenance of the running process. Reads no network and imports no heavy package.

    Args:
        overrides: Hydra's overrides of this job.
        seed: The seed of the run.
        threads: Threads that the model's operations use.
        checkpoint_hash: SHA-256 of the model's weights, where known.
        extra: Further entries, e.g. the model's dtype and device.
        folder: Folder of the code whose commit to name; the `sah` package's if None.

    Returns:
        JSON data for `provenance.json`. What could not be found out is None. Secrets are hidden.
    """
    entries = {
        "time_utc": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(redacted_argument(argument) for argument in sys.orig_argv),
        "working_folder": os.getcwd(),
        "overrides": [redacted_argument(override) for override in overrides],
        "seed": seed,
        "checkpoint_hash": checkpoint_hash,
        "git": _git_state_at_first(folder or Path(sah.__file__).parent),
        "python": platform.python_version(),
        "versions": {name: package_version(name) for name in PACKAGES},
        "hardware": {**hardware(), "threads": threads},
    }
    return {**entries, **redacted(plain_json(extra or {}))}


@cache
def package_version(name: str) -> str | None:
    """Look up an installed distribution.

    Args:
        name: Its name on the package index.

    Returns:
        The version, or None if it is not installed.
    """
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_state(folder: Path) -> dict[str, Any] | None:
    """Name the commit that a folder of code stands at.

    Args:
        folder: A folder of a work tree. One that its repository does not track, such as an environment's
            `site-packages` inside a project, has no commit.

    Returns:
        `commit` (None before the first) and `dirty` (tracked files of the repository changed, or new ones
        present), or None if no repository tracks the folder or there is no git.
    """
    status = _git(folder, "status", "--porcelain") if _git(folder, "ls-files") else None
    if status is None:
        return None
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    return {"commit": commit.strip() if commit else None, "dirty": bool(status.strip())}


@cache
def _git_state_at_first(folder: Path) -> dict[str, Any] | None:
    """Return the state when it was first asked for: the process runs the code of then, and asking takes a while."""
    return git_state(folder)


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def hardware() -> dict[str, Any]:
    """Describe the machine.

    Returns:
        Platform, processor, cores of the machine and those open to this process, memory in GiB, and CUDA
        devices if torch is loaded and sees any.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "host": platform.node(),
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "cores_usable": usable,
        "memory_gib": _memory_gib(),
        "gpus": _gpus(),
    }


def _cpu_model() -> str | None:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or None


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None


def _gpus() -> list[str]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
