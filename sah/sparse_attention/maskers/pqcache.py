"""PQCache: top-k by product-quantised scores.

Based on "PQCache: Product Quantization-based KVCache for Long Context LLM Inference" (Zhang et al. 2024, arXiv
2407.12820; github.com/HugoZHL/PQCache). The keys of a context are cut into `subvectors` equal parts, and k-means finds
2 ** `bits` centroids for each part of each layer and KV head. A key's code names the nearest centroid of each of its
parts; its score is the dot product of the query with these centroids in place of the key. Keys behind the context are
encoded by the context's codebooks. `metric: inner_product` clusters parts that have one entry more, the root of what
their square lacks to the largest one: all are then of one length, and near ones have near products with any query.

Deviations: codebooks are learned from all of the context's keys (the authors' code leaves out its first and last ones,
which it always keeps), by a fixed number of steps at most; k-means starts from random keys, other ones for every layer,
KV head and part, and a cluster without keys takes the key farthest from its centroid. The keys always kept are not part
of this masker: put `sink` and `local` before it. The cache of keys on a GPU, and k-means beside the prefill, are left
out. The authors' code chooses by KV head, by the sum of its query heads' softmax over the scores: `selection: group`
with `group_score: softmax_mean`.
Of a context of at most 2 ** `bits` keys every key is its own centroid, and the scores of these are exact. Without any
context keys there is no codebook, and all keys score 0.
State: codes, one byte a part of a key, and the codebooks (2 ** bits * head_dim float32 numbers a KV head); built once
for a context, key by key behind it. Bytes read per decoded token: all codes, and the keys and values kept.

Codes are chosen in float64, so that a key is encoded alike alone and among others. Keys with equal codes have equal
scores, of which the earlier one is kept, in both forms.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch

from sah.errors import bad_value
from sah.sparse_attention.kernels.kmeans import kmeans, nearest_centroids
from sah.sparse_attention.kernels.lookup import CODES, lookup_sums
from sah.sparse_attention.key_state import KeyStateMasker
from sah.sparse_attention.mask import Mask
from sah.sparse_attention.maskers.base import KeyScoreMasker
from sah.sparse_attention.maskers.pqcache_config import INNER_PRODUCT, PQCacheConfig
from sah.sparse_attention.randomness import generator_for
from sah.sparse_attention.shared import SharedStates

BLOCK_NUMBERS = 1 << 20
"""Entries of keys that are converted to float64 at once."""


@dataclass(frozen=True)
class Codebooks:
    """What a layer's keys are encoded by."""

    centroids: torch.Tensor
    """(batch, kv_heads, subvectors, centroids, width), float32; with `inner_product` the width has one entry more."""

    largest: torch.Tensor
    """Largest square of a part's length among the context's keys, (batch, kv_heads, subvectors), float64."""


