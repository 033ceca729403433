"""Runs single points of a preset in one process, for studies whose points are no product of values."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from experiments.study import FAST, Options
from sah.config.build import build_experiment
from sah.config.paths import conf_dir
from sah.config.register import register_configs
from sah.errors import SahError
from sah.report.summary import PointSummary, summarise_point
from sah.results.store import read_point
from sah.runners.job import JobContext, run_experiment
from sah.runners.session import Session


@dataclass(frozen=True)
class DonePoint:
    """A point that has run."""

    summary: PointSummary
    scores: Mapping[str, float]
    """Score of each question by the data set's first metric, by the key of its row."""


def run_points(preset: str, options: Options, points: Sequence[Sequence[str]]) -> list[DonePoint | None]:
    """Run points one after the other; each context is prefilled once for all, and finished answers are not repeated.

    Args:
        preset: Name in conf/experiment.
        options: The command line.
        points: The overrides of each point.

    Returns:
        Each point, None where it could not be run.

    Raises:
        SahError: If the configuration of any point is wrong, before the first one runs.
    """
    register_configs()
    common = [f"output_dir={options.output_dir}", *(FAST if options.fast else []), *options.overrides]
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        configs = [compose("config", [f"+experiment={preset}", *overrides, *common]) for overrides in points]
    experiments = [build_experiment(config) for config in configs]
    started = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    session = Session()
    done: list[DonePoint | None] = []
    for number, (overrides, config, experiment) in enumerate(zip(points, configs, experiments, strict=True)):
        print(f"{number + 1}/{len(points)} {' '.join(overrides)}", file=sys.stderr)
        folder = options.output_dir / "studies" / preset / started / str(number)
        plain = cast("dict[str, Any]", OmegaConf.to_container(config, resolve=True))
        try:
            context = JobContext(folder, (f"+experiment={preset}", *overrides, *common), preset)
            point, metrics, _ = run_experiment(experiment, context, session, plain)
        except Exception as error:
            # One failing point must not take the others with it; the page shows those.
            print(f"Failed: {error if isinstance(error, SahError) else traceback.format_exc()}", file=sys.stderr)
            done.append(None)
            continue
        wanted = set(point.row_keys)
        rows = read_point(point.main.store.folder).scores
        scores = {key: row.scores[metrics["metrics"][0]] for key, row in rows.items() if key in wanted and row.scores}
        done.append(DonePoint(summarise_point(metrics), scores))
    return done
