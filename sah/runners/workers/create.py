"""Makes the workers that the launcher's options name."""

from __future__ import annotations

from sah.config.launcher import LauncherOptions
from sah.runners.workers.base import Workers


def create_workers(options: LauncherOptions) -> Workers | None:
    """Make the workers of a sweep. They can serve one group after another.

    Args:
        options: The launcher's options.

    Returns:
        The workers; None where this process computes itself.

    Raises:
        ConfigError: If what the backend needs is not installed.
    """
    if options.backend == "ray":
        from sah.runners.workers.ray import RayWorkers

        return RayWorkers(options.workers, options.retries, options.ray)
    if options.backend == "slurm":
        from sah.runners.workers.slurm import SlurmWorkers

        return SlurmWorkers(options.workers, options.retries, options.slurm)
    return None
