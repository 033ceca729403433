"""The base of the configs of sparse prefill. Imports no torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from sah.config.base import ValidatedConfig


@dataclass
class PrefillConfig(ValidatedConfig):
    """Base of every prefill pattern's config.

    A subclass sets `name`, the word of the command line (`prefill=<name>`), and `pattern`, the dotted path of the class
    that it configures. The path keeps torch out of the config's module. A dense prefill is no config but None.
    """

    name: ClassVar[str] = ""
    pattern: ClassVar[str] = ""
    version: ClassVar[int] = 1
    """Raised when the pattern reads other keys than before, so that no old context or row is taken for a new one."""

    def identity(self) -> dict[str, Any]:
        """Return what decides the context's keys and values, as plain data."""
        return {"name": self.name, "pattern": self.pattern, "version": self.version, **dataclasses.asdict(self)}

    def key(self, field_name: str) -> str:
        """Return the config key of a field, for messages."""
        return f"prefill.{field_name}"
