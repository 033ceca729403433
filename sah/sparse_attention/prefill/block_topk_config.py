"""Config of the best blocks of keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from sah.config.values import check_count, check_share
from sah.errors import ConfigError, bad_value
from sah.sparse_attention.prefill.budget_config import BudgetedPrefillConfig

MEAN_POOL, ANTIDIAGONAL = ESTIMATORS = ("mean_pool", "antidiagonal")
HEAD, GROUP = SELECTIONS = ("head", "group")

DEFAULT_STRIDE = 16


@dataclass
class BlockTopKConfig(BudgetedPrefillConfig):
    """Every block of queries reads the blocks of keys that an estimate of its attention puts first.

    The first block of keys and the queries' own are always read.
    """

    name: ClassVar[str] = "block_topk"
    pattern: ClassVar[str] = "sah.sparse_attention.prefill.block_topk.BlockTopKPrefill"
    size_fields: ClassVar[tuple[str, ...]] = ("blocks", "coverage")

    blocks: int | None = None
    """Blocks of keys that every block of queries reads, at least 2: the first and its own are among them."""

    coverage: float | None = None
    """Share of the estimated attention that the blocks hold together, for each block of queries and head: XAttention's
    threshold (arXiv 2503.16428), akin to FlexPrefill's gamma (arXiv 2502.20766). The density follows from the text."""

    estimator: str = MEAN_POOL
    """`mean_pool`: products of mean queries and mean keys of blocks (arXiv 2407.02490). `antidiagonal`: sums of scores
    along antidiagonals (arXiv 2503.16428)."""

    stride: int | None = None
    """Of `antidiagonal` alone: one score in so many is computed, 16 where nothing is given. Smaller finds single keys
    better and takes longer."""

    block_size: int = 64
    """Queries and keys of a block. The papers have 64 or 128; the smaller one meets a density in shorter contexts."""

    selection: str = HEAD
    """`head`: each query head its own blocks. `group`: one set a KV head, by the mean of its heads' estimates."""

    @property
    def score_stride(self) -> int:
        """The stride that `antidiagonal` takes."""
        return DEFAULT_STRIDE if self.stride is None else self.stride

    def identity(self) -> dict[str, Any]:
        """Return the values, the stride as it is taken where it is read."""
        return {**super().identity(), "stride": self.score_stride if self.estimator == ANTIDIAGONAL else None}

    def validate(self) -> None:
        """Check budget, estimator, block and selection.

        Raises:
            ConfigError: If one cannot be used, or two budgets are given.
        """
        super().validate()
        if self.blocks is not None and self.coverage is not None:
            raise ConfigError(
                f"{self.key('blocks')}={self.blocks!r} and {self.key('coverage')}={self.coverage!r} are both given, "
                f"but a pattern has one budget. Write for example only {self.key('blocks')}={self.blocks!r}"
            )
        if self.blocks is not None:
            check_count(self.key("blocks"), self.blocks, minimum=2)
        if self.coverage is not None:
            check_share(self.key("coverage"), self.coverage)
        check_count(self.key("block_size"), self.block_size, minimum=1)
        if self.stride is not None:
            check_count(self.key("stride"), self.stride, minimum=1)
        for name, allowed in (("estimator", ESTIMATORS), ("selection", SELECTIONS)):
            value, key = getattr(self, name), self.key(name)
            if value not in allowed:
                raise bad_value(key, value, ", ".join(allowed), f"{key}={allowed[0]}")
        key = self.key("stride")
        if self.estimator != ANTIDIAGONAL and self.stride is not None:
            where = f"null, since {self.key('estimator')}={self.estimator} reads no stride"
            raise bad_value(key, self.stride, where, f"{self.key('estimator')}={ANTIDIAGONAL} {key}={self.stride}")
        if self.estimator == ANTIDIAGONAL and self.block_size % self.score_stride:
            allowed_strides = f"a divisor of {self.key('block_size')}={self.block_size}"
            raise bad_value(key, self.stride, allowed_strides, f"{key}={self.block_size // 8 or 1}")
