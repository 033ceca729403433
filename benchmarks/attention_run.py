"""A sparse arm of `benchmarks.attention` over its data: its steps, what they keep and what they read."""

from __future__ import annotations

import copy
import time
from types import MappingProxyType
from typing import Any

import torch

from benchmarks.attention_arms import HEAD_DIM, HEADS, KV_HEADS, SCALING, Arm, Stream
from sah.sparse_attention import EfficientAttention, EfficientAttentionConfig, Mask
from sah.sparse_attention.allowed import allowed_keys
from sah.sparse_attention.hash_weights import HashLayer, HeadwiseLinear
from sah.sparse_attention.held_keys import HeldKeys
from sah.sparse_attention.kernels.workspace import Workspace
from sah.sparse_attention.key_lists import KeyLists
from sah.sparse_attention.key_state import CONTEXT_STATE_KEY, ContextPart, OwnPart
from sah.sparse_attention.observe import observe_context
from sah.sparse_attention.statistics import STATISTICS_KEY, AttentionStatistics
from sah.sparse_attention.times import SELECTION, TIMES_KEY, AttentionTimes

LAYER = 0


class SparseRun:
    """One question of one arm, decoded step by step over a context whose state is built once.

    Args:
        arm: The arm.
        stream: The data, standing at the context's end.

    Attributes:
        build_seconds: CPU seconds that the context's state took.
        selection_seconds: CPU seconds that choosing keys took in each step so far.
    """

    def __init__(self, arm: Arm, stream: Stream) -> None:
        self.arm = arm
        self.stream = stream
        self.attention = EfficientAttention(EfficientAttentionConfig(masker_configs=arm.recipe()))
        for masker in self.attention.maskers:
            if getattr(masker, "needs_channels", False):
                sizes = stream.keys[0].abs().mean(1, dtype=torch.float32)
                masker.use_channels({LAYER: sizes.argsort(-1, descending=True)})
            if getattr(masker, "needs_hash_weights", False):
                masker.use_hash_weights({LAYER: random_networks(masker.config.bits)})
        self._context_state: dict[Any, Any] = {}
        start = time.process_time()
        self.attention.prepare_context(self._context_state, LAYER, stream.keys, stream.values)
        # What one query sees stands for a prefill, which this benchmark has none of.
        observed = self.attention.observed(LAYER)
        observe_context(self._context_state, observed, LAYER, stream.queries, stream.keys, SCALING, {})
        self.build_seconds = time.process_time() - start
        self.selection_seconds: list[float] = []
        self._statistics = AttentionStatistics()
        self._meta: dict[Any, Any] = {
            CONTEXT_STATE_KEY: MappingProxyType(self._context_state),
            STATISTICS_KEY: self._statistics,
        }

    def step(self) -> torch.Tensor:
        """Attend once, (1, 1, heads, head_dim)."""
        times = self._meta[TIMES_KEY] = AttentionTimes()
        inputs = (self.stream.queries, self.stream.keys, self.stream.values)
        output, _ = self.attention.custom_attention(None, *inputs, None, SCALING, 0.0, self._meta, layer_idx=LAYER)
        self.selection_seconds.append(times.seconds[SELECTION][1])
        return output

    def density(self) -> float | None:
        """Return the share of keys kept, averaged over all steps so far; None before the first one."""
        return self._statistics.density()

    def workspace_bytes(self) -> int:
        """Return the bytes of the buffers that are used again at every step."""
        holders = [self.attention, *self.attention.maskers]
        held = [value for holder in holders for value in vars(holder).values() if isinstance(value, Workspace)]
        return sum(workspace.nbytes() for workspace in held)

    def state_bytes(self) -> int:
        """Return the bytes of what the method keeps of every key: the context's, and what grew behind it."""
        own = [part.nbytes() for part in self._meta.get(LAYER, {}).values() if isinstance(part, (OwnPart, HeldKeys))]
        derived = [part.units for part in self._context_state.values() if isinstance(part, ContextPart)]
        return sum(units.nbytes for units in derived) + sum(own)

    @torch.no_grad()
    def bytes_read(self) -> dict[str, int]:
        """Return the bytes that a step at this point reads, by `selection` and `attention`.

        A row that several query heads keep each for itself counts once for each of them.
        """
        queries, keys, values = self.stream.queries, self.stream.keys, self.stream.values
        allowed = allowed_keys(None, queries, keys)
        # A method that evicts would take the same query for one behind a cut.
        meta_data = {**self._meta, LAYER: copy.deepcopy(self._meta.get(LAYER, {}))}
        mask = self.attention.build_mask(queries, keys, values, allowed, SCALING, 0.0, meta_data, layer_idx=LAYER)
        row = HEAD_DIM * keys.element_size()
        selection = {"nothing": 0, "state": self.state_bytes(), "keys": self.stream.kv_bytes // 2}[self.arm.reads]
        if self.arm.reads_drawn and mask.lists:
            selection += _rows_of_list(mask.lists[-1]) * row
        return {"selection": selection, "attention": rows_of_mask(mask) * row}


def random_networks(bits: int) -> HashLayer:
    """Draw networks of the size that HashAttention's paper has, 128 to 128 to 128 to `bits`.

    Their bits tell little, which takes as long to read as bits that tell much.
    """
    generator = torch.Generator().manual_seed(0)
    sizes = ((HEAD_DIM, HEAD_DIM), (HEAD_DIM, HEAD_DIM), (HEAD_DIM, bits))

    def networks(heads: int) -> tuple[HeadwiseLinear, ...]:
        weights = [torch.randn(heads, *size, generator=generator) * HEAD_DIM**-0.5 for size in sizes]
        return tuple(HeadwiseLinear(weight, torch.zeros(heads, 1, weight.shape[2])) for weight in weights)

    return HashLayer(networks(HEADS), networks(KV_HEADS))


def rows_of_mask(mask: Mask) -> int:
    """Count the rows of keys and of values that attention over a mask reads, for one query of one batch row.

    Args:
        mask: The mask. Keys whose logits it knows are not read again, their values are.

    Returns:
        The rows, summed over the heads that read them.
    """
    if mask.is_full:
        return 2 * KV_HEADS * mask.shape[3]
    lists = mask.lists if mask.has_indices else (KeyLists(*mask.to_indices()),)
    ranges = sum(stop - start for start, stop in mask.spans)
    return 2 * KV_HEADS * ranges + sum((1 if part.logits is not None else 2) * _rows_of_list(part) for part in lists)


def _rows_of_list(part: KeyLists) -> int:
    used = part.indices.numel() if part.probabilities is None else int((part.probabilities > 0).sum())
    # A list that all heads share is read for every KV head.
    return used * part.run * max(1, KV_HEADS // part.indices.shape[1])
