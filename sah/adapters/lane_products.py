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
from sah.sparse_attention.kernels.shared import grouped_output
from sah.sparse_attention.kernels.workspace import Workspace
from sah.sparse_attention.shared import Deferred, SharedStates
from sah.sparse_attention.times import now

MOST_NUMBERS = 1 << 23
"""Logits of all rows that are held at once, and as many weights; beyond it every setting computes its own. A question's
chunk has rows enough in each setting for a fast product."""


class CommonProducts:
    """The products of one layer in one call.

    Args:
        everyone: All rows of the call.
        groups: The same rows by setting.
        layer: Keys and values.
        queries: (rows, heads, 1, head_dim).
        scaling: Factor of the dot products.
        layer_idx: The layer.
        workspace: Buffers for the products; the last call's are overwritten.
    """

    def __init__(
        self,
        everyone: LaneRows,
        groups: Sequence[LaneRows],
        layer: LaneLayer,
        queries: torch.Tensor,
        scaling: float,
        layer_idx: int,
        workspace: Workspace,
    ) -> None:
        self._layer = layer
        self._queries = queries
        self._layer_idx = layer_idx
        heads, kv_heads = queries.shape[1], layer.context[0].shape[1]
        kv_len = layer.context[0].shape[2] + everyone.used
        asking = [group for group in groups if layer_idx in group.setting.wide]
        together = len(asking) > 1 and len(queries) * heads * kv_len <= MOST_NUMBERS
        self._asking = asking if together else []
        self._logits: dict[int, torch.Tensor] = {}
        self._deferred: dict[int, Deferred] = {}
        if not together:
            return
        begun = now(queries.device)[0]
        rows = torch.cat([torch.arange(group.rows.start, group.rows.stop) for group in asking])
        self._rows = rows.to(queries.device)
        self._values = everyone.states(layer, 1, queries.device).of_rows(self._rows)
        keys = everyone.states(layer, 0, queries.device).of_rows(self._rows)
        logits = attention_logits(queries[self._rows], keys, scaling)
        # KV heads apart, so that the product with the values needs no copy.
        shape = (kv_heads, len(rows), heads // kv_heads, kv_len)
        self._weights = workspace.take("weights", shape, torch.float32, queries.device).transpose(0, 1)
        sizes = [len(group.lanes) for group in asking]
        pieces = zip(asking, torch.split(logits, sizes), torch.split(self._weights, sizes), strict=True)
        for group, mine, weights in pieces:
            self._logits[group.rows.start] = mine
            self._deferred[group.rows.start] = Deferred(weights)
        self._add_seconds(now(queries.device)[0] - begun)

    def states(self, group: LaneRows) -> tuple[SharedStates, SharedStates]:
        """Return keys and values as a setting's rows see them, with what is known of them."""
        device = self._queries.device
        keys, values = (group.states(self._layer, which, device) for which in (0, 1))
        first = group.rows.start
        if first not in self._logits:
            return keys, values
        keys.known.put(self._queries[group.rows], self._logits[first])
        return keys, values.deferring(self._deferred[first])

    def remember(self, group: LaneRows, keys: SharedStates) -> None:
        """Note whether a setting asked for all logits, so that the next call has them ready."""
        wide = group.setting.wide
        if keys.known.asked:
            wide.add(self._layer_idx)
        else:
            wide.discard(self._layer_idx)

    def add_deferred(self, output: torch.Tensor) -> None:
        """Add what the weights that were left give to the output of all rows, (rows, heads, value_dim)."""
        if not any(deferred.written for deferred in self._deferred.values()):
            return
        begun = now(self._queries.device)[0]
        for deferred in self._deferred.values():
            if not deferred.written:
                deferred.weights.zero_()
        output[self._rows] += grouped_output(self._weights, self._values).flatten(1, 2)
        self._add_seconds(now(self._queries.device)[0] - begun)

    def _add_seconds(self, seconds: float) -> None:
        total = sum(len(group.lanes) for group in self._asking)
        for group in self._asking:
            group.setting.seconds.add(group.lanes, 0.0, seconds * len(group.lanes) / total)
