"""A Hydra job: from the composed config to results, tracker and table."""

from __future__ import annotations

import hashlib
import logging
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from sah.config.build import build_experiment
from sah.config.experiment import Experiment
from sah.config.launcher import LAUNCHER, PREFIX
from sah.errors import ModelError, SahError, WorkerError
from sah.report.records import CONFIG_FILE, JOB_FILE
from sah.report.summary import objective_values, summarise_point
from sah.report.table import print_lines, print_table, speed_note
from sah.results.files import replace_json
from sah.results.provenance import collect
from sah.results.redact import redacted, redacted_argument
from sah.results.rows import plain_json
from sah.runners.group import Group, run_group
from sah.runners.jobs import plain_config
from sah.runners.point import Point, prepare_point
from sah.runners.records import sweep_name
from sah.runners.scoring import score_point
from sah.runners.session import Session
from sah.runners.timing import time_point
from sah.runners.tracking import log_point, run_info
from sah.tracking.discovery import create_tracker

_log = logging.getLogger(__name__)

_session = Session()


@dataclass(frozen=True)
class JobContext:
    """What a job knows beside its config."""

    folder: Path
    """The job's own folder."""

    overrides: tuple[str, ...] = ()
    """The command line's overrides of this job."""

    sweep: str | None = None
    """Name of the sweep that it belongs to."""

    backend: str = "local"
    """Who computes the sweep's rows, see `sah.config.launcher.LauncherOptions`."""

    single: bool = False
    """Whether it is a run of its own, which nothing sums up later."""


def run_job(config: DictConfig) -> float | tuple[float, ...] | None:
    """Run one composed point. In a sweep, failures are recorded and the next point goes on.

    Args:
        config: What Hydra composed.

    Returns:
        What a sweeper may optimise: the value of the one objective, or a tuple of several in the order of `objectives`
        (see `objective_values`; a score is by the data set's first metric). None if the point failed or a value was
        not measured, which a sweeper counts as a failed trial.

    Raises:
        SahError: In a single run, if anything was wrong; rows computed before are kept.
    """
    hydra = HydraConfig.get()
    ours = hydra.mode == RunMode.MULTIRUN and hydra.launcher.get("_target_") == LAUNCHER
    backend = str(hydra.launcher.backend) if ours else "local"
    context = JobContext(
        folder=Path(hydra.runtime.output_dir),
        overrides=tuple(hydra.overrides.task),
        sweep=sweep_name(hydra),
        backend=backend,
        single=hydra.mode != RunMode.MULTIRUN,
    )
    if hydra.mode != RunMode.MULTIRUN:
        _session.begin()
        return _run_and_record(config, context, show=True)
    try:
        return _run_and_record(config, context, show=False)
    except Exception as error:
        # One failing point must not end a sweep: it is in job.json and in the exit code of the whole.
        message = str(error) if isinstance(error, SahError) else traceback.format_exc()
        _log.error("Point %s failed: %s", " ".join(map(redacted_argument, context.overrides)), message)
        return None


def run_experiment(
    experiment: Experiment, context: JobContext, session: Session, config: dict[str, Any]
) -> tuple[Point, dict[str, Any], str | None]:
    """Run a point, time its decoding where `timing` asks for it, score it, and tell the tracker.

    Args:
        experiment: The point.
        context: The job.
        session: Caches of the process.
        config: The composed config as plain data.

    Returns:
        The point, its metrics, and where the tracker shows the run (None for nowhere).

    Raises:
        SahError: If it cannot be run. Rows computed before are kept.
    """
    point = prepare_point(experiment, session.without_weights(), config)
    if context.sweep is not None:
        _raise_if_ended(point, session)  # its group has told already; nothing is tried twice
    if context.backend != "local" and not point.is_answered:
        raise WorkerError(
            f"Answers of this point are missing: the workers of {PREFIX}.backend={context.backend} did not give them, "
            "and this process does not compute in their place. All other answers are kept. Run the same command again, "
            f"or with {PREFIX}.backend=local to have them computed here."
        )
    if experiment.timing or not point.is_answered:
        point = prepare_point(experiment, session, config)
    tracker = create_tracker(experiment.tracker)
    tracker.start(run_info(point, config, context.folder, context.sweep))
    try:
        group = Group((point,))
        run_group(group, session, lambda _: point_provenance(point, context.overrides))
        _raise_if_ended(point, session)
        try:
            if experiment.timing:
                time_point(point, group.run, session, point_provenance(point, context.overrides))
        finally:
            metrics = score_point(point)
            log_point(tracker, point, metrics, files=context.single)
    except BaseException:
        tracker.finish(failed=True)
        raise
    tracker.finish(failed=bool(summarise_point(metrics).failed) or "error" in metrics)
    return point, metrics, tracker.location


