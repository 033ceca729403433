"""Options of our launcher, `hydra/launcher=grouped`, and of the sweeper that goes with it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any, ClassVar

from omegaconf import DictConfig, OmegaConf, open_dict

from sah.config.base import ValidatedConfig
from sah.config.lenient import schema_node
from sah.config.values import check_count
from sah.errors import bad_value

LAUNCHER = "hydra_plugins.sah.GroupedLauncher"
SWEEPER = "hydra_plugins.sah.GroupedSweeper"
"""Names under which the plugins are registered: Hydra takes none from outside `hydra_plugins`."""

PREFIX = "hydra.launcher"

_ADDRESS = re.compile(r"auto|local|(ray://)?[^\s/]+:\d{1,5}")
"""Ray's own forms. Those of its client are refused where the cluster is joined, and told why."""


@dataclass
class RayOptions(ValidatedConfig):
    """Where Ray's workers run and what each of them holds."""

    address: str | None = None
    """HOST:PORT of a cluster to join, or `auto` for the one of this machine; None or `local` starts one here."""

    num_cpus: float | None = None
    """Processors of a worker; None is one, or less where there are more workers than processors."""

    num_gpus: float = 0.0
    """GPUs of a worker; a part of one is possible."""

    init: dict[str, Any] = field(default_factory=dict)
    """Further arguments of `ray.init`."""

    def validate(self) -> None:
        """Check the values.

        Raises:
            ConfigError: If one cannot be used.
        """
        super().validate()
        if self.address is not None and not _ADDRESS.fullmatch(self.address):
            allowed = "null or local to start Ray on this machine, auto, HOST:PORT of a cluster's head"
            raise bad_value(f"{PREFIX}.ray.address", self.address, allowed, f"{PREFIX}.ray.address=auto")
        for name in ("num_cpus", "num_gpus"):
            number = getattr(self, name)
            if number is not None and not (math.isfinite(number) and number >= 0):
                key = f"{PREFIX}.ray.{name}"
                raise bad_value(key, number, "a number of at least 0", f"{key}=1")


@dataclass
class SlurmOptions(ValidatedConfig):
    """The SLURM job of each worker."""

    CLUSTERS: ClassVar[tuple[str, ...]] = ("slurm", "local")

    cluster: str = "slurm"
    """`slurm`, or `local` for submitit's own processes on this machine."""

    folder: str | None = None
    """Where submitit keeps logs and jobs their answers until they are read; all nodes must see it. None: the folder
    `slurm` in `output_dir`."""

    partition: str | None = None
    timeout_min: int = 60
    """Minutes after which a job is ended."""

    gpus_per_node: int | None = None
    cpus_per_task: int | None = None
    mem_gb: float | None = None
    additional: dict[str, Any] = field(default_factory=dict)
    """Further parameters for submitit, e.g. `slurm_account`."""

    def validate(self) -> None:
        """Check the values.

        Raises:
            ConfigError: If one cannot be used.
        """
        super().validate()
        prefix = f"{PREFIX}.slurm"
        if self.cluster not in self.CLUSTERS:
            raise bad_value(f"{prefix}.cluster", self.cluster, ", ".join(self.CLUSTERS), f"{prefix}.cluster=slurm")
        check_count(f"{prefix}.timeout_min", self.timeout_min, minimum=1)
        for name, minimum in (("gpus_per_node", 0), ("cpus_per_task", 1)):
            if getattr(self, name) is not None:
                check_count(f"{prefix}.{name}", getattr(self, name), minimum=minimum)
        if self.mem_gb is not None and not (math.isfinite(self.mem_gb) and self.mem_gb > 0):
            raise bad_value(f"{prefix}.mem_gb", self.mem_gb, "a number above 0, or null", f"{prefix}.mem_gb=16")


@dataclass
class LauncherOptions(ValidatedConfig):
    """Who computes the rows of a sweep."""

    BACKENDS: ClassVar[tuple[str, ...]] = ("local", "ray", "slurm")

    backend: str = "local"
    """`local` computes in this process, `ray` and `slurm` in `workers` others."""

    workers: int = 1
    """Processes that share the contexts of a group; `local` has one."""

    retries: int = 2
    """How often the work of a worker that died is given to another one."""

    ray: RayOptions = field(default_factory=RayOptions)
    slurm: SlurmOptions = field(default_factory=SlurmOptions)

    def validate(self) -> None:
        """Check the values.

        Raises:
            ConfigError: If one cannot be used.
        """
        super().validate()
        if self.backend not in self.BACKENDS:
            raise bad_value(f"{PREFIX}.backend", self.backend, ", ".join(self.BACKENDS), f"{PREFIX}.backend=local")
        check_count(f"{PREFIX}.workers", self.workers, minimum=1)
        check_count(f"{PREFIX}.retries", self.retries)
        if self.backend == "local" and self.workers > 1:
            raise bad_value(
                f"{PREFIX}.workers",
                self.workers,
                "1 with backend=local, which computes in this process",
                f"{PREFIX}.backend=ray {PREFIX}.workers={self.workers}",
            )


@dataclass
class SweeperOptions:
    """What Hydra's basic sweeper takes."""

    max_batch_size: int | None = None
    params: dict[str, str] | None = None


def launcher_node() -> DictConfig:
    """Make the node of `hydra/launcher=grouped` for the ConfigStore; wrong values are told by `LauncherOptions`."""
    return _plugin(schema_node(LauncherOptions), LAUNCHER)


def sweeper_node() -> DictConfig:
    """Make the node of `hydra/sweeper=grouped` for the ConfigStore."""
    return _plugin(OmegaConf.structured(SweeperOptions), SWEEPER)


def _plugin(node: DictConfig, name: str) -> DictConfig:
    with open_dict(node):
        node["_target_"] = name
    return node
