"""A virtual environment with kvpress, which does not run beside the transformers that sah needs."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from sah import fetching
from sah.results.provenance import package_version

PACKAGES = (
    "kvpress==0.5.5",
    "transformers==5.2.0",
    # The same on both sides, so that the same numbers come out of the same products.
    f"torch=={package_version('torch').partition('+')[0]}",
    f"numpy=={package_version('numpy')}",
    f"safetensors=={package_version('safetensors')}",
)
DONE = "complete"


def python_of(folder: Path) -> Path:
    """Return the interpreter of a virtual environment."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def ensure() -> Path:
    """Make the environment on first use, in the user's cache folder, saying so first.

    Returns:
        Its interpreter.

    Raises:
        SystemExit: If venv or pip fails.
        ModelError: If the cache folder cannot be written.
    """
    wanted = hashlib.sha256("\n".join((sys.version.split()[0], *PACKAGES)).encode()).hexdigest()[:12]
    folder = fetching.cache_dir() / "environments" / f"kvpress-{wanted}"
    with fetching.locked(folder, "building an environment for kvpress"):
        if not (folder / DONE).exists():
            print(f"Building a virtual environment for kvpress, once, in the folder\n  {folder}")
            print(f"  pip install {' '.join(PACKAGES)}")
            print("  About 1.4 GB with a CPU build of torch, several GB with a CUDA build, and a minute or more.")
            print("  pip takes torch from where its settings say, e.g. PIP_EXTRA_INDEX_URL.", flush=True)
            shutil.rmtree(folder, ignore_errors=True)
            run([sys.executable, "-m", "venv", str(folder)])
            run([str(python_of(folder)), "-m", "pip", "--disable-pip-version-check", "install", "-q", *PACKAGES])
            (folder / DONE).touch()
        else:
            print(f"Using the environment for kvpress in {folder}", flush=True)
    return python_of(folder)


def run(command: list[str]) -> None:
    """Run a command, and end with its code if it fails."""
    # Another environment's packages on the path would shadow this one's.
    environment = {key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "PYTHONHOME"}}
    done = subprocess.run(command, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:4])} ... ended with code {done.returncode}")
