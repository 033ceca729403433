"""MagicPIG: keys sampled by locality-sensitive hashing.

Based on "MagicPIG: LSH Sampling for Efficient LLM Generation" (Chen et al. 2024, arXiv 2410.16179). In each of L tables
the signature of a key or query says on which side of K random hyperplanes it lies (SimHash). Keys whose signatures
equal the query's in at least `min_matches` tables are kept. Over the hyperplanes, two vectors at an angle theta agree
in a table with probability c = (1 - theta / pi)^K and the tables are independent, so that the inclusion probability is
P(Binomial(L, c) >= min_matches), and weighing by 1/p leaves the sum of exponentials without bias. Keys are hashed
relative to the context's mean key, queries as they are; attention itself is over the true logits, which softmax does
not tell from shifted ones. Every query head keeps keys of its own; the paper has no form with one set a KV head.

Deviations: the mean is over the whole context (the paper's code leaves out the keys of its static set, the first 4 and
the last 64), and keys behind the context are hashed like others (there they join the static set; `local` in front of
this masker keeps the recent ones). The static set is not part of this masker: put `sink` and `local` before it. Where a
query head keeps no key so far and none collides, it gets that static set, the first 4 and last 64 keys it may read,
with probability 1; this is the one case in which the estimate has a bias. Weights are 1/p exactly, not 1/(p + 1e-4).
Matches are counted over all signatures, not looked up in sorted tables. Each layer has hyperplanes of its own (one
set for all layers in the paper's code), which its heads and all steps share: estimates are unbiased, but their errors
are not independent of each other.
State: signatures, L integers a key and KV head, of 2 bytes (4 above 15 bits, 8 above 31); built once for a context, one
key at a time behind it. They are larger than the keys: 300 bytes with the defaults, against 256 for a key of 128 bf16.
Besides, a layer's hyperplanes (8 * K * L * head_dim bytes), its mean, and the number of keys that are the context.
Bytes read per decoded token: kv_heads * kv_len * L * (2, 4 or 8), and the keys and values kept.

Hashes and angles are computed in float64, so that no rounding decides on which side of a plane a key lies: signatures
built key by key equal those built at once. No gradient flows through the probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any

import torch

from sah.sparse_attention.kernels.gather import gather_rows
from sah.sparse_attention.kernels.scores import group_size
from sah.sparse_attention.key_lists import KeyLists
from sah.sparse_attention.key_state import KeyStateMasker
from sah.sparse_attention.mask import Mask
from sah.sparse_attention.maskers.base import SamplingMasker, hide_kept
from sah.sparse_attention.maskers.magicpig_config import MagicPigConfig
from sah.sparse_attention.randomness import generator_for

STATIC_FIRST, STATIC_LAST = 4, 64
"""Keys that a query falls back to where it would keep none: the paper's static set."""

BLOCK_NUMBERS = 1 << 22
"""Projections computed, or signatures compared, at once."""


