"""SOCKET: top-k by soft collisions in hash tables, times the norms of the values.

Based on "SOCKET: SOft Collision Kernel EsTimator for Sparse Attention" (Joshi et al. 2026, arXiv 2602.06283;
github.com/amarka8/SOCKET). In each of L tables the sides of P random planes on which a key lies name its bucket. A
query is spread over all buckets of a table: with w_p the planes and h_p = tanh(q w_p) / sqrt(head_dim), the probability
of the bucket with the signs c is the softmax over all c of sum_p h_p c_p / tau, which is the product over the planes of
sigmoid(2 h_p c_p / tau). A key's score is the sum of the probabilities of its buckets, times the length of its value.

Deviations: each layer has planes of its own, which its heads share. Sinks and recent keys, which the authors always
keep, are not part of this masker: put `sink` and `local` before it. With `selection: group` and `group_score: mean` the
probabilities of a KV head's query heads are averaged before they are looked up.
State: buckets, one byte a table of a key (2 above 8 planes), and the length of its value, 4 bytes; built once for a
context, key by key behind it. Besides, a layer's planes (8 * P * L * head_dim bytes).
Bytes read per decoded token: all buckets and lengths, and the keys and values kept.

Buckets are computed in float64, so that no rounding decides on which side of a plane a key lies: those found key by key
equal those found at once.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, MutableMapping
from typing import Any

import torch

from sah.sparse_attention.kernels.lookup import lookup_sums
from sah.sparse_attention.key_state import KeyStateMasker
from sah.sparse_attention.maskers.base import KeyScoreMasker
from sah.sparse_attention.maskers.socket_config import SocketMaskerConfig
from sah.sparse_attention.randomness import generator_for
from sah.sparse_attention.shared import SharedStates, States

BLOCK_NUMBERS = 1 << 21
"""Projections, or probabilities, computed at once."""


class ValueNorms(KeyStateMasker):
    """The lengths of values, as a state of their own.

    Args:
        key: Name under which those behind the context are held.
    """

    def __init__(self, key: str) -> None:
        self.key = key

    def state_identity(self) -> Hashable:
        """Return a name that all maskers share; see `KeyStateMasker.state_identity`."""
        return "value_norms"

    def derive(self, keys: torch.Tensor, fitted: Any, layer_idx: int) -> torch.Tensor:
        """Return the lengths of values, (batch, kv_heads, n, 1), float32."""
        norms: torch.Tensor = torch.linalg.vector_norm(keys, dim=-1, keepdim=True, dtype=torch.float64)
        return norms.float()


class SocketMasker(KeyStateMasker, KeyScoreMasker):
    """Adds the residual keys with the largest soft collision scores times the lengths of their values."""

    config: SocketMaskerConfig
    works_in_lanes = True
    earlier_first = True

    def __init__(self, config: SocketMaskerConfig, key: str = "", seed: int = 0) -> None:
        super().__init__(config, key, seed)
        self._norms = ValueNorms(f"{self.key}.values")
        self._planes: dict[tuple[int, int, torch.device], torch.Tensor] = {}

    def state_identity(self) -> Hashable:
        """Return what buckets depend on; see `KeyStateMasker.state_identity`."""
        return (self.config.name, self.seed, self.config.planes, self.config.tables)

    def prepare_context(
        self,
        context_state: MutableMapping[Any, Any],
        keys: torch.Tensor,
        layer_idx: int,
        values: torch.Tensor | None = None,
    ) -> None:
        """Derive buckets and lengths of a context; without its values nothing is derived, and each question does."""
        if values is not None:
            super().prepare_context(context_state, keys, layer_idx)
            self._norms.prepare_context(context_state, values, layer_idx)

    @torch.no_grad()
    def derive(self, keys: torch.Tensor, fitted: Any, layer_idx: int) -> torch.Tensor:
        """Return the keys' buckets, (batch, kv_heads, n, tables), uint8, or int16 above 8 planes.

        One table's buckets of consecutive keys lie next to each other in memory.
        """
        bits, tables = self.config.planes, self.config.tables
        batch, heads, count, head_dim = keys.shape
        planes = self._planes_of(layer_idx, head_dim, keys.device)
        kind = torch.uint8 if bits <= 8 else torch.int16
        buckets = torch.zeros(batch, heads, tables, count, dtype=kind, device=keys.device)
        step = max(1, BLOCK_NUMBERS // (batch * heads * len(planes)))
        for start in range(0, count, step):
            piece = keys[:, :, start : start + step].double()
            sides = (planes @ piece.mT >= 0).view(batch, heads, bits, tables, -1)
            for bit in range(bits):
                buckets[..., start : start + step] += sides[:, :, bit].to(kind) << bit
        return buckets.mT

    @torch.no_grad()
    def scores(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        scaling: float,
        sparse_meta_data: dict[Any, Any],
        **kwargs: Any,
    ) -> torch.Tensor:
        """Score key by key over the signs of all planes; see `KeyScoreMasker.scores`.

        `value_states` among the keyword arguments holds the values, (batch, kv_heads, kv_len, value_dim).
        """
        batch, heads, q_len, head_dim = queries.shape
        kv_heads, kv_len = keys.shape[1:3]
        planes = self._planes_of(kwargs["layer_idx"], head_dim, keys.device)
        planes = planes.view(self.config.planes, self.config.tables, head_dim)
        grouped = queries.double().reshape(batch, kv_heads, heads // kv_heads * q_len, head_dim)
        collisions = torch.zeros(*grouped.shape[:3], kv_len, dtype=torch.float64, device=keys.device)
        for table in range(self.config.tables):
            chance = torch.ones_like(collisions)
            for plane in planes[:, table]:
                sharpness = 2 * torch.tanh(grouped @ plane) / (math.sqrt(head_dim) * self.config.tau)
                signs = torch.where(keys.double() @ plane >= 0, 1.0, -1.0)
                chance *= torch.sigmoid(sharpness.unsqueeze(-1) * signs.unsqueeze(-2))
            collisions += chance
        norms = self._norms.derive(kwargs["value_states"], None, kwargs["layer_idx"])
        return (collisions.float() * norms.mT).view(batch, heads, q_len, kv_len)

    @torch.no_grad()
    def fast_scores(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        scaling: float,
        sparse_meta_data: dict[Any, Any],
        **kwargs: Any,
    ) -> torch.Tensor:
        """Look the buckets held up in the queries' probabilities; plain twin: `scores`."""
        batch, heads, q_len, head_dim = queries.shape
        grouped = queries.reshape(batch, keys.shape[1], -1, 1, head_dim)
        scores = self._of_state(grouped, keys, sparse_meta_data, **kwargs)
        return scores.view(batch, heads, q_len, -1)

    @torch.no_grad()
    def group_scores(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        attention_mask: torch.Tensor,
        scaling: float,
        sparse_meta_data: dict[Any, Any],
        **kwargs: Any,
    ) -> torch.Tensor:
        """Score for every KV head; a mean is looked up once, in mean probabilities."""
        if self.config.group_score != "mean":
            return super().group_scores(queries, keys, attention_mask, scaling, sparse_meta_data, **kwargs)
        batch, heads, q_len, head_dim = queries.shape
        grouped = queries.reshape(batch, keys.shape[1], -1, q_len, head_dim).transpose(2, 3)
        return self._of_state(grouped, keys, sparse_meta_data, **kwargs)

    def _of_state(
        self, queries: torch.Tensor, keys: States, sparse_meta_data: dict[Any, Any], **kwargs: Any
    ) -> torch.Tensor:
        """Score keys by the state held.

        Args:
            queries: (batch, kv_heads, rows, m, head_dim); a row's score is the mean over its m queries.
            keys: The keys.
            sparse_meta_data: State of the question at hand.
            **kwargs: `layer_idx` and `value_states`.

        Returns:
            (batch, kv_heads, rows, kv_len), float32.
        """
        batch, kv_heads, rows, together, _ = queries.shape
        layer_idx, values = kwargs["layer_idx"], kwargs["value_states"]
        buckets = _held(self, keys, sparse_meta_data, layer_idx)
        norms = _held(self._norms, values, sparse_meta_data, layer_idx)
        scores = torch.empty(batch, kv_heads, rows, keys.shape[2], device=queries.device)
        step = max(1, BLOCK_NUMBERS // (batch * kv_heads * together * self.config.tables * 2**self.config.planes))
        for start in range(0, rows, step):
            block = scores[:, :, start : start + step]
            tables = self.probabilities(queries[:, :, start : start + step], layer_idx).mean(3)
            place = 0
            for part, lengths in zip(buckets, norms, strict=True):
                stop = place + part.shape[2]
                torch.mul(lookup_sums(part, tables), lengths.mT, out=block[..., place:stop])
                place = stop
        return scores

    def probabilities(self, queries: torch.Tensor, layer_idx: int) -> torch.Tensor:
        """Spread queries over the buckets of every table.

        Args:
            queries: (..., head_dim).
            layer_idx: The layer, which has planes of its own.

        Returns:
            (..., tables, 2 ** planes), float32; each table's sum up to 1.
        """
        head_dim = queries.shape[-1]
        planes = self._planes_of(layer_idx, head_dim, queries.device)
        projected = queries.double() @ planes.mT
        projected = projected.view(*projected.shape[:-1], self.config.planes, self.config.tables)
        sharpness = (2 * torch.tanh(projected) / (math.sqrt(head_dim) * self.config.tau)).float()
        above, below = torch.sigmoid(sharpness).unsqueeze(-1), torch.sigmoid(-sharpness).unsqueeze(-1)
        spread = torch.ones_like(above[..., 0, :, :])
        for plane in range(self.config.planes):
            spread = torch.cat([spread * below[..., plane, :, :], spread * above[..., plane, :, :]], dim=-1)
        return spread

    def _planes_of(self, layer_idx: int, head_dim: int, device: torch.device) -> torch.Tensor:
        """Return a layer's planes, (planes * tables, head_dim), float64; drawn once."""
        name = (layer_idx, head_dim, device)
        if name not in self._planes:
            generator = generator_for(self.seed, self.config.name, layer_idx)
            shape = (self.config.planes * self.config.tables, head_dim)
            self._planes[name] = torch.randn(shape, generator=generator, dtype=torch.float64).to(device)
        return self._planes[name]


def _held(
    masker: KeyStateMasker, states: States, sparse_meta_data: dict[Any, Any], layer_idx: int
) -> list[torch.Tensor]:
    """Return what is held of keys or values, (batch or rows or 1, kv_heads, n, width), in order."""
    if isinstance(states, SharedStates):
        context, own = masker.lane_state(states, sparse_meta_data, layer_idx)
        return [context.units, states.with_states(context.units, own).own_rows()]
    return masker.key_state(states, sparse_meta_data, layer_idx, 1)[1]
