"""Logs one run as a job does and prints what the tracker says. A child process of test_wandb.py and test_trackio.py.

Arguments: mode of wandb or `trackio`, folder, then optionally `failed`, `again` (a second run in the same process) and
`impatient`; `sweep` logs the run that sums a sweep up.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

from sah.tracking.base import RunInfo
from sah.tracking.discovery import create_tracker
from sah.tracking.trackio_config import TrackioConfig
from sah.tracking.wandb_config import WandbConfig

COLUMNS = ("key", "prediction", "score", "token_ids")
ROWS = (("a:0", "Zürich 7", 1.0, [1, 2]), ("b:0", "", None, []))


def main() -> None:
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    mode, folder, *rest = sys.argv[1:]
    job_type = "sweep" if "sweep" in rest else "eval"
    for run_id in ("0123456789abcdef", "second")[: 2 if "again" in rest else 1]:
        patience = 3.0 if "impatient" in rest else 30.0
        values = {"mode": mode, "tags": ["mine"], "start_timeout": patience, "finish_timeout": patience}
        chosen = TrackioConfig(project="mine") if mode == "trackio" else WandbConfig(**values)
        tracker = create_tracker(chosen)
        config = {"masker": {"topk": {"density": 0.1}}, "seed": 0, "labels": ["a", "b"]}
        tracker.start(RunInfo(run_id, "tiny topk", Path(folder), "sweep-1", job_type, ("topk", "t" * 80), config))
        location = tracker.location
        tracker.log_summary({"scores": {"dense": 1.0, "sparse": 0.5}, "density": 0.1})
        tracker.log_metrics({"score": 0.5, "density_measured": 0.1}, axis="density_measured")
        tracker.log_table("predictions", COLUMNS, ROWS)
        tracker.log_figure("curve", {"data": [{"type": "scatter", "x": [0.1], "y": [0.5]}], "layout": {}})
        kept = Path(folder) / "rows.jsonl"
        kept.parent.mkdir(exist_ok=True)
        kept.write_text("{}\n", encoding="utf-8")
        tracker.log_artifact("results sweep/1", {"points/a/rows.jsonl": kept})
        tracker.finish(failed="failed" in rest)
        print(json.dumps({"location": location, "failure": tracker.failure}))


if __name__ == "__main__":
    main()
