"""Configs of sparse attention and of the maskers in its recipe. Imports no torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar

from sah.config.base import ValidatedConfig
from sah.config.values import check_count, check_share, check_size
from sah.errors import ConfigError


@dataclass
class MaskerConfig(ValidatedConfig):
    """Base of every masker's config.

    A subclass sets `name`, the word of the command line (`masker=<name>`), and `masker`, the dotted path of the class
    that it configures. The path keeps torch out of the config's module.
    """

    name: ClassVar[str] = ""
    masker: ClassVar[str] = ""
    is_sampler: ClassVar[bool] = False

    def key(self, field_name: str) -> str:
        """Return the config key of a field, for messages."""
        return f"masker.{self.name}.{field_name}"

    def reads_density(self) -> bool:
        """Tell whether this masker has no budget of its own yet and waits for the top-level density."""
        return False

    def has_density(self) -> bool:
        """Tell whether this masker's budget is a density of the whole mask."""
        return False

    def with_density(self, density: float) -> MaskerConfig:
        """Return the config with the top-level density filled in where it is read; others return themselves."""
        return self


@dataclass
class BudgetedMaskerConfig(MaskerConfig):
    """A masker with a budget: either `density`, a target for the whole mask, or a size of its own.

    A subclass names its size field in `size_field`. Both given is an error; neither given means that the top-level
    density is filled in before the masker is built.
    """

    size_field: ClassVar[str] = ""

    density: float | None = None

    def reads_density(self) -> bool:
        """Tell whether neither a density nor an own size was given."""
        return self.density is None and getattr(self, self.size_field) is None

    def has_density(self) -> bool:
        """Tell whether the budget is a density of the whole mask."""
        return self.density is not None

    def with_density(self, density: float) -> MaskerConfig:
        """Return a copy with `density` set if this masker reads it, else itself."""
        return dataclasses.replace(self, density=density) if self.reads_density() else self

    def validate(self) -> None:
        """Check the two budgets.

        Raises:
            ConfigError: If both are given, or one of them cannot be used.
        """
        super().validate()
        size = getattr(self, self.size_field)
        if self.density is not None and size is not None:
            raise ConfigError(
                f"{self.key('density')}={self.density!r} and {self.key(self.size_field)}={size!r} are both given, but "
                f"a masker has one budget. Allowed: a density (a target for the whole mask) or {self.size_field} "
                f"(what this masker adds). Write for example only {self.key(self.size_field)}={size!r}"
            )
        if self.density is not None:
            check_share(self.key("density"), self.density)
        if size is not None:
            check_size(self.key(self.size_field), size)


@dataclass
class SparseAttentionConfig(ValidatedConfig):
    """Base of the configs that `SparseAttention.create_from_config` accepts.

    `attention` is the dotted path of the class that the config builds.
    """

    attention: ClassVar[str] = ""


@dataclass
class MaskedAttentionConfig(SparseAttentionConfig):
    """A recipe of maskers, applied in order, each adding to what the ones before it keep."""

    masker_configs: list[MaskerConfig] = field(default_factory=list)
    """The recipe. A masker that reads the top-level density must have it filled in before."""

    seed: int = 0
    """Seed of every random choice; the layer, the step and the lane's own identity are mixed in."""

    def validate(self) -> None:
        """Check the recipe as a whole.

        Raises:
            ConfigError: If it is empty, a budget is missing, two maskers read a density, or two are samplers.
        """
        super().validate()
        check_count("seed", self.seed)
        check_recipe(self.masker_configs)


@dataclass
class ResearchAttentionConfig(MaskedAttentionConfig):
    """The plain masked form: differentiable, readable, the twin that tests trust."""

    attention: ClassVar[str] = "sah.sparse_attention.research.ResearchAttention"


@dataclass
class EfficientAttentionConfig(MaskedAttentionConfig):
    """The form that reads at decode only what the mask keeps."""

    attention: ClassVar[str] = "sah.sparse_attention.efficient.EfficientAttention"


def check_recipe(masker_configs: list[MaskerConfig]) -> None:
    """Check that a list of masker configs makes one runnable recipe.

    Args:
        masker_configs: The recipe in its order.

    Raises:
        ConfigError: If it is empty, a budget is missing, two maskers read a density, or two are samplers.
    """
    if not masker_configs:
        raise ConfigError(
            "The recipe has no masker left. An empty recipe would keep nothing; dense is asked for by name. "
            "Write masker=dense for the dense baseline, or name at least one masker, e.g. masker=topk"
        )
    for config in masker_configs:
        if not isinstance(config, MaskerConfig):
            raise ConfigError(
                f"A recipe holds masker configs, but got {config!r}. Write e.g. TopKMaskerConfig(density=0.1)"
            )
        if config.reads_density():
            raise ConfigError(
                f"masker.{config.name} has no budget. Allowed: a density or a size of its own. "
                f"Write for example {config.key('density')}=0.1"
            )
    for what, chosen, instead in (
        ("density", [c for c in masker_configs if c.has_density()], "give all but one a size of its own"),
        ("sampling", [c for c in masker_configs if c.is_sampler], "keep one sampler"),
    ):
        if len(chosen) > 1:
            names = ", ".join(c.name for c in chosen)
            detail = (
                "a density is a target for the whole mask, so only one masker can follow it"
                if what == "density"
                else "the inclusion probabilities of two independent samples do not combine"
            )
            raise ConfigError(
                f"The recipe has {len(chosen)} {what} maskers ({names}), but {detail}. Instead, {instead}."
            )