class PQCache(KeyStateMasker, KeyScoreMasker):
    """Adds the residual keys with the largest product-quantised scores."""

    config: PQCacheConfig
    works_in_lanes = True
    is_linear = True
    earlier_first = True

    def state_identity(self) -> Hashable:
        """Return what codebooks and codes depend on; see `KeyStateMasker.state_identity`."""
        config = self.config
        return (config.name, self.seed, config.subvectors, config.bits, config.iterations, config.metric)

    @torch.no_grad()
    def fit(self, keys: torch.Tensor, layer_idx: int) -> Codebooks:
        """Learn a layer's codebooks, those of each batch row as if it were alone; see `KeyStateMasker.fit`."""
        parts = self._parts(keys).float()
        squares = parts.double().square().sum(-1)
        largest = squares.amax(-1) if keys.shape[2] else squares.new_zeros(squares.shape[:-1])
        points = self._of_metric(parts, largest)
        books = []
        for row in points:
            generator = generator_for(self.seed, self.config.name, layer_idx)
            books.append(kmeans(row.flatten(0, 1), 2**self.config.bits, self.config.iterations, generator))
        return Codebooks(torch.stack(books).view(*points.shape[:3], -1, points.shape[-1]), largest)

    @torch.no_grad()
    def derive(self, keys: torch.Tensor, fitted: Codebooks, layer_idx: int) -> torch.Tensor:
        """Return the keys' codes, (batch, kv_heads, n, subvectors), uint8; see `KeyStateMasker.derive`.

        One part's codes of consecutive keys lie next to each other in memory.
        """
        batch, kv_heads, length, head_dim = keys.shape
        rows = len(fitted.centroids)
        if batch > rows:
            # Rows of one context share its codebooks: their keys become keys of one row.
            together = keys.transpose(0, 1).reshape(1, kv_heads, batch * length, head_dim)
            codes = self.derive(together, fitted, layer_idx)
            return codes.view(kv_heads, batch, length, -1).transpose(0, 1)
        codes = torch.empty(batch, kv_heads, self.config.subvectors, length, dtype=torch.uint8, device=keys.device)
        centroids = fitted.centroids.double().flatten(0, 2)
        step = max(1, BLOCK_NUMBERS // (batch * kv_heads * head_dim))
        for start in range(0, length, step):
            points = self._of_metric(self._parts(keys[:, :, start : start + step]).double(), fitted.largest)
            nearest = nearest_centroids(points.flatten(0, 2), centroids)
            codes[..., start : start + step] = nearest.view(*points.shape[:4])
        return codes.mT

    @torch.no_grad()
    def add_mask(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        attention_mask: torch.Tensor,
        scaling: float,
        dropout: float,
        sparse_meta_data: dict[Any, Any],
        previous_mask: Mask,
        **kwargs: Any,
    ) -> Mask:
        """Add the best of the residual, codebooks learned anew; see `ResearchMasker.add_mask`.

        They are learned from the keys of the context that some query may read: padding moves no centroid.
        """
        arguments = (queries, keys, values, attention_mask, scaling, dropout, sparse_meta_data, previous_mask)
        context = self.context_length(keys.shape[2] - queries.shape[2], sparse_meta_data, kwargs["layer_idx"])
        readable = attention_mask[..., :context].any(dim=2).any(dim=1).expand(len(keys), -1)
        return super().add_mask(*arguments, **kwargs, readable=readable)

    @torch.no_grad()
    def add_indices(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        attention_mask: torch.Tensor,
        scaling: float,
        dropout: float,
        sparse_meta_data: dict[Any, Any],
        previous_mask: Mask,
        **kwargs: Any,
    ) -> Mask:
        """Add the best of the residual by the codes held; plain twin: `add_mask`."""
        arguments = (queries, keys, values, attention_mask, scaling, dropout, sparse_meta_data, previous_mask)
        if not isinstance(keys, SharedStates):
            before = keys.shape[2] - queries.shape[2]
            context = self.context_length(before, sparse_meta_data, kwargs["layer_idx"])
            if not bool(attention_mask[..., :context].all()):
                # The codebooks held are learned from all keys of the context, padding included.
                return self.add_mask(*arguments, **kwargs)
        return super().add_indices(*arguments, **kwargs)

    def scores(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        scaling: float,
        sparse_meta_data: dict[Any, Any],
        **kwargs: Any,
    ) -> torch.Tensor:
        """Score by the centroids of each key, everything made from scratch; see `KeyScoreMasker.scores`.

        `readable` among the keyword arguments tells which keys of the context count, (batch, context length).
        """
        layer_idx, (batch, heads, q_len, _) = kwargs["layer_idx"], queries.shape
        scores = torch.zeros(batch, keys.shape[1], heads // keys.shape[1] * q_len, keys.shape[2], device=keys.device)
        for row, counts in enumerate(kwargs["readable"]):
            mine = keys[row : row + 1]
            fitted = self.fit(mine[:, :, : len(counts)][:, :, counts], layer_idx)
            codes = self.derive(mine, fitted, layer_idx)[0].long()
            products = self._products(queries[row : row + 1], fitted, scaling)[0]
            for head in range(keys.shape[1]):
                for part in range(self.config.subvectors):
                    scores[row, head] += products[head, :, part][:, codes[head, :, part]]
        return scores.view(batch, heads, q_len, -1)

    def fast_scores(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        scaling: float,
        sparse_meta_data: dict[Any, Any],
        **kwargs: Any,
    ) -> torch.Tensor:
        """Score by the products of queries and centroids, looked up by the codes held; plain twin: `scores`."""
        layer_idx, (batch, heads, q_len, _) = kwargs["layer_idx"], queries.shape
        if isinstance(keys, SharedStates):
            context, own = self.lane_state(keys, sparse_meta_data, layer_idx)
            fitted, segments = context.fitted, [context.units, keys.with_states(context.units, own).own_rows()]
        else:
            length = self.context_length(keys.shape[2] - q_len, sparse_meta_data, layer_idx)
            fitted, segments = self.key_state(keys, sparse_meta_data, layer_idx, keys.shape[2] - length)
        products = self._products(queries, fitted, scaling)
        tables = products.new_zeros(*products.shape[:4], CODES)
        tables[..., : products.shape[4]] = products
        scores = torch.cat([lookup_sums(codes, tables) for codes in segments], dim=-1)
        return scores.view(batch, heads, q_len, -1)

    def _products(self, queries: torch.Tensor, fitted: Codebooks, scaling: float) -> torch.Tensor:
        """Multiply each part of the queries with its centroids.

        Args:
            queries: (batch, heads, q_len, head_dim).
            fitted: The codebooks.
            scaling: Factor of the products.

        Returns:
            (batch, kv_heads, heads / kv_heads * q_len, subvectors, centroids), float32.
        """
        batch, heads, q_len, head_dim = queries.shape
        kv_heads, subvectors = fitted.centroids.shape[1:3]
        width = head_dim // subvectors
        parts = queries.float().reshape(batch, kv_heads, heads // kv_heads * q_len, subvectors, width) * scaling
        return (parts.transpose(2, 3) @ fitted.centroids[..., :width].mT).transpose(2, 3)

    def _parts(self, keys: torch.Tensor) -> torch.Tensor:
        """Cut keys into their parts, (batch, kv_heads, subvectors, n, width)."""
        head_dim, subvectors = keys.shape[3], self.config.subvectors
        if head_dim % subvectors:
            key = self.config.key("subvectors")
            raise bad_value(key, subvectors, f"a divisor of the model's head_dim of {head_dim}", f"{key}=2")
        return keys.reshape(*keys.shape[:3], subvectors, head_dim // subvectors).transpose(2, 3)

    def _of_metric(self, parts: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
        """Return what is compared of parts by Euclidean distance, of their type, with one more entry where needed."""
        if self.config.metric != INNER_PRODUCT:
            return parts
        missing = largest.unsqueeze(-1) - parts.double().square().sum(-1)
        return torch.cat([parts, missing.clamp(min=0).sqrt().unsqueeze(-1).to(parts.dtype)], dim=-1)
