"""Shows what a sweep would do and runs nothing: `python -m sah.plan masker=topk,random density=0.05,0.1`.

Takes what `sah.run -m` takes, and loads no weights.
"""

from __future__ import annotations

import sys

from omegaconf import DictConfig

from sah.errors import ConfigError
from sah.run import Result, run_command
from sah.runners.launcher import planning

_OTHER_COMMANDS = (
    "-h",
    "--help",
    "--hydra-help",
    "--version",
    "-c",
    "--cfg",
    "-i",
    "--info",
    "-sc",
    "--shell-completion",
)


def main() -> None:
    """Compose all points of the sweep in `sys.argv`, and print what is done and what is left to do."""
    program, *arguments = sys.argv
    if not any(argument.partition("=")[0] in ("-m", "--multirun", *_OTHER_COMMANDS) for argument in arguments):
        arguments.insert(0, "--multirun")
    sys.argv = [program, *arguments]
    token = planning.set(True)
    try:
        run_command(_refuse)
    finally:
        planning.reset(token)


def _refuse(config: DictConfig, full_error: bool) -> Result:
    raise ConfigError(
        "There is no plan of this sweep: neither its sweeper nor its launcher is ours, so its points are known only "
        "while they run. Allowed: hydra/launcher=grouped, or hydra/sweeper=grouped. Leave out -r as well"
    )


if __name__ == "__main__":
    main()
