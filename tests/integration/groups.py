"""Runs groups of points in this process through `run_group`, without a launcher."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from sah.config.build import build_experiment
from sah.config.experiment import Experiment
from sah.config.paths import conf_dir
from sah.config.register import register_configs
from sah.runners.group import group_points, run_group
from sah.runners.job import point_provenance
from sah.runners.point import Point, prepare_point
from sah.runners.session import Session
from sah.runners.workers.base import Workers
from tests.integration.running import arguments

SETTINGS = (("masker=topk",), ("masker=random",), ("masker=quest", "density=0.2"), ("masker=[sink,adaptive]",))
"""Overrides of a small sweep: a sampler, methods with state and one whose budget is found while it runs."""


def experiments(*settings: Sequence[str], folder: Path | str = "outputs") -> list[Experiment]:
    """Compose one experiment for each list of overrides, short by default."""
    where = Path(folder).resolve()
    return [dataclasses.replace(_experiment(tuple(setting)), output_dir=where) for setting in settings]


@cache
def _experiment(setting: tuple[str, ...]) -> Experiment:
    register_configs()
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        return build_experiment(compose("config", arguments(*setting)))


def run_settings(
    *settings: Sequence[str],
    folder: Path | str = "outputs",
    workers: Workers | None = None,
    session: Session | None = None,
) -> list[Point]:
    """Run the points of some settings as groups, as one sweep would."""
    session = session or Session()
    points = [prepare_point(one, session) for one in experiments(*settings, folder=folder)]
    for group in group_points(points):
        run_group(group, session, lambda point: point_provenance(point, ()), workers)
    for error in session.errors.values():
        raise error
    return points
