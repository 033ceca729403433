"""Keeps access tokens out of `multirun.yaml`, which Hydra writes into a sweep's folder without asking."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from sah.results.redact import HIDDEN, redacted, redacted_argument

SWEEP_FILE = "multirun.yaml"


class RedactSweepFile(Callback):
    """Hides secrets in the file before the first job of a sweep runs, and at its end where jobs run elsewhere."""

    def __init__(self) -> None:
        self._seen: dict[Path, int] = {}
        """When each file that was looked at was last written, in ns: reading one takes as long as a small job."""

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Redact the file; in a single run there is none.

        Args:
            config: The job's config.
            **kwargs: Not used.
        """
        path = Path(config.hydra.sweep.dir) / SWEEP_FILE
        if path.is_file() and self._seen.get(path) != path.stat().st_mtime_ns:
            redact_sweep_file(path)
            self._seen[path] = path.stat().st_mtime_ns

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Redact the file if no job of this process did.

        Args:
            config: The sweep's config.
            **kwargs: Not used.
        """
        redact_sweep_file(Path(config.hydra.sweep.dir) / SWEEP_FILE)


def redact_sweep_file(path: Path) -> None:
    """Hide secrets in a config that Hydra saved: in its values and in the overrides. Without secrets it stays as it is.

    Args:
        path: The file; nothing happens if it does not exist.
    """
    if not path.is_file():
        return
    saved: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    shown: Any = redacted(saved)
    overrides = shown["hydra"]["overrides"]
    for kind, given in overrides.items():
        hidden = [redacted_argument(argument) for argument in given]
        if hidden != given:
            overrides[kind] = hidden
            shown["hydra"]["job"]["override_dirname"] = HIDDEN
    if shown == saved:
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(OmegaConf.to_yaml(OmegaConf.create(shown)), encoding="utf-8")
    os.replace(partial, path)