def _raise_if_ended(point: Point, session: Session) -> None:
    for arm in point.arms:
        if (error := session.errors.get(str(arm.store.folder))) is not None:
            raise error


def _run_and_record(config: DictConfig, context: JobContext, *, show: bool) -> float | tuple[float, ...] | None:
    record: dict[str, Any] = {"status": "failed", "overrides": [redacted_argument(o) for o in context.overrides]}
    try:
        experiment = build_experiment(config)
        plain = plain_config(config)
        replace_json(context.folder / CONFIG_FILE, plain_json(redacted(plain)))
        point, metrics, location = run_experiment(experiment, context, _session, plain)
        record |= {
            "point": point.main.store.id,
            "folder": str(point.main.store.folder.resolve()),
            "examples": hashlib.sha256(" ".join(point.row_keys).encode()).hexdigest()[:16],
            "questions": point.row_keys,
            "label": point.main.label,
            "metrics": metrics,
        }
        if show:
            _show(point, metrics, location)
        _raise_for_failed_rows(point, metrics)
        record["status"] = "ok"
        values = objective_values(summarise_point(metrics), experiment.objectives)
        if values is None:
            _log.warning("objectives: %s was not measured in full here.", ", ".join(experiment.objectives))
            return None
        record["objectives"] = dict(zip(experiment.objectives, values, strict=True))
        return values if len(values) > 1 else values[0]
    except BaseException as error:
        record["error"] = f"{type(error).__name__}: {error}"
        raise
    finally:
        replace_json(context.folder / JOB_FILE, plain_json(record))


def _show(point: Point, metrics: dict[str, Any], location: str | None) -> None:
    summary = summarise_point(metrics)
    title = f"{point.model.label}, {point.experiment.dataset.name}, {summary.metric}"
    print_table([summary], title)
    lines = [speed_note([summary]), f"Results: {point.main.store.folder}"]
    print_lines(*lines, *([f"Tracker: {location}"] if location else []))


def _raise_for_failed_rows(point: Point, metrics: dict[str, Any]) -> None:
    if "error" in metrics:
        raise ModelError(metrics["error"])
    failed = summarise_point(metrics).failed
    if not failed:
        return
    arms = [arm for arm in (point.dense, point.sparse) if arm is not None]
    wanted = set(point.row_keys)
    rows = [row for arm in arms for row in arm.store.load().values() if row.key in wanted]
    first = next((row.error for row in rows if row.error), "see scores.jsonl.")
    raise ModelError(
        f"{failed} answers of this point are missing. First error: {first}\n"
        "All other answers are kept. The same command tries the missing ones again; where an input is at fault, "
        "mend it first."
    )


def point_provenance(point: Point, overrides: Sequence[str]) -> dict[str, Any]:
    """Gather what is known of a point's run.

    Args:
        point: The point.
        overrides: The command line's overrides of its job.

    Returns:
        JSON data, see `sah.results.provenance.collect`.
    """
    model = point.model.adapter.model
    return collect(
        overrides=overrides,
        seed=point.experiment.seed,
        threads=point.experiment.threads,
        checkpoint_hash=point.model.checkpoint_hash,
        extra={
            "model": point.experiment.model.name,
            "dtype": str(model.dtype),
            "device": str(model.device),
            "dense_attention": model.config._attn_implementation,
        },
    )
