"""The base of every config dataclass that checks its own values."""

from __future__ import annotations

import dataclasses
from numbers import Integral, Real
from typing import Any, cast

from sah.config.values import closest
from sah.errors import ConfigError


class ValidatedConfig:
    """Mixin for dataclasses whose values are checked when built and whenever one is assigned.

    A refused assignment leaves the old value in place. Numbers of other kinds, such as numpy's, become plain ints and
    floats. Subclasses override `validate` and call `super().validate()`.
    """

    def validate(self) -> None:
        """Check all fields together.

        Raises:
            ConfigError: If a value, or a combination of values, cannot be used.
        """

    def __post_init__(self) -> None:
        self.validate()
        object.__setattr__(self, "_built", True)

    def __setattr__(self, name: str, value: Any) -> None:
        value = _plain_number(value)
        if not getattr(self, "_built", False):
            object.__setattr__(self, name, value)
            return
        self._require_field(name)
        previous = getattr(self, name, None)
        object.__setattr__(self, name, value)
        try:
            self.validate()
        except BaseException:
            object.__setattr__(self, name, previous)
            raise

    def _require_field(self, name: str) -> None:
        fields = [entry.name for entry in dataclasses.fields(cast("Any", self))]
        if name in fields:
            return
        meant = closest(name, fields)
        raise ConfigError(
            f"{type(self).__name__} has no field {name!r}. Allowed: {', '.join(fields) or 'none'}."
            + (f" Write for example: {meant}" if meant else "")
        )


def _plain_number(value: Any) -> Any:
    if isinstance(value, (bool, int)) or type(value) is float:
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value
