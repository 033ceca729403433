"""Products over a context that several settings of one call need: computed once for all their rows.

A setting that reads all keys anyway (to score them, or because it keeps many) needs two products with the context: its
queries with the keys, its weights with the values. Taken for the rows of all such settings together they are two larger
products instead of many small ones, several times faster on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sah.adapters.lane_cache import LaneLayer
from sah.adapters.lane_rows import LaneRows
from sah.sparse_attention.kernels.scores import attention_logits
from sah.sparse_attention.kernels.shared import shared_output
from sah.sparse_attention.shared import Deferred, SharedStates
from sah.sparse_attention.times import now

MOST_NUMBERS = 1 << 23
"""Logits of all rows that are held at once; beyond it every setting computes its own. A question's chunk has rows
enough in each setting for a fast product."""


class CommonProducts:
    """The products of one layer in one call.

    Args:
        everyone: All rows of the call.
        groups: The same rows by setting.
        layer: Keys and values.
        queries: (rows, heads, 1, head_dim).
        scaling: Factor of the dot products.
        layer_idx: The layer.
    """

    def __init__(
        self,
        everyone: LaneRows,
        groups: Sequence[LaneRows],
        layer: LaneLayer,
        queries: torch.Tensor,
        scaling: float,
        layer_idx: int,
    ) -> None:
        self._everyone = everyone
        self._layer = layer
        self._queries = queries
        self._scaling = scaling
        self._layer_idx = layer_idx
        rows, heads = queries.shape[:2]
        asking = [group for group in groups if layer_idx in group.setting.wide]
        kv_len = layer.context[0].shape[2] + everyone.used
        self._asking = asking if len(asking) > 1 and rows * heads * kv_len <= MOST_NUMBERS else []
        self._logits: dict[int, torch.Tensor] = {}
        self._weights: torch.Tensor | None = None
        self._deferred: list[Deferred] = []
        if self._asking:
            begun = now(queries.device)[0]
            self._multiply_keys()
            self._weights = torch.zeros(rows, heads, 1, kv_len, device=queries.device)
            self._add_seconds(now(queries.device)[0] - begun)

    def states(self, group: LaneRows) -> tuple[SharedStates, SharedStates]:
        """Return keys and values as a setting's rows see them, with what is known of them."""
        device = self._queries.device
        keys, values = (group.states(self._layer, which, device) for which in (0, 1))
        if self._weights is None or not any(group is one for one in self._asking):
            return keys, values
        keys.known.put(self._queries[group.rows], self._logits[group.rows.start])
        self._deferred.append(Deferred(self._weights[group.rows]))
        return keys, values.deferring(self._deferred[-1])

    def remember(self, group: LaneRows, keys: SharedStates) -> None:
        """Note whether a setting asked for all logits, so that the next call has them ready."""
        wide = group.setting.wide
        if keys.known.asked:
            wide.add(self._layer_idx)
        else:
            wide.discard(self._layer_idx)

    def deferred_output(self) -> torch.Tensor | float:
        """Return what the weights that were left give, (rows, heads, value_dim), or 0 if there are none."""
        if self._weights is None or not any(deferred.written for deferred in self._deferred):
            return 0.0
        begun = now(self._queries.device)[0]
        values = self._everyone.states(self._layer, 1, self._queries.device)
        output = shared_output(self._weights, values).squeeze(2)
        self._add_seconds(now(self._queries.device)[0] - begun)
        return output

    def _multiply_keys(self) -> None:
        keys = self._everyone.states(self._layer, 0, self._queries.device)
        rows = torch.cat([torch.arange(group.rows.start, group.rows.stop) for group in self._asking])
        rows = rows.to(self._queries.device)
        logits = attention_logits(self._queries[rows], keys.of_rows(rows), self._scaling)
        sizes = [group.rows.stop - group.rows.start for group in self._asking]
        for group, mine in zip(self._asking, torch.split(logits, sizes), strict=True):
            self._logits[group.rows.start] = mine

    def _add_seconds(self, seconds: float) -> None:
        total = sum(len(group.lanes) for group in self._asking)
        for group in self._asking:
            group.setting.seconds.add(group.lanes, 0.0, seconds * len(group.lanes) / total)
