"""sah's own time in a run: everything but imports, model load, prefill, questions and decoding.

    python -m benchmarks.startup [overrides, e.g. dataset.num_examples=2 dataset.length=512]

Also times `python -m sah.run --cfg job` in fresh processes. One thread.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from sah.config.build import build_experiment
from sah.config.paths import conf_dir
from sah.config.register import register_configs
from sah.runners.job import JobContext, run_experiment
from sah.runners.session import Session


def main() -> None:
    """Measure and print."""
    os.environ["WANDB_MODE"] = "offline"
    times = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "sah.run", "--cfg", "job"], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    print(f"python -m sah.run --cfg job: best {min(times):.2f} s, worst {max(times):.2f} s of {len(times)}")

    register_configs()
    with tempfile.TemporaryDirectory() as folder, initialize_config_dir(str(conf_dir()), version_base="1.3"):
        start = time.perf_counter()
        config = compose("config", [f"output_dir={folder}", *sys.argv[1:]])
        experiment = build_experiment(config)
        composing = time.perf_counter() - start
        session = Session()
        session.model(experiment)
        # Imports are not what is measured; wandb makes these when a run starts and when it logs.
        import pandas  # noqa: F401
        import wandb.sdk.launch  # noqa: F401

        start, cpu_start = time.perf_counter(), time.process_time()
        plain = OmegaConf.to_container(config, resolve=True)
        point, _, _ = run_experiment(experiment, JobContext(Path(folder)), session, dict(plain))
        total, cpu_total = time.perf_counter() - start, time.process_time() - cpu_start
        rows = [row for arm in (point.dense, point.sparse) if arm for row in arm.store.load().values()]
        prefilled = [row for row in rows if row.prefill_reused is False]
        model = sum((r.question_seconds or 0) + (r.decode_seconds or 0) for r in rows)
        model += sum(r.prefill_seconds or 0 for r in prefilled)
        cpu_model = sum((r.question_cpu_seconds or 0) + (r.decode_cpu_seconds or 0) for r in rows)
        cpu_model += sum(r.prefill_cpu_seconds or 0 for r in prefilled)
    print(f"run of {len(rows)} answers: {total:.2f} s, of which prefill, questions and decoding {model:.2f} s")
    print(f"sah's own, the tracker included: composing and checking {composing:.2f} s,")
    print(f"  the rest {total - model:.2f} s wall, {cpu_total - cpu_model:.2f} s CPU")


if __name__ == "__main__":
    main()
