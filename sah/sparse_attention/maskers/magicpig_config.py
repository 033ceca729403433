"""Config of MagicPIG's hash sampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sah.config.values import check_count
from sah.errors import bad_value
from sah.sparse_attention.masker_config import MaskerConfig

MOST_BITS = 63
"""Most bits of a signature: what a signed 64-bit integer holds."""


@dataclass
class MagicPigConfig(MaskerConfig):
    """Keeps the keys that hash as the query does, and weighs them by 1/p (arXiv 2410.16179).

    How many keys that is follows from the angles between queries and keys; there is no budget to set. Each query head
    keeps keys of its own, and there is no form with one set a KV head.
    """

    name: ClassVar[str] = "magicpig"
    masker: ClassVar[str] = "sah.sparse_attention.maskers.magicpig.MagicPig"
    is_sampler: ClassVar[bool] = True

    lsh_l: int = 150
    """Hash tables (L). 150 with `lsh_k` of 10 is what the paper's own code runs with by default."""

    lsh_k: int = 10
    """Bits of a signature (K), 1 to 63; each is the side of a random hyperplane that a key lies on."""

    min_matches: int = 2
    """Tables in which a key's signature must equal the query's. The paper requires 2."""

    center: bool = True
    """Whether the context's mean key is taken from every key before it is hashed, as the paper does."""

    @property
    def keeps_per_head(self) -> bool:
        """Whether the query heads of one KV head may keep different keys; they always may."""
        return True

    def choosing_bytes(self, head_dim: int, itemsize: int) -> float:
        """Tell what is read to choose keys: their signatures, an integer a table."""
        return self.lsh_l * (2 if self.lsh_k <= 15 else 4 if self.lsh_k <= 31 else 8)

    def validate(self) -> None:
        """Check tables, bits and matches.

        Raises:
            ConfigError: If one of them cannot be used, or more matches are asked for than there are tables.
        """
        super().validate()
        check_count(self.key("lsh_l"), self.lsh_l, minimum=1)
        key = self.key("lsh_k")
        if check_count(key, self.lsh_k, minimum=1) > MOST_BITS:
            raise bad_value(key, self.lsh_k, f"a whole number from 1 to {MOST_BITS}", f"{key}=10")
        key = self.key("min_matches")
        if check_count(key, self.min_matches, minimum=1) > self.lsh_l:
            allowed = f"a whole number from 1 to the number of tables, {self.key('lsh_l')}={self.lsh_l}"
            raise bad_value(key, self.min_matches, allowed, f"{key}=1")
        if not isinstance(self.center, bool):
            raise bad_value(self.key("center"), self.center, "true or false", f"{self.key('center')}=true")
