"""`hydra/sweeper=grouped`: Hydra's basic sweeper, but our launcher checks the jobs, which is quicker.

Also registers our plugins with Hydra. Importing it makes Hydra look for all its plugins.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins

from sah.config.compose import SweepComposer
from sah.config.launcher import LAUNCHER, SWEEPER
from sah.results.sweep_file import SWEEP_FILE
from sah.runners.jobs import compose_jobs
from sah.runners.launcher import GroupedLauncher, environment, planning

# While Hydra looks for plugins it executes its own once more, and a subclass made before is none of the new class.
Plugins.instance()
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # noqa: E402


class GroupedSweeper(BasicSweeper):
    """Takes what the basic sweeper takes and makes the same jobs of it."""

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Check jobs before they run: with our launcher those of all batches, at the first one.

        Raises:
            ConfigError: If any job cannot be run.
            HydraException: If one cannot be composed, with another launcher.
        """
        if not isinstance(self.launcher, GroupedLauncher):
            super().validate_batch_is_legal(batch)
        elif self.batch_index == 1:
            self.launcher.check(dict(enumerate(job for given in self.overrides or () for job in given)))

    def sweep(self, arguments: list[str]) -> Any:
        """Run the sweep, or show what it would do.

        Args:
            arguments: The command line's overrides of the jobs.

        Returns:
            The results of each batch.

        Raises:
            ConfigError: If any job cannot be run. Nothing was run then, with our launcher.
        """
        if self.config is None or self.hydra_context is None:
            raise RuntimeError("sweep() needs setup() first")
        if not planning.get():
            folder = Path(str(self.config.hydra.sweep.dir))
            new = [path for path in (folder, *folder.parents) if not path.exists()]
            try:
                return super().sweep(arguments)
            except Exception:
                _remove_unused(new)
                raise
        begun = time.perf_counter()
        loader = self.hydra_context.config_loader
        overrides = OverridesParser.create(config_loader=loader).parse_overrides([*self._parse_config(), *arguments])
        (batch,) = self.split_arguments(overrides, None)
        jobs = compose_jobs(SweepComposer(loader, self.config), dict(enumerate(batch)))
        from sah.runners.sweep import show_plan

        workers = self.launcher.options.workers if isinstance(self.launcher, GroupedLauncher) else 1
        show_plan(jobs, environment(self.config), workers, begun)
        return []


def _remove_unused(new: Sequence[Path]) -> None:
    """Remove the folders that a sweep has made, its own first, if nothing ran: Hydra's file is all there is then."""
    with contextlib.suppress(OSError):
        if new and [path.name for path in new[0].iterdir()] == [SWEEP_FILE]:
            (new[0] / SWEEP_FILE).unlink()
            for path in new:
                path.rmdir()


def register_plugins() -> None:
    """Let Hydra know our launcher and sweeper. Idempotent.

    Hydra makes plugins of the namespace `hydra_plugins` only. A real package there would be imported by every other
    program of the environment that uses Hydra.
    """
    plugins = Plugins.instance()
    for name, plugin in ((LAUNCHER, GroupedLauncher), (SWEEPER, GroupedSweeper)):
        plugins.register(plugin)
        plugins.class_name_to_class[name] = plugin
