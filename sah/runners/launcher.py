"""`hydra/launcher=grouped`: computes the rows of a whole sweep group by group, and then runs Hydra's jobs over them.

All jobs are composed and validated first. Points that share model and data set are computed together, each context
prefilled once. Then every job runs as with Hydra's basic launcher, in its own folder and under its own number; it finds
its rows there, scores them and tells the tracker. Light to import: torch comes with the first group.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, configure_log, env_override, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from sah.config.compose import SweepComposer
from sah.config.launcher import PREFIX, LauncherOptions
from sah.config.mistakes import all_mistakes
from sah.config.typed import build_section
from sah.errors import ConfigError
from sah.results.sweep_file import SWEEP_FILE, redact_sweep_file
from sah.runners.jobs import Job, compose_jobs

_log = logging.getLogger(__name__)

_LEFT_RUNNING = (
    "The trials of this batch stay in the study of hydra.sweeper.storage as running ones without a result: Optuna has "
    "begun them before their values could be checked. `python -m sah.plan` with the same arguments checks them first."
)

planning: ContextVar[bool] = ContextVar("planning", default=False)
"""Whether sweeps are shown and not run, as `python -m sah.plan` wants it."""


class GroupedLauncher(Launcher):
    """Hydra makes it from the node `hydra.launcher`, whose values `setup` reads.

    Args:
        **_: Values of the node.
    """

    def __init__(self, **_: Any) -> None:
        self.options = LauncherOptions()
        self.config = OmegaConf.create()
        self._jobs: dict[tuple[str, ...], Job] = {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra knows; see `Launcher.setup`.

        Raises:
            ConfigError: If an option of the launcher cannot be used.
        """
        self.config = config
        self.options = read_options(config)
        self._context = hydra_context
        self._task = task_function
        self._composer = SweepComposer(hydra_context.config_loader, config)

    def check(self, batch: Mapping[int, Sequence[str]]) -> list[Job]:
        """Compose and validate jobs, each once.

        Args:
            batch: Number of each job to its overrides.

        Returns:
            The jobs, in order.

        Raises:
            ConfigError: If any of them cannot be run; the message tells of all.
        """
        # Hydra has saved the overrides by now; the callback that hides secrets waits for the first job.
        redact_sweep_file(Path(str(self.config.hydra.sweep.dir)) / SWEEP_FILE)
        new = {number: given for number, given in batch.items() if _key(number, given) not in self._jobs}
        if new:
            self._jobs |= {_key(job.number, job.overrides): job for job in compose_jobs(self._composer, new)}
        return [self._jobs[_key(number, given)] for number, given in batch.items()]

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run jobs; see `Launcher.launch`.

        Raises:
            ConfigError: If any of them cannot be run. Nothing was run then.
            StateError: If rows cannot be written, because of a full disk, say. All rows before are kept.
        """
        batch = dict(enumerate(job_overrides, start=initial_job_idx))
        if planning.get():
            from sah.runners.sweep import show_plan

            begun = time.perf_counter()
            show_plan(self.check(batch), environment(self.config), self.options.workers, begun, self._trials())
            raise SystemExit(0)  # the sweeper would ask for results now
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        try:
            jobs = self.check(batch)
            self._compute(jobs, Path(str(self.config.hydra.sweep.dir)))
        except ConfigError as error:
            if self.config.hydra.sweeper.get("storage") is None:
                raise
            raise ConfigError(f"{error}\n{_LEFT_RUNNING}") from error
        return [self._run(job) for job in jobs]

    def _compute(self, jobs: Sequence[Job], folder: Path) -> None:
        """Show the plan and compute the rows of all jobs."""
        from sah.runners.sweep import begin_sweep, run_groups

        with env_override(environment(self.config)):
            plan, session = begin_sweep(jobs, self.options.workers, self._trials())
            folder.mkdir(parents=True, exist_ok=True)  # now that nothing is refused
            if plan.busy:
                with _logging_as_jobs(self.config, folder):
                    run_groups(plan, session, self.options)

    def _trials(self) -> int | None:
        """Return how many jobs a sweeper makes in all that chooses them from results, Optuna's say."""
        trials: int | None = self.config.hydra.sweeper.get("n_trials")
        return trials

    def _run(self, job: Job) -> JobReturn:
        """Run one job as Hydra's basic launcher does. Its config is made again: hundreds would fill the memory."""
        _log.info("#%d : %s", job.number, job.text())
        result = run_job(
            hydra_context=self._context,
            task_function=self._task,
            config=self._composer.compose(job.overrides, job.number),
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        return result


def read_options(config: DictConfig) -> LauncherOptions:
    """Read the launcher's options.

    Args:
        config: A composed config with the node `hydra.launcher` of our launcher.

    Returns:
        The options.

    Raises:
        ConfigError: If one cannot be used.
    """
    values: Any = OmegaConf.to_container(config.hydra.launcher, resolve=True)
    values.pop("_target_", None)
    options, mistakes = build_section(LauncherOptions, values, PREFIX)
    if options is None:
        raise all_mistakes(mistakes)
    return options


def environment(config: DictConfig) -> dict[str, str]:
    """Read the environment that Hydra gives to every job."""
    values: Any = OmegaConf.to_container(config.hydra.job.env_set, resolve=True)
    return {str(name): str(value) for name, value in values.items()}


def _key(number: int, overrides: Sequence[str]) -> tuple[str, ...]:
    return (str(number), *overrides)


@contextmanager
def _logging_as_jobs(config: DictConfig, folder: Path) -> Iterator[None]:
    """Log as the jobs do, but into a file in the sweep's folder, and then as the launcher does."""
    own = copy.deepcopy(config)
    with read_write(own.hydra.runtime), open_dict(own.hydra.runtime):
        own.hydra.runtime.output_dir = str(folder.absolute())
    configure_log(own.hydra.job_logging, own.hydra.verbose)
    try:
        yield
    finally:
        configure_log(config.hydra.hydra_logging, config.hydra.verbose)
