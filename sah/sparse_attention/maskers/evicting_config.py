"""What the configs of evicting methods share."""

from __future__ import annotations

from dataclasses import dataclass, field

from sah.errors import bad_value
from sah.sparse_attention.masker_config import BudgetedMaskerConfig


@dataclass
class EvictingMaskerConfig(BudgetedMaskerConfig):
    """A method that throws keys away for good; the query heads of a KV head share what is left."""

    query_aware: bool = field(default=False, kw_only=True)
    """Whether the question's queries decide which keys of the context are left. If not, the context's own do."""

    @property
    def evicts(self) -> bool:
        """Whether a key that is not kept is never kept again."""
        return True

    def validate(self) -> None:
        """Check the switch.

        Raises:
            ConfigError: If it is none, or the budget cannot be used.
        """
        super().validate()
        if not isinstance(self.query_aware, bool):
            key = self.key("query_aware")
            raise bad_value(key, self.query_aware, "true or false", f"{key}=true")
