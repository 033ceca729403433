"""Keys or values of many rows that read one context, which is held once, and suffixes of their own."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch


class KnownLogits:
    """Logits of all keys that were computed already, for the queries of one call.

    Args:
        whole: Of the call, if this is of some of its rows.

    Attributes:
        asked: Whether a step of the recipe asked for them.
    """

    def __init__(self, whole: KnownLogits | None = None) -> None:
        self.asked = False
        self._whole = whole
        self._queries: torch.Tensor | None = None
        self._logits: torch.Tensor | None = None

    def ask(self) -> None:
        """Note that a step of the recipe asks for them, for the whole call as well."""
        self.asked = True
        if self._whole is not None:
            self._whole.ask()

    def put(self, queries: torch.Tensor, logits: torch.Tensor) -> None:
        """Keep the logits of some queries; those kept before are forgotten."""
        self._queries, self._logits = queries, logits

    def of(self, queries: torch.Tensor) -> torch.Tensor | None:
        """Return the logits of these queries, if they are kept."""
        kept = self._queries
        # The queries kept hold their memory, so that no others can stand at its address.
        if kept is None or kept.data_ptr() != queries.data_ptr() or kept.shape != queries.shape:
            return None
        return self._logits


@dataclass
class Deferred:
    """Weights of a setting's rows, which are multiplied with the values together with those of other settings."""

    weights: torch.Tensor
    """(rows, kv_heads, heads / kv_heads, kv_len), float32; anything until they are written."""

    written: bool = False


@dataclass(frozen=True)
class SharedStates:
    """Stands for a tensor (rows, kv_heads, kv_len, dim) whose first keys are the same for all rows.

    A row is one query of one lane: a lane that decodes has one row, a question's chunk one row a token. Each row may
    read its first `lengths` keys, the last of which is its own; what lies behind them is another row's or nobody's.
    Maskers whose `works_in_lanes` is true meet it in place of keys and values.
    """

    context: torch.Tensor
    """(1, kv_heads, context length, dim)."""

    own: torch.Tensor
    """(lanes, kv_heads, room, dim): what each lane has behind the context, from its first place on."""

    lanes: torch.Tensor
    """Lane of each row, (rows,), int64."""

    lengths: torch.Tensor
    """Keys that each row may read, its own among them, (rows,), int64."""

    used: int
    """Places of `own` that some row may read."""

    one_each: bool
    """Whether no lane has two rows."""

    in_order: bool
    """Whether the rows are exactly the lanes in their order."""

    may_read: torch.Tensor | None = field(default=None, compare=False, repr=False)
    """What `allowed` returns, where it is at hand."""

    known: KnownLogits = field(default_factory=KnownLogits, compare=False, repr=False)
    """What was computed of these keys already; see `kernels.shared.call_logits`."""

    deferred: Deferred | None = field(default=None, compare=False, repr=False)
    """Of values: where weights of all keys may be left instead of being multiplied; see `kernels.shared.weigh`."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(rows, kv_heads, kv_len, dim), kv_len being the longest row's."""
        _, kv_heads, length, dim = self.context.shape
        return self.lanes.shape[0], kv_heads, length + self.used, dim

    @property
    def context_length(self) -> int:
        """Keys of the context."""
        return self.context.shape[2]

    @property
    def device(self) -> torch.device:
        """Where the states lie."""
        return self.context.device

    @property
    def dtype(self) -> torch.dtype:
        """Their type."""
        return self.context.dtype

    @property
    def slots(self) -> torch.Tensor:
        """Place in `own` of each row's own key, (rows,), int64."""
        return self.lengths - self.context_length - 1

    def allowed(self) -> torch.Tensor:
        """Return which keys each row may read, boolean (rows, 1, 1, kv_len)."""
        return readable(self.lengths, self.shape[2]) if self.may_read is None else self.may_read

    def own_rows(self) -> torch.Tensor:
        """Return what each row has behind the context, (rows, kv_heads, used, dim); a copy unless rows are lanes."""
        own = self.own[:, :, : self.used]
        return own if self.in_order else own[self.lanes]

    def fresh(self) -> torch.Tensor:
        """Return each row's own states, (rows, kv_heads, 1, dim)."""
        return self.own[self.lanes, :, self.slots].unsqueeze(2)

    def of_heads(self, heads: slice) -> SharedStates:
        """Keep some KV heads."""
        return replace(self, context=self.context[:, heads], own=self.own[:, heads], known=KnownLogits(), deferred=None)

    def of_context(self, start: int, stop: int) -> SharedStates:
        """Keep a range of the context alone."""
        return replace(
            self,
            context=self.context[:, :, start:stop],
            own=self.own[:, :, :0],
            used=0,
            may_read=None,
            known=KnownLogits(),
            deferred=None,
        )

    def of_rows(self, rows: slice | torch.Tensor) -> SharedStates:
        """Keep some rows, a range or their numbers in ascending order; with all of them nothing is forgotten."""
        if isinstance(rows, slice) and rows.start == 0 and rows.stop >= self.lanes.shape[0]:
            return self
        lanes = self.lanes[rows]
        if len(lanes) == len(self.lanes):
            return self
        lengths = self.lengths[rows]
        return replace(
            self,
            lanes=lanes,
            lengths=lengths,
            in_order=False,
            may_read=None,
            known=KnownLogits(self.known),
            deferred=None,
        )

    def of_lane(self, lane: int, length: int) -> torch.Tensor:
        """Write the first keys of one lane out, (1, kv_heads, length, dim)."""
        own = self.own[lane : lane + 1, :, : length - self.context_length]
        return torch.cat([self.context, own], dim=2)

    def deferring(self, deferred: Deferred | None) -> SharedStates:
        """Hold the same values, whose weights may be left to a common product, or with None may not."""
        return replace(self, deferred=deferred)

    def with_states(self, context: torch.Tensor, own: torch.Tensor) -> SharedStates:
        """Hold other states of the same rows, e.g. labels of the keys, of the same room."""
        return replace(self, context=context, own=own, known=KnownLogits(), deferred=None)


def readable(lengths: torch.Tensor, kv_len: int) -> torch.Tensor:
    """Mark the first keys of every row, boolean (rows, 1, 1, kv_len).

    Args:
        lengths: How many, (rows,), int64.
        kv_len: Keys in all.
    """
    places = torch.arange(kv_len, device=lengths.device)
    return (places < lengths.unsqueeze(-1))[:, None, None]


States = torch.Tensor | SharedStates
"""Keys or values, (batch or rows, kv_heads, kv_len, dim)."""


def of_heads(states: States, heads: slice) -> States:
    """Keep some KV heads of keys or values."""
    return states.of_heads(heads) if isinstance(states, SharedStates) else states[:, heads]


def of_range(states: States, start: int, stop: int) -> States:
    """Keep a range of keys or values; of shared ones a range of the context."""
    return states.of_context(start, stop) if isinstance(states, SharedStates) else states[:, :, start:stop]


def readable_lengths(attention_mask: torch.Tensor, keys: States, q_len: int) -> torch.Tensor | None:
    """Tell how many keys each row may read, where that says everything about what it may read.

    Args:
        attention_mask: Boolean, (batch or 1, heads or 1, q_len, kv_len).
        keys: The keys.
        q_len: Queries a row.

    Returns:
        (batch or 1,), int64, where every row has one query that may read exactly its first keys; else None.
    """
    if isinstance(keys, SharedStates):
        return keys.lengths
    if q_len != 1 or not bool(attention_mask.all()):
        return None
    return torch.full((1,), keys.shape[2], device=keys.device)
