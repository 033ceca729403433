"""The budget that every prefill pattern has. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from sah.config.values import check_share
from sah.errors import ConfigError
from sah.sparse_attention.prefill.config import PrefillConfig

DEFAULT_DENSITY = 0.1
"""Density where a pattern is given neither a density nor a size."""


@dataclass
class BudgetedPrefillConfig(PrefillConfig):
    """A pattern with one budget: `density`, or sizes of its own.

    A subclass names the fields that hold sizes in `size_fields`. Both kinds given is an error; none given means a
    density of 0.1. It is prefill's own: the top-level density is that of the maskers.
    """

    size_fields: ClassVar[tuple[str, ...]] = ()

    density: float | None = field(default=None, kw_only=True)
    """Share of the (query, key) pairs of a context that causality allows which is kept, above 0 and at most 1."""

    @property
    def target_density(self) -> float | None:
        """The density to keep; None where sizes of its own are the budget."""
        if self.density is None and not self._given_sizes():
            return DEFAULT_DENSITY
        return self.density

    def identity(self) -> dict[str, Any]:
        """Return what decides the context's keys and values; a density left out is the one that it stands for."""
        return {**super().identity(), "density": self.target_density}

    def validate(self) -> None:
        """Check the density, and that it is the only budget.

        Raises:
            ConfigError: If it is no share, or sizes are given beside it.
        """
        super().validate()
        if self.density is None:
            return
        check_share(self.key("density"), self.density)
        sizes = self._given_sizes()
        if sizes:
            given = " and ".join(f"{self.key(name)}={getattr(self, name)!r}" for name in sizes)
            raise ConfigError(
                f"{self.key('density')}={self.density!r} and {given} are both given, but a pattern has one budget. "
                f"Allowed: a density, or a size of its own ({', '.join(self.size_fields)}). "
                f"Write for example only {self.key('density')}={self.density!r}"
            )

    def _given_sizes(self) -> list[str]:
        return [name for name in self.size_fields if getattr(self, name) is not None]
