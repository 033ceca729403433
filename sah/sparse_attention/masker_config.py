"""Bases of the maskers' configs. Imports no torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar

from sah.config.base import ValidatedConfig
from sah.config.values import check_share, check_size
from sah.errors import ConfigError, bad_value
from sah.sparse_attention.layers import LayerSet, parse_layers

HEAD, GROUP = SELECTIONS = ("head", "group")
GROUP_SCORES = ("mean", "max", "softmax_mean")


@dataclass
class MaskerConfig(ValidatedConfig):
    """Base of every masker's config.

    A subclass sets `name`, the word of the command line (`masker=<name>`), and `masker`, the dotted path of the class
    that it configures. The path keeps torch out of the config's module.
    """

    name: ClassVar[str] = ""
    masker: ClassVar[str] = ""
    is_sampler: ClassVar[bool] = False

    is_pattern: ClassVar[bool] = False
    """Whether the keys follow from positions alone, whatever is kept already."""

    observes: ClassVar[str] = ""
    """What the method sees of a context's prefill: nothing, the `window` of its last queries, or the `mass` of all
    attention, which a sparse prefill does not have."""

    layers: int | str | list[int] | None = field(default=None, kw_only=True)
    """Layers that this masker works in: `[0, 16]`, `"0-1"`, `"2-"`; None means all. A layer's recipe is made of the
    maskers that work in it."""

    @property
    def layer_set(self) -> LayerSet:
        """The layers that this masker works in."""
        return parse_layers(self.key("layers"), self.layers)

    @property
    def keeps_per_head(self) -> bool:
        """Whether the query heads of one KV head may keep different keys."""
        return False

    @property
    def evicts(self) -> bool:
        """Whether a key that is not kept is never kept again, so that a cache need not hold it."""
        return False

    def choosing_bytes(self, head_dim: int, itemsize: int) -> float:
        """Tell what is read to choose keys, beside the keys and values that are kept.

        Args:
            head_dim: Entries of a key.
            itemsize: Bytes of an entry.

        Returns:
            Bytes a key and KV head, for one decoded token. Entries of fewer bits count as if they were packed.
        """
        return 0.0

    def identity(self) -> dict[str, Any]:
        """Return what decides the keys that this masker keeps, as plain data."""
        return dataclasses.asdict(self)

    def validate(self) -> None:
        """Check the layers.

        Raises:
            ConfigError: If they name no layers.
        """
        super().validate()
        parse_layers(self.key("layers"), self.layers)

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
class SelectiveMaskerConfig(MaskerConfig):
    """A masker that chooses keys for every query head, or one set for all query heads of a KV head."""

    selection: str = field(default=HEAD, kw_only=True)
    """`head`: each query head its own keys. `group`: one set a KV head, which reads each key once for all its heads."""

    @property
    def keeps_per_head(self) -> bool:
        """Whether the query heads of one KV head may keep different keys."""
        return self.selection == HEAD

    def validate(self) -> None:
        """Check the selection.

        Raises:
            ConfigError: If it is none.
        """
        super().validate()
        if self.selection not in SELECTIONS:
            key = self.key("selection")
            raise bad_value(key, self.selection, ", ".join(SELECTIONS), f"{key}={GROUP}")


@dataclass
class ScoredMaskerConfig(SelectiveMaskerConfig, BudgetedMaskerConfig):
    """A masker that scores keys and keeps the best ones."""

    size_field: ClassVar[str] = "heavy_size"

    heavy_size: int | float | None = None
    """Keys to add to what earlier maskers keep: an int is a number of keys, a float a share of the allowed ones."""

    group_score: str = field(default="mean", kw_only=True)
    """How `selection: group` combines the scores of a KV head's query heads: `mean`, `max`, or `softmax_mean` (the mean
    of each head's softmax over the scores)."""

    def identity(self) -> dict[str, Any]:
        """Return the values; how a group's scores combine counts only where there are groups."""
        values = super().identity()
        return values if self.selection == GROUP else {k: v for k, v in values.items() if k != "group_score"}

    def validate(self) -> None:
        """Check the way of combining scores.

        Raises:
            ConfigError: If it is none.
        """
        super().validate()
        if self.group_score not in GROUP_SCORES:
            key = self.key("group_score")
            raise bad_value(key, self.group_score, ", ".join(GROUP_SCORES), f"{key}=mean")


def check_label_bits(key: str, value: int | None) -> None:
    """Check the bits that labels are rounded to.

    Args:
        key: The config key, for the message.
        value: The value as given.

    Raises:
        ConfigError: If it is neither None nor 1 to 16.
    """
    if value is not None and not (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 16):
        raise bad_value(key, value, "a whole number from 1 to 16, or null for no rounding", f"{key}=8")


def label_bytes(bits: int | None, itemsize: int) -> float:
    """Return the bytes of a label's entry, packed; without rounding it has the keys' own type."""
    return itemsize if bits is None else bits / 8
