"""Bytes of keys and values that a decoded token reads, and that a cache would hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from sah.metrics.aggregate import mean


class DecodedRow(Protocol):
    """What is read of a prediction row (see `sah.results.rows.PredictionRow`)."""

    @property
    def status(self) -> str:
        """`ok`, or why there is no prediction."""

    @property
    def kv_len(self) -> int | None:
        """Keys of the context."""

    @property
    def num_question_tokens(self) -> int | None:
        """Keys of the question."""

    @property
    def decode_steps(self) -> int | None:
        """Model calls after the question's."""

    @property
    def density_by_phase(self) -> Mapping[str, float | None]:
        """Measured density by phase; nothing for a phase that ran dense."""


def decode_kv_bytes(rows: Iterable[DecodedRow], token_bytes: int, choosing_bytes: float = 0.0) -> float | None:
    """Average what a decoded token reads of the KV cache, and of what stands for it.

    For each row it is the number of keys, mean over its decoding steps, times (measured decode density x `token_bytes`
    + `choosing_bytes`). Layers that are dense count in full, since they do so in the density. It is reckoned from what
    was kept, not counted in the hardware: query heads of one KV head that keep different keys count with the mean of
    what each keeps, though all that any of them keeps has to be read.

    Args:
        rows: A point's rows. Rows without a decoding step say nothing and are left out.
        token_bytes: Bytes of one token's keys and values over all full-attention layers.
        choosing_bytes: Bytes a token, over all these layers, that are read to choose (page bounds, labels, signatures,
            an oracle's keys).

    Returns:
        Bytes a decoded token, mean over rows; None if no row was decoded.
    """
    return mean(_row_bytes(row, token_bytes, choosing_bytes) for row in rows)


def held_kv_bytes(rows: Iterable[DecodedRow], token_bytes: int, *, evicts: bool) -> float | None:
    """Average what a cache that follows the method would hold when an answer ends.

    The shared cache itself is never cut. What a method keeps beside keys and values (labels, signatures, scores) is not
    counted.

    Args:
        rows: A point's rows. Rows without a decoding step say nothing and are left out.
        token_bytes: Bytes of one token's keys and values over all full-attention layers.
        evicts: Whether keys that are not kept are never kept again, so that only those kept (the measured density of
            the decoding steps) need be held. If not, all are.

    Returns:
        Bytes, mean over rows; None if no row was decoded.
    """
    held: list[float | None] = []
    for row in rows:
        if row.status != "ok" or not row.decode_steps or row.kv_len is None or row.num_question_tokens is None:
            continue
        kept = row.density_by_phase.get("decode") if evicts else None
        keys = row.kv_len + row.num_question_tokens + row.decode_steps
        held.append(keys * (1.0 if kept is None else kept) * token_bytes)
    return mean(held)


def _row_bytes(row: DecodedRow, token_bytes: int, choosing_bytes: float) -> float | None:
    if row.status != "ok" or not row.decode_steps or row.kv_len is None or row.num_question_tokens is None:
        return None
    # The first step reads what the cache holds and its own key, each further one a key more.
    keys = row.kv_len + row.num_question_tokens + (row.decode_steps + 1) / 2
    kept = row.density_by_phase.get("decode")
    return keys * ((1.0 if kept is None else kept) * token_bytes + choosing_bytes)
