"""A-shape: the first keys and a window of recent ones, for every query.

The pattern of StreamingLLM (Xiao et al. 2023, arXiv 2309.17453) applied to the prompt; MInference (Jiang et al. 2024,
arXiv 2407.02490) calls it A-shape. Query at position p reads the keys before `sink_size` and those from
p - window_size + 1 to p, exactly: nothing is rounded to blocks. Under a density a query reads the largest number of
keys that keeps the whole call within it (fewer where so many do not stand before it), and the window is what the sinks
leave. The density falls short of its target by less than one key a query.
Deviations: none.
State: none. Nothing is estimated.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from sah.sparse_attention.kernels.block_rows import RowKeys, attend_rows
from sah.sparse_attention.prefill.a_shape_config import AShapeConfig
from sah.sparse_attention.prefill.base import PrefillPattern
from sah.sparse_attention.prefill.rows import Rows, allowed_pairs, size_in_keys, target_pairs

ROW_SIZE = 128
"""Queries that are computed together. They read the keys of all their windows, of which masks take the edges."""


class AShapePrefill(PrefillPattern):
    """Keeps sinks and a window."""

    config: AShapeConfig

    def keep(self, queries: torch.Tensor, keys: torch.Tensor, scaling: float) -> torch.Tensor:
        """Tell which keys each query reads; see `PrefillPattern.keep`."""
        (batch, heads, q_len), kv_len = queries.shape[:3], keys.shape[2]
        sinks, window = self.sizes(q_len, kv_len)
        key = torch.arange(kv_len, device=queries.device)
        position = torch.arange(kv_len - q_len, kv_len, device=queries.device)[:, None]
        kept = (key <= position) & ((key < sinks) | (key > position - window))
        return kept.expand(batch, heads, q_len, kv_len)

    def attend(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        scaling: float,
        *,
        sinks: torch.Tensor | None = None,
        softcap: float | None = None,
    ) -> tuple[torch.Tensor, float]:
        """Attend over sinks and windows; see `PrefillPattern.attend`."""
        (batch, heads, q_len), kv_len = queries.shape[:3], keys.shape[2]
        rows = self._row_keys(q_len, kv_len, queries.device)
        output, pairs = attend_rows(queries, keys, values, rows, scaling, sinks=sinks, softcap=softcap)
        return output, pairs / (batch * heads * allowed_pairs(q_len, kv_len))

    def sizes(self, q_len: int, kv_len: int) -> tuple[int, int]:
        """Return the number of sinks and the window in keys.

        Args:
            q_len: Queries of the call.
            kv_len: Keys of the call.

        Returns:
            Both sizes; the window is at least 1.
        """
        sinks = size_in_keys(self.config.sink_size, kv_len)
        if self.config.target_density is None:
            return sinks, max(1, size_in_keys(self.config.window_size or 0, kv_len))
        reach = _largest_reach(target_pairs(self.config.target_density, q_len, kv_len), q_len, kv_len)
        sinks = min(sinks, reach // 2)
        return sinks, reach - sinks

    def _row_keys(self, q_len: int, kv_len: int, device: torch.device) -> Iterator[RowKeys]:
        sinks, window = self.sizes(q_len, kv_len)
        everything = torch.arange(kv_len, device=device)
        rows = Rows(q_len, kv_len, ROW_SIZE)
        for row in rows:
            begin = max(0, row.first - window + 1)
            position = everything[row.first : row.last, None]
            band = everything[begin : row.last]
            tail = (band <= position) & ((band < sinks) | (band > position - window))
            # Sinks that stand in the band are its own, by the mask.
            listed = torch.cat([everything[: min(sinks, begin)], band])
            yield RowKeys(row.first - rows.offset, row.last - rows.offset, [listed], tail)


def _largest_reach(target: int, q_len: int, kv_len: int) -> int:
    """Return how many keys each query may read at most so that all together read no more than `target` pairs."""
    least, most = 1, kv_len
    while least < most:
        middle = (least + most + 1) // 2
        # Queries with fewer keys before them read all of these.
        short = max(0, min(q_len, middle - (kv_len - q_len)))
        pairs = allowed_pairs(short, kv_len - q_len + short) + (q_len - short) * middle
        least, most = (middle, most) if pairs <= target else (least, middle - 1)
    return least
