"""Runs the points of a study that are no product of values: all composed first, then decoded together."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
import traceback
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from experiments.methods import Settings
from experiments.study import FAST, Options
from sah.config.build import build_experiment
from sah.config.launcher import LauncherOptions
from sah.config.paths import conf_dir
from sah.config.register import register_configs
from sah.errors import ConfigError, SahError
from sah.report.load import ReportPoint, load_report
from sah.report.records import JOB_FILE
from sah.report.verdicts import correct_points
from sah.results.files import replace_json
from sah.results.rows import plain_json
from sah.runners.job import JobContext, run_experiment
from sah.runners.jobs import Job, plain_config, refusal
from sah.runners.session import Session
from sah.runners.sweep import begin_sweep, run_groups


def run_points(preset: str, options: Options, settings: Settings, fast: Sequence[str] = FAST) -> list[ReportPoint]:
    """Run points; each context is prefilled once for all, and finished answers are not repeated.

    Args:
        preset: Name in conf/experiment.
        options: The command line.
        settings: The points, by the name of their method.
        fast: Overrides of the fast form.

    Returns:
        The points that have results, in the order given, labelled with their method's name; verdicts are corrected
        for their number. What failed is told on standard error.

    Raises:
        ConfigError: If a point cannot be run; nothing was run then.
        SystemExit: If no point has results.
    """
    register_configs()
    given = [tuple(overrides) for lines in settings.values() for overrides in lines]
    common = [f"output_dir={options.output_dir}", *(fast if options.fast else []), *options.overrides]
    if not any(text.startswith("tracker=") for text in common):
        common.append("tracker=none")
    batch = [(f"+experiment={preset}", *overrides, *common) for overrides in given]
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        jobs = _jobs(batch, [compose("config", list(overrides)) for overrides in batch])
    plan, session = begin_sweep(jobs, 1, None)
    run_groups(plan, session, LauncherOptions())
    folder = options.output_dir / "studies" / preset / datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")
    for job in jobs:
        _record(job, folder / str(job.number), preset, session)
    data = load_report(folder)
    for problem in (*data.problems, *(f"Failed: {text}: {error}" for text, error in data.failures)):
        print(problem, file=sys.stderr)
    if not data.points:
        raise SystemExit("No point could be run.")
    names = [name for name, lines in settings.items() for _ in lines]
    by_overrides = {job.overrides: name for job, name in zip(jobs, names, strict=True)}
    points = [_labelled(point, by_overrides[point.overrides]) for point in data.points]
    summaries = correct_points([point.summary for point in points])
    return [dataclasses.replace(point, summary=summary) for point, summary in zip(points, summaries, strict=True)]


def _jobs(batch: Sequence[tuple[str, ...]], configs: Sequence[DictConfig]) -> list[Job]:
    jobs: list[Job] = []
    mistakes: dict[int, Sequence[str]] = {}
    for number, (overrides, config) in enumerate(zip(batch, configs, strict=True)):
        try:
            jobs.append(Job(number, overrides, build_experiment(config), plain_config(config)))
        except ConfigError as error:
            mistakes[number] = error.mistakes or (str(error),)
    if mistakes:
        raise refusal(mistakes, dict(enumerate(batch)))
    return jobs


def _record(job: Job, folder: Path, preset: str, session: Session) -> None:
    """Score a point's rows and leave the record of a job, as a sweep does."""
    record: dict[str, Any] = {"status": "failed", "overrides": list(job.overrides)}
    try:
        point, metrics, _ = run_experiment(
            job.experiment, JobContext(folder, job.overrides, preset), session, job.config
        )
        record |= {
            "status": "ok",
            "point": point.main.store.id,
            "folder": str(point.main.store.folder.resolve()),
            "examples": hashlib.sha256(" ".join(point.row_keys).encode()).hexdigest()[:16],
            "questions": point.row_keys,
            "label": point.main.label,
            "metrics": metrics,
        }
    except Exception as error:
        # One failing point must not take the others with it.
        record["error"] = str(error) if isinstance(error, SahError) else traceback.format_exc()
    folder.mkdir(parents=True, exist_ok=True)
    replace_json(folder / JOB_FILE, plain_json(record))


def _labelled(point: ReportPoint, name: str) -> ReportPoint:
    return dataclasses.replace(point, label=name, summary=dataclasses.replace(point.summary, label=name))
