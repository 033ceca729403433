"""The cluster that Ray's workers run on."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from sah.config.launcher import PREFIX, RayOptions
from sah.errors import WorkerError, bad_value

LOCAL = "local"
"""Ray's own word for starting a cluster on this machine."""

CONNECT_SECONDS = 10.0
"""How long an answer from a cluster's address is waited for."""


class RayCluster:
    """Ray on this machine or on others.

    Args:
        ray: The module.
        options: Where it is and what each worker takes.
    """

    def __init__(self, ray: Any, options: RayOptions) -> None:
        self._ray = ray
        self._options = options

    def connect(self) -> None:
        """Start Ray or join it, unless this process has done so before.

        Raises:
            WorkerError: If it cannot be had.
        """
        ray = self._ray
        address = self._options.address or LOCAL
        self._check_address(address)
        if ray.is_initialized():
            return
        given = {"include_dashboard": False, **self._options.init} if address == LOCAL else self._options.init
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            ray.init(address=address, **given)
        except (ConnectionError, ValueError, TypeError, RuntimeError, OSError) as error:
            raise self._no_cluster(str(error)) from error

    def _check_address(self, address: str) -> None:
        """Look whether anybody answers there: Ray itself tries for longer than ten minutes."""
        if address in (LOCAL, "auto"):
            return
        if "://" in address:
            raise self._no_cluster("rows cannot be streamed through Ray's client")
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        except (OSError, ValueError) as error:
            raise self._no_cluster(str(error)) from error

    def _no_cluster(self, reason: str) -> WorkerError:
        key, init = f"{PREFIX}.ray.address", self._options.init
        with_init = f" with {', '.join(sorted(init))} in {PREFIX}.ray.init" if init else ""
        return WorkerError(
            f"{key}={self._options.address!r}{with_init}: Ray cannot be had: {reason}\n"
            "Allowed: null to start it on this machine; on a machine of a running cluster auto, or HOST:PORT of its "
            f"head. Write for example: {key}=auto"
        )

    def check_room(self, workers: int) -> dict[str, float]:
        """Look whether the cluster has what workers take: Ray itself would wait for ever.

        Args:
            workers: How many there are to be.

        Returns:
            What each of them takes, as options of its actor.

        Raises:
            WorkerError: If the cluster does not have it, whoever uses it at the moment.
        """
        ray, options = self._ray, self._options
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        total = ray.cluster_resources()
        asked = options.num_cpus
        if asked is None:
            asked = 1.0 / max(1, math.ceil(workers / max(total.get("CPU", 1.0), 1.0)))
        needs = {"num_cpus": ("CPU", asked), "num_gpus": ("GPU", options.num_gpus)}
        for key, (kind, amount) in needs.items():
            largest = max((node.get(kind, 0.0) for node in nodes), default=0.0)
            if amount > largest:
                whole = f"{PREFIX}.ray.{key}"
                allowed = f"at most {largest:g}, the {kind}s of the cluster's largest machine"
                raise WorkerError(str(bad_value(whole, amount, allowed, f"{whole}={largest:g}")))
        places = sum(_places(node, [need for need in needs.values() if need[1] > 0]) for node in nodes)
        if workers > places:
            allowed = (
                f"at most {places:g}, since each worker takes {asked:g} CPUs and {options.num_gpus:g} GPUs and the "
                f"cluster has {total.get('CPU', 0.0):g} and {total.get('GPU', 0.0):g}"
            )
            key = f"{PREFIX}.workers"
            raise WorkerError(str(bad_value(key, workers, allowed, f"{key}={places:g}")))
        return {"num_cpus": asked, "num_gpus": options.num_gpus}


def _places(node: Mapping[str, float], needs: Sequence[tuple[str, float]]) -> float:
    return min((math.floor(node.get(kind, 0.0) / amount + 1e-9) for kind, amount in needs), default=math.inf)
