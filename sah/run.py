"""Runs one point, or with `-m` a sweep of them: `python -m sah.run model=llama masker=topk`.

Light until a config is composed: torch and transformers are imported by the job, so that `--help` and
`--cfg job` are quick.
"""

from __future__ import annotations

import os
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from sah.config.build import build_experiment
from sah.config.overrides import check_choices
from sah.config.paths import conf_dir
from sah.config.register import register_configs
from sah.console import print_error
from sah.errors import ConfigError, SahError

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells count it."""


def main() -> None:
    """Compose the config from `sys.argv` and run it; `--help` tells what can be said."""
    register_configs()
    try:
        check_choices(sys.argv[1:])
    except ConfigError as error:
        print_error(str(error))
        raise SystemExit(1) from None
    try:
        _job()
    except KeyboardInterrupt:
        print_error("Interrupted. Finished answers are kept: the same command goes on where it stopped.")
        raise SystemExit(INTERRUPTED) from None


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
def _job(config: DictConfig) -> None:
    """Run one composed point. A mistake of the user's ends it with its message and exit code 1.

    In a sweep `run_job` itself records failures, so that the points after it still run.
    """
    try:
        if HydraConfig.get().mode != RunMode.MULTIRUN:
            build_experiment(config)  # a mistake is told at once, before torch is imported
        from sah.runners.job import run_job

        run_job(config)
    except SahError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print_error(str(error))
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
