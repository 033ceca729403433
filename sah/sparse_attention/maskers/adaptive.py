"""Adaptive sampling, the second half of vAttention: as many random keys as a promised error needs.

Desai et al., "vAttention: Verified Sparse Attention", arXiv 2510.05688. After the deterministic steps of a recipe
(sink, local, a top-k) a base sample of the residual estimates what the rest contributes and how much it varies; the
central limit theorem then gives the number of keys with which the relative error exceeds epsilon with a probability of
at most delta. The base sample is kept and the rest drawn without replacement, so that p = n / N for every drawn key.
`guarantee` says what the error is promised for; the authors' code promises the denominator, which is the default here.
`selection: group` draws one sample a KV head, as large as the neediest of its query heads asks for.

Where it differs from the authors' code: draws are without replacement and never of keys kept already; the quantile is
two-sided; the variance is that of the residual alone, with the correction for a finite residual, and is taken one
standard error above its estimate, since a base sample that misses the heavy keys asks for too few; for the same reason
a share in `base_rate` stands for `base_min` keys at least. A key that is not read moves no maximum. Sink logits
(GPT-OSS) count in the denominator.

What the promise rests on, and where it fails: the sum over the drawn keys must be near normal, and the base sample must
show the tail. With a very heavy tail in the residual (no top-k before it and logits that spread widely) or a base
sample of a few keys, one unread key may hold much of the sum and nothing drawn tells of it.
tests/unit/sparse_attention/test_adaptive_guarantee.py and tests/e2e/test_adaptive_smollm2.py show both sides. For
`numerator` and `output` the bound on a vector's error needs delta up to 0.215 (Szekely and Bakirov 2003), and that of
the output is linear in the error. The number of keys follows from the draw itself, so that estimates are unbiased only
given the number.

State: none; a draw depends on the seed, the layer, the query's own position and the lane, and on nothing else.
Bytes read per decoded token: the keys and values drawn, and the keys kept before where no earlier step knows their
logits; for `numerator` and `output` the values of both once more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from sah.sparse_attention.budget import size_in_keys
from sah.sparse_attention.grouping import any_of_group
from sah.sparse_attention.kernels.gather import gather_rows
from sah.sparse_attention.kernels.scores import attention_logits, cap_logits
from sah.sparse_attention.kernels.shared import call_logits, reads_widely
from sah.sparse_attention.kernels.workspace import Workspace
from sah.sparse_attention.key_lists import keys_of_runs, to_heads
from sah.sparse_attention.mask import Mask, gather_last
from sah.sparse_attention.masker_config import MaskerConfig
from sah.sparse_attention.maskers.adaptive_config import DENOMINATOR, AdaptiveSamplingMaskerConfig
from sah.sparse_attention.maskers.base import DrawingMasker
from sah.sparse_attention.pool import Pool, add_drawn, share_drawn
from sah.sparse_attention.sample_size import KeysRead, keys_needed
from sah.sparse_attention.shared import SharedStates, States, of_heads, of_range

FEW_ROWS = 1 << 16
"""Keys that are read one by one however many there are in all."""


class AdaptiveSamplingMasker(DrawingMasker):
    """Draws residual keys until the estimate is as exact as promised."""

    config: AdaptiveSamplingMaskerConfig

    @property
    def works_in_lanes(self) -> bool:  # type: ignore[override]
        """Whether no values have to be read before the draw."""
        return self.config.guarantee == DENOMINATOR

    def __init__(self, config: MaskerConfig, key: str = "", seed: int = 0) -> None:
        super().__init__(config, key, seed)
        self._workspace = Workspace()

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
        """Draw from the residual; see `ResearchMasker.add_mask`."""
        if previous_mask.is_full:
            return previous_mask
        pool = self.pool(queries, keys, attention_mask, sparse_meta_data, previous_mask, kwargs["layer_idx"])
        logits = attention_logits(queries, keys, scaling, kwargs.get("softcap"))
        kept = KeysRead(logits, _weights(previous_mask.to_dense() * attention_mask), values)

        def read(indices: torch.Tensor, used: torch.Tensor) -> KeysRead:
            return replace(kept, weights=Mask.from_indices(previous_mask.shape, indices, used.float()).to_dense())

        sample = self._draw(pool, [kept], read, kwargs.get("s_aux"))
        return add_drawn(previous_mask, sample.indices, sample.used, share_drawn(sample.number, pool.size))

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
        """Draw from the residual as lists; plain twin: `add_mask`.

        Where so much is drawn that reading all keys once is less than reading those of each list, all are read, and
        the mask is dense.
        """
        if previous_mask.is_full or not self.can_extend(previous_mask, attention_mask, keys):
            arguments = (queries, keys, values, attention_mask, scaling, dropout, sparse_meta_data, previous_mask)
            return self.add_mask(*arguments, **kwargs)
        pool = self.pool(
            queries, keys, attention_mask, sparse_meta_data, previous_mask, kwargs["layer_idx"], as_lists=True
        )
        with_values = self.config.guarantee != DENOMINATOR
        reader = _ListReader(queries, keys, values, scaling, kwargs.get("softcap"), with_values, self._workspace)
        sample = self._draw(pool, reader.kept(previous_mask), reader.base, kwargs.get("s_aux"))
        if previous_mask.is_certain and torch.equal(sample.number, pool.size):
            return previous_mask.merge(Mask.full(previous_mask.shape, previous_mask.device))
        probability = share_drawn(sample.number, pool.size)
        if reader.reads_all(sample.indices) and not isinstance(keys, SharedStates):
            mask = add_drawn(previous_mask, sample.indices, sample.used, probability)
            return Mask.from_dense(previous_mask.shape, mask.to_dense())
        logits = reader.logits_of(sample.indices) if not self.by_group else None
        return add_drawn(previous_mask, sample.indices, sample.used, probability, logits)

    def _draw(
        self,
        pool: Pool,
        kept: list[KeysRead],
        read: Callable[[torch.Tensor, torch.Tensor], KeysRead],
        sinks: torch.Tensor | None,
    ) -> _Sample:
        """Draw the base sample, and then what it asks for.

        Args:
            pool: The residual.
            kept: Keys kept before.
            read: Gives logits and values of the base sample, from its positions and which of them count.
            sinks: Sink logits, (heads,), or None.

        Returns:
            The sample.
        """
        size = pool.size
        least = 2 if isinstance(self.config.base_rate, int) else self.config.base_min
        base = torch.minimum(size_in_keys(self.config.base_rate, size).clamp(min=least), size)
        indices, used, pool = pool.draw(base)
        if torch.equal(base, size):
            return _Sample(indices, used, base)
        sample = read(indices, used)
        heads = sample.logits.shape[1]
        needed = keys_needed(kept, sample, to_heads(size, heads), to_heads(base, heads), sinks, self.config)
        number = torch.maximum(base, any_of_group(needed, size.shape[1]))
        more, more_used, _ = pool.draw(number - base)
        return _Sample(torch.cat([indices, more], dim=-1), torch.cat([used, more_used], dim=-1), number)


@dataclass(frozen=True)
class _Sample:
    """Drawn keys of every list."""

    indices: torch.Tensor
    """Positions, (batch, lists, q_len, n), int64."""

    used: torch.Tensor
    """Which of them count, boolean, same shape."""

    number: torch.Tensor
    """How many count, (batch, lists, q_len), int64."""


class _ListReader:
    """Reads the keys and values that lists name, for one query a row; each drawn key once."""

    def __init__(
        self,
        queries: torch.Tensor,
        keys: States,
        values: States,
        scaling: float,
        softcap: float | None,
        with_values: bool,
        workspace: Workspace,
    ) -> None:
        self.queries = queries
        self.keys = keys
        self.values = values
        self.scaling = scaling
        self.softcap = softcap
        self.with_values = with_values
        self.workspace = workspace
        self._base_logits = torch.empty(*queries.shape[:3], 0, device=queries.device)

    def kept(self, mask: Mask) -> list[KeysRead]:
        """Read what a mask in list form keeps, but for logits that it knows."""
        parts = []
        for start, stop in mask.spans:
            logits = attention_logits(self.queries, of_range(self.keys, start, stop), self.scaling, self.softcap)
            values = self._plain_values()[:, :, start:stop] if self.with_values else None
            parts.append(KeysRead(logits, torch.ones_like(logits), values))
        for part in mask.lists:
            indices, probabilities = part.of_single_keys(part.indices.shape[1])
            logits = self._read(part.indices, part.run) if part.logits is None else part.logits
            weights = to_heads(_weights(probabilities), self.queries.shape[1])
            parts.append(KeysRead(cap_logits(logits, self.softcap), weights, self._values_of(indices)))
        return parts

    def base(self, indices: torch.Tensor, used: torch.Tensor) -> KeysRead:
        """Read the base sample."""
        if self.reads_all(indices):
            logits = attention_logits(self.queries, self.keys, self.scaling, self.softcap)
            batch, heads, q_len, kv_len = logits.shape
            mask = Mask.from_indices((batch, heads, q_len, kv_len), indices, used.float())
            return KeysRead(logits, mask.to_dense(), self._plain_values() if self.with_values else None)
        self._base_logits = self._read(indices)
        logits = cap_logits(self._base_logits, self.softcap)
        return KeysRead(logits, to_heads(used.float(), logits.shape[1]), self._values_of(indices))

    def reads_all(self, indices: torch.Tensor) -> bool:
        """Tell whether reading all keys is less than reading those drawn for each list."""
        kv_heads, kv_len = self.keys.shape[1:3]
        return indices.shape[1] * indices.shape[3] > max(kv_heads * kv_len, FEW_ROWS)

    def logits_of(self, indices: torch.Tensor) -> torch.Tensor:
        """Return uncapped logits (batch, heads, 1, n) of the whole sample, which begins with the base sample."""
        rest = indices[..., self._base_logits.shape[-1] :]
        return torch.cat([self._base_logits, self._read(rest)], dim=-1) if rest.shape[-1] else self._base_logits

    def _read(self, indices: torch.Tensor, run: int = 1) -> torch.Tensor:
        """Compute uncapped logits KV head by KV head, so that the rows gathered stay in the processor's cache."""
        if isinstance(self.keys, SharedStates) and (
            self.keys.known.asked or reads_widely(indices, self.queries, self.keys)
        ):
            every = call_logits(self.queries, self.keys, self.scaling)
            return gather_last(every, to_heads(keys_of_runs(indices, run), self.queries.shape[1]))
        rows = self._rows(indices)
        kv_heads = self.keys.shape[1]
        lists, group = rows.shape[1] // kv_heads, self.queries.shape[1] // kv_heads
        pieces = []
        for head in range(kv_heads):
            mine = rows[:, head * lists : (head + 1) * lists]
            gathered = gather_rows(of_heads(self.keys, slice(head, head + 1)), mine, run, workspace=self.workspace)
            queries = self.queries[:, head * group : (head + 1) * group]
            pieces.append(attention_logits(queries, gathered, self.scaling))
        return torch.cat(pieces, dim=1)

    def _plain_values(self) -> torch.Tensor:
        if isinstance(self.values, SharedStates):
            raise ValueError("values are read before the draw, for which lanes go one by one")
        return self.values

    def _values_of(self, indices: torch.Tensor) -> torch.Tensor | None:
        return gather_rows(self.values, self._rows(indices)) if self.with_values else None

    def _rows(self, indices: torch.Tensor) -> torch.Tensor:
        """Bring indices (batch or 1, lists, 1, n) into the form (batch, kv_heads or heads, n)."""
        rows = indices.squeeze(2).expand(len(self.queries), -1, -1)
        return rows.expand(-1, self.keys.shape[1], -1) if rows.shape[1] == 1 else rows


def _weights(inclusion: torch.Tensor) -> torch.Tensor:
    """What a kept key counts for: 1 / p, and 0 where p is 0."""
    return torch.where(inclusion > 0, 1 / inclusion, 0.0)
