"""Runs one point, or with `-m` a sweep of them: `python -m sah.run model=llama masker=topk`.

Light until a config is composed: torch and transformers are imported by the job, so that `--help` and
`--cfg job` are quick.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from sah.config.build import build_experiment
from sah.config.explain import explain
from sah.config.overrides import check_choices
from sah.config.paths import conf_dir
from sah.config.register import register_configs
from sah.console import print_error
from sah.errors import SahError

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells count it."""

FULL_ERROR = "HYDRA_FULL_ERROR"
"""Environment variable; with 1 every error is shown with its traceback."""

_NO_TRIAL = "No trials are completed yet."
"""What Optuna raises at the end of a search in which every trial failed."""


Result = float | tuple[float, ...] | None
"""What a job returns to its sweeper."""


def main() -> None:
    """Compose the config from `sys.argv` and run it; `--help` tells what can be said."""
    run_command(_run)


def run_command(task: Callable[[DictConfig, bool], Result]) -> None:
    """Compose the config from `sys.argv` and call a function for each point.

    Args:
        task: Takes a composed config, and whether errors are shown with their tracebacks.

    Raises:
        SystemExit: With 1 after the message of a mistake, with 130 after Ctrl-C.
    """
    from sah.runners.sweeper import register_plugins

    register_configs()
    register_plugins()
    full_error = os.environ.get(FULL_ERROR) == "1"

    @hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
    def job(config: DictConfig) -> Result:
        return task(config, full_error)

    try:
        check_choices(sys.argv[1:])
        with _hydra_raises():
            job()
    except KeyboardInterrupt:
        print_error("Interrupted. Finished answers are kept: the same command goes on where it stopped.")
        raise SystemExit(INTERRUPTED) from None
    except (SahError, HydraException, OmegaConfBaseException, OSError, ValueError) as error:
        message = None if full_error else _message(error)
        if message is None:
            raise
        print_error(message)
        raise SystemExit(1) from None


def _run(config: DictConfig, full_error: bool) -> Result:
    """Run one composed point. A mistake of the user's ends it with its message and exit code 1.

    In a sweep `run_job` itself records failures, so that the points after it still run. What sweepers may
    optimise is returned.
    """
    try:
        if HydraConfig.get().mode != RunMode.MULTIRUN:
            build_experiment(config)  # a mistake is told at once, before torch is imported
        from sah.runners.job import run_job

        return run_job(config)
    except SahError as error:
        if full_error:
            raise
        print_error(str(error))
        raise SystemExit(1) from None


@contextmanager
def _hydra_raises() -> Iterator[None]:
    """Let Hydra raise its errors; by itself it prints them, with advice that does not fit, and exits."""
    before = os.environ.get(FULL_ERROR)
    os.environ[FULL_ERROR] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[FULL_ERROR]
        else:
            os.environ[FULL_ERROR] = before


def _message(error: Exception) -> str | None:
    """Say what a user can mend; None for an error that is a fault of the code."""
    if isinstance(error, SahError):
        return str(error)
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return explain(error, sys.argv[1:])
    if str(error) == _NO_TRIAL:
        return "No point of the search finished, so there is no best one. Why each of them failed is told above."
    if any(frame.f_code is _run.__code__ for frame, _ in traceback.walk_tb(error.__traceback__)):
        return None
    # Before a job runs, Hydra makes its folder and opens its log there; logging wraps the error of the latter.
    cause = error if isinstance(error, OSError) else error.__cause__
    return _unwritable(cause) if isinstance(cause, OSError) else None


def _unwritable(error: OSError) -> str:
    where = f" {Path(error.filename).absolute()}" if error.filename else ""
    return (
        f"output_dir: the folder of this run{where} cannot be written: {error.strerror or error}. "
        "Allowed: a folder that you may make or write to. Write for example: output_dir=outputs"
    )


if __name__ == "__main__":
    main()
