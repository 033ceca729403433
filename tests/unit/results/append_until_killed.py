"""Appends rows and prints the key of each once it is on disk. A child process of test_crash.py."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from sah.results.rows import PredictionRow
from sah.results.store import PointStore


def main() -> None:
    store = PointStore(Path(sys.argv[1]), {"model": "m"}, "dense")
    with store.writer(wait_seconds=float(sys.argv[2])):
        number = len(store.finished())
        print("ready", flush=True)
        while True:
            row = PredictionRow(
                example_key=f"{number:08d}",
                question_index=0,
                status="ok",
                prediction="word " * (number % 900),
            )
            store.append(row)
            print(row.key, flush=True)
            number += 1
            time.sleep(0)


if __name__ == "__main__":
    main()
