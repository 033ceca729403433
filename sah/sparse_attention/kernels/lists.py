"""Attention of one query a row over a mask in list form. Plain twin: `kernels/masked.py`.

Only what the lists name is read: ranges as slices, runs of keys whole, single keys row by row. KV heads are worked off
in tiles, so that the gathered rows stay in the processor's cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sah.sparse_attention.kernels.gather import gather_rows
from sah.sparse_attention.kernels.scores import cap_logits, few_by_many, group_size
from sah.sparse_attention.kernels.workspace import Workspace
from sah.sparse_attention.key_lists import KeyLists, Spans

TILE_BYTES = 4 << 20
"""Most bytes of keys that are gathered at once, unless one KV head needs more."""


@dataclass(frozen=True)
class _Part:
    """A list brought into the form (batch, kv_heads, rows, n), rows being 1 for a KV head's list, else its heads."""

    indices: torch.Tensor

    surprise: torch.Tensor | None
    """Minus the logarithm of the inclusion probability, minus infinity for unused places. Added to the logits it
    divides each exponential by its key's probability. None where every place is certain."""

    logits: torch.Tensor | None
    run: int
    states: tuple[torch.Tensor, torch.Tensor] | None


def attend_lists(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    spans: Spans,
    lists: tuple[KeyLists, ...],
    scaling: float,
    workspace: Workspace,
    *,
    sinks: torch.Tensor | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Attend over ranges and lists.

    Args:
        queries: (batch, heads, 1, head_dim).
        keys: (batch, kv_heads, kv_len, head_dim).
        values: (batch, kv_heads, kv_len, value_dim).
        spans: Ranges that all queries read.
        lists: Further keys, none of them twice.
        scaling: Factor of the dot products.
        workspace: Buffers for gathered rows.
        sinks: Learned sink logit of each head, (heads,), or None.
        softcap: The model's cap on its logits, or None.

    Returns:
        (batch, heads, 1, value_dim) in the queries' dtype. Sums are taken in float32.
    """
    batch, heads, _, head_dim = queries.shape
    kv_heads, group = keys.shape[1], group_size(queries, keys)
    grouped = queries.view(batch, kv_heads, group, head_dim).float() * scaling
    parts = [_grouped(part, batch, kv_heads, group) for part in lists]
    output = torch.empty(batch, kv_heads, group, values.shape[-1], device=queries.device)
    certain = all(part.surprise is None for part in parts)
    sink_rows = None if sinks is None else sinks.view(kv_heads, group)
    for rows, chosen in _tiles(keys, spans, parts):
        tile = _Tile(keys[rows, chosen], values[rows, chosen], workspace)
        mine = [_slice(part, rows, chosen) for part in parts]
        query = grouped[rows, chosen]
        logits = tile.logits(query, spans, mine, softcap)
        if sink_rows is not None:
            logits.append(sink_rows[chosen].float()[None, :, :, None].expand(*query.shape[:3], 1))
        whole = torch.cat(logits, -1)
        weights = torch.softmax(whole, dim=-1)
        if not certain:
            # A padded query reads nothing, and its softmax is undefined.
            weights.masked_fill_(whole.amax(-1, keepdim=True) == float("-inf"), 0.0)
        output[rows, chosen] = tile.output(weights, spans, mine)
    return output.view(batch, heads, 1, -1).to(queries.dtype)


class _Tile:
    """Keys and values of some KV heads, (rows, kv_heads, kv_len, dim)."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, workspace: Workspace) -> None:
        self.keys = keys
        self.values = values
        self.workspace = workspace

    def logits(
        self, query: torch.Tensor, spans: Spans, parts: list[_Part], softcap: float | None
    ) -> list[torch.Tensor]:
        """Return logits (rows, kv_heads, group, n) piece by piece; the query (rows, kv_heads, group, dim) is scaled."""
        pieces = [cap_logits(few_by_many(query, self._float(self.keys[:, :, a:b])), softcap) for a, b in spans]
        for part in parts:
            if part.logits is not None:
                logits = part.logits
            elif part.indices.shape[2] == 1:
                logits = few_by_many(query, self._rows(0, part).squeeze(2))
            else:
                logits = torch.einsum("bghd,bghnd->bghn", query, self._rows(0, part))
            logits = cap_logits(logits, softcap)
            pieces.append(logits if part.surprise is None else logits + part.surprise)
        return pieces

    def output(self, weights: torch.Tensor, spans: Spans, parts: list[_Part]) -> torch.Tensor:
        """Return the weighted sum of values, (rows, kv_heads, group, value_dim)."""
        total = torch.zeros(*weights.shape[:-1], self.values.shape[-1], device=weights.device)
        place = 0
        for a, b in spans:
            total += weights[..., place : place + b - a] @ self._float(self.values[:, :, a:b])
            place += b - a
        for part in parts:
            length = part.indices.shape[-1] * part.run
            mine = weights[..., place : place + length]
            place += length
            rows = self._rows(1, part)
            total += mine @ rows.squeeze(2) if rows.shape[2] == 1 else (mine.unsqueeze(3) @ rows).squeeze(3)
        return total

    def _rows(self, which: int, part: _Part) -> torch.Tensor:
        """Read the keys (0) or values (1) of a part, (rows, kv_heads, lists, n, dim) in float32."""
        if part.states is not None:
            return self._float(part.states[which]).unsqueeze(2)
        states = (self.keys, self.values)[which]
        lists = part.indices.shape[2]
        rows = gather_rows(states, part.indices.flatten(1, 2), part.run, workspace=self.workspace)
        return self._float(rows).view(*states.shape[:2], lists, -1, states.shape[-1])

    def _float(self, states: torch.Tensor) -> torch.Tensor:
        if states.dtype == torch.float32:
            return states
        return self.workspace.take("float", states.shape, torch.float32, states.device).copy_(states)


def _grouped(part: KeyLists, batch: int, kv_heads: int, group: int) -> _Part:
    per_head = part.indices.shape[1] == kv_heads * group and group > 1

    def shaped(tensor: torch.Tensor | None, rows: int) -> torch.Tensor | None:
        if tensor is None:
            return None
        lists = rows * kv_heads
        return tensor.squeeze(2).expand(batch, lists, -1).reshape(batch, kv_heads, rows, -1)

    rows = group if per_head else 1
    indices = shaped(part.indices, rows)
    if indices is None:
        raise ValueError("a list of keys has no indices")
    surprise = _surprise(shaped(part.probabilities, rows))
    return _Part(indices, surprise, shaped(part.logits, group), part.run, part.states)


def _surprise(probabilities: torch.Tensor | None) -> torch.Tensor | None:
    if probabilities is None:
        return None
    return torch.where(probabilities > 0, -probabilities.float().log(), float("-inf"))


def _slice(part: _Part, rows: slice, chosen: slice) -> _Part:
    cut = [None if t is None else t[rows, chosen] for t in (part.surprise, part.logits)]
    states = None if part.states is None else (part.states[0][rows, chosen], part.states[1][rows, chosen])
    return _Part(part.indices[rows, chosen], cut[0], cut[1], part.run, states)


def _tiles(keys: torch.Tensor, spans: Spans, parts: list[_Part]) -> list[tuple[slice, slice]]:
    """Cut the batch and the KV heads into pieces whose gathered keys fit a tile."""
    batch, kv_heads, _, dim = keys.shape
    read = [part for part in parts if part.states is None or part.states[0].dtype != torch.float32]
    gathered = sum(part.indices.shape[2] * part.indices.shape[3] * part.run for part in read)
    if keys.dtype != torch.float32:
        gathered += sum(b - a for a, b in spans)
    size = gathered * dim * 4
    if size * batch * kv_heads <= TILE_BYTES:
        return [(slice(0, batch), slice(0, kv_heads))]
    step = max(1, TILE_BYTES // size)
    return [
        (slice(row, row + 1), slice(first, first + step)) for row in range(batch) for first in range(0, kv_heads, step)
    ]
