"""What the launcher's options accept."""

from __future__ import annotations

import pytest

from sah.config.launcher import RayOptions
from sah.errors import ConfigError


@pytest.mark.parametrize("address", [None, "auto", "local", "127.0.0.1:6379", "head.cluster:6379", "ray://head:10001"])
def test_addresses_that_ray_takes(address: str | None) -> None:
    assert RayOptions(address=address).address == address


@pytest.mark.parametrize("address", ["", " ", "foo", "head:", ":6379", "head:port", "http://head:6379", "ray://head"])
def test_other_addresses_are_told(address: str) -> None:
    with pytest.raises(ConfigError) as refused:
        RayOptions(address=address)
    assert str(refused.value).startswith(f"hydra.launcher.ray.address={address!r} is not allowed. Allowed: null")
    assert "HOST:PORT" in str(refused.value) and "hydra.launcher.ray.address=auto" in str(refused.value)
