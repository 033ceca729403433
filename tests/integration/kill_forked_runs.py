"""Forks a run for each moment and kills it with SIGKILL there: `kill_forked_runs.py MOMENTS ARGUMENT...`.

MOMENTS is a JSON list of pairs: rows to wait for, and seconds to wait then. Forking spares the imports. The last
line printed is a JSON list: for each run whether it was killed before it ended by itself, and the whole rows it left.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import sah.runners.job  # noqa: F401 - what the children would import
from sah.adapters.factory import load_adapter_cached
from sah.config.model import ModelConfig
from sah.run import main


def rows(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("points/*/predictions.jsonl"))


def killed_run(folder: Path, arguments: list[str], wanted: int, delay: float) -> tuple[bool, int]:
    child = os.fork()
    if child == 0:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        sys.argv = ["sah", *arguments, f"output_dir={folder}"]
        try:
            main()
        finally:
            os._exit(0)
    deadline = time.monotonic() + 60
    ended = 0
    while not ended and rows(folder) < wanted and time.monotonic() < deadline:
        time.sleep(0.001)
        ended, _ = os.waitpid(child, os.WNOHANG)
    if not ended:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        return os.WIFSIGNALED(status), rows(folder)
    return False, rows(folder)


def run_all() -> None:
    moments = json.loads(sys.argv[1])
    load_adapter_cached(ModelConfig(name="tiny:llama"))
    results = [
        killed_run(Path(f"killed-{number}"), sys.argv[2:], wanted, delay)
        for number, (wanted, delay) in enumerate(moments)
    ]
    print(json.dumps(results))


if __name__ == "__main__":
    run_all()