class MagicPig(KeyStateMasker, SamplingMasker):
    """Keeps the residual keys that collide with the query in enough tables, and records the probability of that."""

    config: MagicPigConfig

    def __init__(self, config: MagicPigConfig, key: str = "", seed: int = 0) -> None:
        super().__init__(config, key, seed)
        self._planes: dict[tuple[int, int, torch.device], torch.Tensor] = {}

    def state_identity(self) -> Hashable:
        """Return what planes and mean depend on; see `KeyStateMasker.state_identity`."""
        return (self.config.name, self.key, self.seed, self.config.lsh_l, self.config.lsh_k, self.config.center)

    def fit(self, keys: torch.Tensor, layer_idx: int) -> torch.Tensor:
        """Return what is taken from every key, (batch, kv_heads, 1, head_dim), float64; see `KeyStateMasker.fit`."""
        return self._mean(keys, torch.ones(1, keys.shape[2], dtype=torch.bool, device=keys.device))

    def derive(self, keys: torch.Tensor, fitted: torch.Tensor, layer_idx: int) -> torch.Tensor:
        """Return the keys' signatures, (batch, kv_heads, n, L); see `KeyStateMasker.derive`."""
        return self.signatures(keys, fitted, layer_idx)

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
        """Add the colliding keys, hashing all keys anew; see `ResearchMasker.add_mask`."""
        layer_idx = kwargs["layer_idx"]
        context = self.context_length(keys.shape[2] - queries.shape[2], sparse_meta_data, layer_idx)
        if previous_mask.is_full:
            return previous_mask
        readable = attention_mask[..., :context].any(dim=2).any(dim=1)
        mean = self._mean(keys[:, :, :context], readable)
        hashed = [self.signatures(keys, mean, layer_idx)]
        return self._add_densely(queries, keys, attention_mask, previous_mask, mean, hashed, layer_idx)

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
        """Add the colliding keys by the signatures held, as lists where one query may read all; twin: `add_mask`."""
        arguments = (queries, keys, values, attention_mask, scaling, dropout, sparse_meta_data, previous_mask)
        layer_idx, (q_len, kv_len) = kwargs["layer_idx"], previous_mask.shape[2:]
        context = self.context_length(kv_len - q_len, sparse_meta_data, layer_idx)
        if previous_mask.is_full:
            return previous_mask
        if not bool(attention_mask[..., :context].all()):
            # The state's mean is over all keys of the context, padding included.
            return self.add_mask(*arguments, **kwargs)
        mean, hashed = self.key_state(keys, sparse_meta_data, layer_idx, kv_len - context)
        if q_len > 1 or not previous_mask.has_indices or not bool(attention_mask.all()):
            return self._add_densely(queries, keys, attention_mask, previous_mask, mean, hashed, layer_idx)
        matches = count_matches(self.signatures(queries, None, layer_idx), hashed)
        scores = matches.float()
        hide_kept(scores, attention_mask, previous_mask)
        hits = (scores >= self.config.min_matches).squeeze(2)
        stuck = ~hits.any(-1, keepdim=True) & (previous_mask.count(attention_mask) == 0)
        if bool(stuck.any()):
            place = torch.arange(kv_len, device=hits.device)
            hits |= stuck & ((place < STATIC_FIRST) | (place >= kv_len - STATIC_LAST))
        indices, used = _listed(hits)
        if indices.shape[-1] == 0:
            return previous_mask
        dots, cosines = _compare_rows(queries, keys, indices, mean)
        chances = torch.where(stuck, 1.0, self._chance(cosines)) * used
        logits = (dots * scaling).float()
        return previous_mask.extend(KeyLists(indices.unsqueeze(2), chances.unsqueeze(2), logits.unsqueeze(2)))

    def _add_densely(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        allowed: torch.Tensor,
        previous_mask: Mask,
        mean: torch.Tensor,
        hashed: list[torch.Tensor],
        layer_idx: int,
    ) -> Mask:
        """Add the keys that collide; `hashed` holds all keys' signatures in order."""
        matches = count_matches(self.signatures(queries, None, layer_idx), hashed)
        hits = (matches >= self.config.min_matches) & allowed & (previous_mask.to_dense() == 0)
        stuck = ~hits.any(-1) & (previous_mask.count(allowed) == 0)
        rank = allowed.long().cumsum(-1)
        static = allowed & ((rank <= STATIC_FIRST) | (rank > rank[..., -1:] - STATIC_LAST))
        inclusion = (stuck.unsqueeze(-1) & static).float()
        group = group_size(queries, keys)
        for head in range(keys.shape[1]):
            mine = slice(head * group, (head + 1) * group)
            rows = keys[:, head : head + 1]
            _, cosines = compare(queries[:, mine], rows, mean[:, head : head + 1])
            inclusion[:, mine][hits[:, mine]] = self._chance(cosines[hits[:, mine]])
        return previous_mask.merge(Mask.from_dense(previous_mask.shape, inclusion))

    def signatures(self, states: torch.Tensor, mean: torch.Tensor | None, layer_idx: int) -> torch.Tensor:
        """Hash keys or queries.

        Args:
            states: (batch, any heads, n, head_dim).
            mean: What is taken from them first, broadcastable to states, float64; None for nothing.
            layer_idx: The layer, which has hyperplanes of its own.

        Returns:
            (batch, any heads, n, L), int16, int32 or int64 by the number of bits; the n signatures of one table lie
            next to each other in memory.
        """
        tables, bits = self.config.lsh_l, self.config.lsh_k
        kind = torch.int16 if bits <= 15 else torch.int32 if bits <= 31 else torch.int64
        batch, heads, count, head_dim = states.shape
        planes = self._planes_of(layer_idx, head_dim, states.device)
        packed = torch.zeros(batch, heads, tables, count, dtype=kind, device=states.device)
        step = max(1, BLOCK_NUMBERS // (batch * heads * len(planes)))
        for start in range(0, count, step):
            piece = states[:, :, start : start + step].double()
            if mean is not None:
                piece = piece - mean
            sides = (planes @ piece.mT > 0).view(batch, heads, bits, tables, -1)
            for bit in range(bits):
                packed[..., start : start + step] += sides[:, :, bit].to(kind) << bit
        return packed.mT

    def _planes_of(self, layer_idx: int, head_dim: int, device: torch.device) -> torch.Tensor:
        """Return a layer's hyperplanes, (K * L, head_dim), float64; drawn once."""
        name = (layer_idx, head_dim, device)
        if name not in self._planes:
            generator = generator_for(self.seed, self.key, layer_idx)
            shape = (self.config.lsh_k * self.config.lsh_l, head_dim)
            self._planes[name] = torch.randn(shape, generator=generator, dtype=torch.float64).to(device)
        return self._planes[name]

    def _mean(self, keys: torch.Tensor, readable: torch.Tensor) -> torch.Tensor:
        """Average the keys that are readable, (batch or 1, n), to (batch, kv_heads, 1, head_dim); 0 without any."""
        batch, kv_heads, _, head_dim = keys.shape
        mean = torch.zeros(batch, kv_heads, 1, head_dim, dtype=torch.float64, device=keys.device)
        if self.config.center:
            count = readable.sum(-1).clamp(min=1).view(-1, 1, 1)
            for head in range(kv_heads):
                rows = keys[:, head].double().masked_fill(~readable.unsqueeze(-1), 0.0)
                mean[:, head] = rows.sum(1, keepdim=True) / count
        return mean

    def _chance(self, cosines: torch.Tensor) -> torch.Tensor:
        """Return inclusion probabilities by the cosines (float64) of the angles, float32, never 0."""
        collision = (1 - torch.acos(cosines) / math.pi) ** self.config.lsh_k
        chance = chance_of_matches(collision, self.config.lsh_l, self.config.min_matches).float()
        return chance.clamp(min=torch.finfo(torch.float32).tiny)


def count_matches(wanted: torch.Tensor, hashed: list[torch.Tensor]) -> torch.Tensor:
    """Count the tables in which keys have the signature of a query.

    Args:
        wanted: The queries' signatures, (batch, heads, q_len, L).
        hashed: The keys' signatures in order, each (batch or 1, kv_heads, n, L).

    Returns:
        (batch, heads, q_len, all n), uint8, or int32 for more than 255 tables.
    """
    batch, heads, q_len, tables = wanted.shape
    kv_heads, length = hashed[0].shape[1], sum(part.shape[2] for part in hashed)
    grouped = wanted.reshape(batch, kv_heads, -1, tables).permute(3, 0, 1, 2).unsqueeze(-1).contiguous()
    kind = torch.uint8 if tables < 256 else torch.int32
    matches = torch.empty(*grouped.shape[1:4], length, dtype=kind, device=wanted.device)
    step = max(1, BLOCK_NUMBERS // grouped.numel())
    place = 0
    for part in hashed:
        for start in range(0, part.shape[2], step):
            by_table = part[:, :, start : start + step].permute(3, 0, 1, 2).unsqueeze(3)
            stop = place + by_table.shape[-1]
            matches[..., place:stop] = (by_table == grouped).view(torch.uint8).sum(0, dtype=kind)
            place = stop
    return matches.view(batch, heads, q_len, length)


def chance_of_matches(collision: torch.Tensor, tables: int, least: int) -> torch.Tensor:
    """Compute P(Binomial(tables, collision) >= least) without cancellation.

    Args:
        collision: Probability of agreement in one table, float64.
        tables: Number of tables.
        least: Matches required, 1 to tables.

    Returns:
        The probability, float64, of the same shape.
    """

    def exactly(matches: int) -> torch.Tensor:
        log_ways = math.log(math.comb(tables, matches))
        log_rest = torch.special.xlog1py(tables - matches, -collision)
        return torch.exp(log_ways + torch.special.xlogy(matches, collision) + log_rest)

    often = 1 - sum((exactly(matches) for matches in range(1, least)), exactly(0))
    # Where fewer matches than required are expected, 1 - (...) would lose all digits; the tail is summed up instead.
    # There each term is at most least / (matches + 1) of the one before.
    odds = collision / (1 - collision)
    tail = term = torch.ones_like(collision)
    bound = 1.0
    for matches in range(least, tables):
        term = term * odds * ((tables - matches) / (matches + 1))
        tail = tail + term
        bound *= least / (matches + 1)
        if bound < 1e-17:
            break
    return torch.where(collision * tables <= least, exactly(least) * tail, often)


def compare(queries: torch.Tensor, rows: torch.Tensor, mean: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Compare queries with keys.

    Args:
        queries: (batch, heads, q_len, head_dim).
        rows: Keys, (batch, heads or 1, n, head_dim).
        mean: What is taken from the keys before they are hashed, broadcastable to rows, float64.

    Returns:
        Dot products of queries and keys, and cosines of queries and keys less the mean; (batch, heads, q_len, n),
        float64. A vector of length 0 lies on no side of any plane and hashes to 0: it agrees with another one as often
        as if they were orthogonal, and always with a second such vector.
    """
    queries, centred = queries.double(), rows.double() - mean
    dots = queries @ centred.mT
    lengths = queries.norm(dim=-1, keepdim=True), centred.norm(dim=-1).unsqueeze(-2)
    product = lengths[0] * lengths[1]
    degenerate = ((lengths[0] == 0) & (lengths[1] == 0)).double()
    cosines = torch.where(product > 0, dots / product, degenerate).clamp(-1, 1)
    return dots + queries @ mean.mT, cosines


def _compare_rows(
    queries: torch.Tensor, keys: torch.Tensor, indices: torch.Tensor, mean: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compare one query a head with the keys of its list, (batch, heads, n); results of that shape, see `compare`."""
    group = group_size(queries, keys)
    dots = torch.empty(indices.shape, dtype=torch.float64, device=indices.device)
    cosines = torch.empty_like(dots)
    for head in range(keys.shape[1]):
        mine = slice(head * group, (head + 1) * group)
        rows = gather_rows(keys[:, head : head + 1], indices[:, mine])
        results = compare(queries[:, mine], rows, mean[:, head : head + 1])
        dots[:, mine], cosines[:, mine] = (result.squeeze(2) for result in results)
    return dots, cosines


def _listed(hits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Write out the places that are True, (batch, heads, n), as lists of equal length and which of them are used."""
    counts = hits.sum(-1)
    longest = int(counts.max())
    used = torch.arange(longest, device=hits.device) < counts.unsqueeze(-1)
    indices = torch.zeros(used.shape, dtype=torch.long, device=hits.device)
    # Both run through the lists in order, so that the places found fill the places used.
    indices[used] = hits.nonzero()[:, -1]
    return indices, used
