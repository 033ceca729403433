"""The base of every config dataclass that checks its own values."""

from __future__ import annotations

from typing import Any


class ValidatedConfig:
    """Mixin for dataclasses whose values are checked when built and whenever one is assigned.

    A refused assignment leaves the old value in place. Subclasses override `validate` and call `super().validate()`.
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
        if not getattr(self, "_built", False):
            object.__setattr__(self, name, value)
            return
        previous = getattr(self, name, None)
        object.__setattr__(self, name, value)
        try:
            self.validate()
        except BaseException:
            object.__setattr__(self, name, previous)
            raise
