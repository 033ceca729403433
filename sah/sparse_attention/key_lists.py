"""Kept keys as lists: ranges that all queries share, and lists of single keys or of runs of keys."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

Spans = tuple[tuple[int, int], ...]
"""Ranges of keys, (start, stop) each, the stop not included."""


@dataclass(frozen=True)
class KeyLists:
    """One list of keys for every query, no key twice in places that are used."""

    indices: torch.Tensor
    """(batch or 1, lists, q_len, n), int64: one list for all heads, for a KV head or for a query head, so that lists is
    1, kv_heads or heads. With `run` above 1 an index i stands for the keys i * run to i * run + run - 1."""

    probabilities: torch.Tensor | None = None
    """Inclusion probabilities, float32, shape of `indices`; 0 marks an unused place. None means 1 everywhere. Only
    single keys (`run` of 1) have any."""

    logits: torch.Tensor | None = None
    """Scaled dot products of queries and keys before any cap, float32, (batch, heads, q_len, n), where whoever chose
    the keys knows them for every query head; they are not computed again then."""

    run: int = 1
    """Keys that an index stands for."""

    states: tuple[torch.Tensor, torch.Tensor] | None = None
    """Keys and values of a KV head's list, (batch, kv_heads, n, dim) each, where whoever chose the keys holds them
    together; they are not gathered again then."""

    def of_single_keys(self, heads: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the list out.

        Args:
            heads: Number of query heads.

        Returns:
            Indices of single keys, (batch or 1, heads or 1, q_len, n * run), and their probabilities, float32.
        """
        indices = keys_of_runs(self.indices, self.run)
        probabilities = self.probabilities
        if probabilities is None:
            probabilities = torch.ones((), device=indices.device).expand(indices.shape)
        return to_heads(indices, heads), to_heads(probabilities.float(), heads)

    def count(self, heads: int) -> torch.Tensor:
        """Count the keys in use.

        Args:
            heads: Number of query heads.

        Returns:
            int64, (batch or 1, heads or 1, q_len).
        """
        if self.probabilities is not None:
            return to_heads((self.probabilities > 0).sum(-1), heads)
        _, lists, q_len, length = self.indices.shape
        return torch.full((1, 1, q_len), length * self.run, device=self.indices.device)


def keys_of_runs(indices: torch.Tensor, run: int) -> torch.Tensor:
    """Name every key of runs.

    Args:
        indices: Numbers of runs, (..., n), int64.
        run: Keys of a run.

    Returns:
        Positions of their keys, (..., n * run), int64; the indices themselves where a run is one key.
    """
    if run == 1:
        return indices
    return (indices.unsqueeze(-1) * run + torch.arange(run, device=indices.device)).flatten(-2)


def union_of_spans(spans: Iterable[tuple[int, int]]) -> Spans:
    """Bring ranges into ascending order, joining those that touch or overlap and dropping empty ones."""
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(span for span in spans if span[0] < span[1]):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return tuple(joined)


def merge_lists(
    left: tuple[torch.Tensor, torch.Tensor], right: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Union of two index lists with their probabilities.

    Args:
        left: Indices (batch, heads or 1, q_len, n) and probabilities of the same shape.
        right: The other list.

    Returns:
        One list; a key that both hold keeps the larger probability in one place, its other place is unused.
    """
    heads = max(left[0].shape[1], right[0].shape[1])
    indices, probabilities = (
        torch.cat([t.expand(-1, heads, -1, -1) for t in pair], -1) for pair in zip(left, right, strict=True)
    )
    # Sorted by key, larger probability first, every repetition of a key follows the place that counts.
    by_probability = probabilities.argsort(dim=-1, descending=True, stable=True)
    indices, probabilities = indices.gather(-1, by_probability), probabilities.gather(-1, by_probability)
    by_key = indices.argsort(dim=-1, stable=True)
    indices, probabilities = indices.gather(-1, by_key), probabilities.gather(-1, by_key)
    repeated = torch.zeros_like(indices, dtype=torch.bool)
    repeated[..., 1:] = indices[..., 1:] == indices[..., :-1]
    return indices, probabilities.masked_fill(repeated, 0.0)


def to_heads(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Give each query head what its KV head has.

    Args:
        tensor: (batch, kv_heads or heads or 1, ...).
        heads: Number of query heads.

    Returns:
        (batch, heads or 1, ...).
    """
    lists = tensor.shape[1]
    return tensor if lists in (1, heads) else tensor.repeat_interleave(heads // lists, dim=1)
