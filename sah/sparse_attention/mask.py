"""`Mask`: which keys each query reads, and with what probability each was included."""

from __future__ import annotations

import torch

from sah.sparse_attention.key_lists import KeyLists, Spans, merge_lists, union_of_spans

Shape = tuple[int, int, int, int]


class Mask:
    """Kept keys of every query row, with one meaning in two representations.

    A key has an inclusion probability: 1 where it was chosen deterministically, the chance of its draw where it was
    sampled, and 0 where it is not kept. The mask holds it either densely, broadcastable to
    (batch, heads, q_len, kv_len), or as lists: ranges that every query keeps (`spans`) and lists of single keys or runs
    of keys (`lists`), no key in two of them. Full and empty masks hold neither. Masks are immutable: every operation
    returns a new one.

    Attributes:
        shape: (batch, heads, q_len, kv_len) that the mask stands for.
        spans: Disjoint ranges (start, stop) in ascending order that every query of every head keeps.
        lists: Lists of further keys.
    """

    def __init__(
        self,
        shape: Shape,
        device: torch.device,
        *,
        dense: torch.Tensor | None = None,
        spans: Spans = (),
        lists: tuple[KeyLists, ...] = (),
        is_full: bool = False,
    ) -> None:
        self.shape = shape
        self.device = device
        self.spans = spans
        self.lists = lists
        self._dense = dense
        self._is_full = is_full

    @classmethod
    def full(cls, shape: Shape, device: torch.device | str = "cpu") -> Mask:
        """Make a mask that keeps every key; costs nothing."""
        return cls(shape, torch.device(device), is_full=True)

    @classmethod
    def empty(cls, shape: Shape, device: torch.device | str = "cpu") -> Mask:
        """Make a mask that keeps no key; costs nothing."""
        return cls(shape, torch.device(device))

    @classmethod
    def from_dense(cls, shape: Shape, inclusion: torch.Tensor) -> Mask:
        """Make a mask from inclusion probabilities.

        Args:
            shape: (batch, heads, q_len, kv_len).
            inclusion: Broadcastable to shape; boolean (kept or not) or floating point in [0, 1].

        Returns:
            The mask.
        """
        return cls(shape, inclusion.device, dense=inclusion)

    @classmethod
    def from_spans(cls, shape: Shape, spans: Spans, device: torch.device | str = "cpu") -> Mask:
        """Make a mask of ranges that every query keeps; costs nothing.

        Args:
            shape: (batch, heads, q_len, kv_len).
            spans: Ranges (start, stop), in any order; empty and overlapping ones are allowed.
            device: Where lists would lie.

        Returns:
            The mask.
        """
        return cls(shape, torch.device(device), spans=union_of_spans(spans))

    @classmethod
    def from_indices(cls, shape: Shape, indices: torch.Tensor, probabilities: torch.Tensor | None = None) -> Mask:
        """Make a mask from index lists.

        Args:
            shape: (batch, heads, q_len, kv_len).
            indices: (batch, lists, q_len, n), int64, see `KeyLists`. No key may stand twice in a list in places with a
                probability above 0; what stands in other places does not matter as long as it is below kv_len.
            probabilities: Same shape as indices, float; 0 marks a place that is not used. None means 1 everywhere.

        Returns:
            The mask.
        """
        return cls(shape, indices.device, lists=(KeyLists(indices, probabilities),))

    @property
    def is_full(self) -> bool:
        """Whether the mask was made full; a dense one that happens to hold every key is not found out."""
        return self._is_full

    @property
    def is_empty(self) -> bool:
        """Whether the mask was made empty, or of empty ranges."""
        return not (self._is_full or self.spans or self.lists) and self._dense is None

    @property
    def has_indices(self) -> bool:
        """Whether the mask is held as lists (an empty one is)."""
        return self._dense is None and not self._is_full

    @property
    def is_certain(self) -> bool:
        """Whether no key was drawn at random, as far as the lists tell; a dense mask does not tell."""
        return self._is_full or (self._dense is None and all(part.probabilities is None for part in self.lists))

    def to_dense(self) -> torch.Tensor:
        """Return the inclusion probabilities.

        Returns:
            Float32, broadcastable to (batch, heads, q_len, kv_len); not to be written to.
        """
        if self._dense is not None:
            return self._dense.float()
        _, heads, q_len, kv_len = self.shape
        dense = torch.full((1, 1, 1, kv_len), 1.0 if self._is_full else 0.0, device=self.device)
        for start, stop in self.spans:
            dense[..., start:stop] = 1.0
        for part in self.lists:
            # An unused place may name a key that another place keeps: the larger probability must win.
            indices, probabilities = part.of_single_keys(heads)
            ground = torch.zeros(*indices.shape[:3], kv_len, device=self.device)
            dense = torch.maximum(dense, ground.scatter_reduce(3, indices, probabilities, reduce="amax"))
        return dense.expand(-1, -1, q_len, -1)

    def kept(self) -> torch.Tensor:
        """Return which keys may be read at all, boolean, broadcastable to (batch, heads, q_len, kv_len)."""
        if self._dense is not None and self._dense.dtype == torch.bool:
            return self._dense
        return self.to_dense() > 0

    def inclusion(self, allowed: torch.Tensor) -> torch.Tensor:
        """Return the inclusion probabilities of allowed keys, 0 for others.

        Args:
            allowed: Boolean, broadcastable to (batch, heads, q_len, kv_len).

        Returns:
            Broadcastable to the same; boolean where every kept key is known to be certain, else float32.
        """
        if self._dense is not None and self._dense.dtype == torch.bool:
            return self._dense & allowed
        return self.to_dense() * allowed

    def to_indices(self, lists: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mask as one index list a query.

        Args:
            lists: Lists that a mask in list form is written with where it has more than one, e.g. the KV heads;
                None means the query heads.

        Returns:
            Indices (batch, lists or 1, q_len, n), int64, and probabilities of the same shape, 0 in unused places.
        """
        if not self.has_indices:
            return self._indices_of_dense()
        batch, heads, q_len, _ = self.shape
        parts = [part.of_single_keys(lists or heads) for part in self.lists]
        if self.spans or not parts:
            positions = [torch.arange(start, stop, device=self.device) for start, stop in self.spans]
            whole = torch.cat([torch.empty(0, dtype=torch.long, device=self.device), *positions])
            parts.insert(0, (whole.view(1, 1, 1, -1), torch.ones(1, 1, 1, len(whole), device=self.device)))
        rows = max(part[0].shape[1] for part in parts)
        expanded = [[t.expand(batch, rows, q_len, -1) for t in part] for part in parts]
        indices, probabilities = (torch.cat(tensors, -1) for tensors in zip(*expanded, strict=True))
        return indices, probabilities

    def as_lists(self, lists: int | None = None) -> Mask:
        """Return the same mask held as lists, or as it is where it is full.

        Args:
            lists: KV heads, where the query heads of each are known to keep the same keys: a list for each of them.
        """
        if self._dense is None:
            return self
        return Mask.from_indices(self.shape, *self._indices_of_dense(lists))

    def _indices_of_dense(self, lists: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        dense = self.to_dense()
        if lists is not None and dense.shape[1] > lists:
            dense = dense[:, :: dense.shape[1] // lists]
        dense = dense.expand(self.shape[0], dense.shape[1], self.shape[2], self.shape[3])
        kept = dense > 0
        longest = int(kept.sum(-1).max())
        # A stable sort of "not kept" brings the kept keys to the front in their own order.
        order = (~kept).to(torch.uint8).argsort(dim=-1, stable=True)[..., :longest]
        return order, dense.gather(-1, order)

    def count(self, allowed: torch.Tensor) -> torch.Tensor:
        """Count the kept keys that are allowed.

        Args:
            allowed: Boolean, broadcastable to (batch, heads, q_len, kv_len).

        Returns:
            int64, broadcastable to (batch, heads, q_len).
        """
        if self._is_full:
            return allowed.sum(-1)
        if not self.has_indices:
            return (self.kept() & allowed).sum(-1)
        if not bool(allowed.all()):
            indices, probabilities = self.to_indices()
            return ((probabilities > 0) & gather_last(allowed, indices)).sum(-1)
        return self.count_listed()

    def count_listed(self) -> torch.Tensor:
        """Count the keys of a mask in list form; all of them are known to be allowed.

        Returns:
            int64, broadcastable to (batch, heads, q_len).
        """
        total = torch.zeros(1, 1, self.shape[2], dtype=torch.long, device=self.device)
        total += sum(stop - start for start, stop in self.spans)
        for part in self.lists:
            total = total + part.count(self.shape[1])
        return total

    def merge(self, other: Mask) -> Mask:
        """Union of two masks.

        A key that both hold gets the larger of its two probabilities. That is exact where one of them is 1, and where
        one sample contains the other; for two independent samples it is not (their union includes a key with
        p + q - pq), which is why a recipe holds at most one sampler.

        Args:
            other: A mask of the same shape.

        Returns:
            A new mask; neither input changes. Lists stay lists where both are.

        Raises:
            ValueError: If the shapes differ.
        """
        if self.shape != other.shape:
            raise ValueError(f"masks of shapes {self.shape} and {other.shape} cannot be merged")
        if self._is_full or other.is_empty:
            return self
        if other._is_full or self.is_empty:
            return other
        if not (self.has_indices and other.has_indices):
            return Mask.from_dense(self.shape, torch.maximum(self.to_dense(), other.to_dense()))
        if not (self.lists or other.lists):
            return Mask.from_spans(self.shape, (*self.spans, *other.spans), self.device)
        # Written with no more lists than they hold: what is kept by KV head stays so.
        lists = max(part.indices.shape[1] for part in (*self.lists, *other.lists))
        return Mask.from_indices(self.shape, *merge_lists(self.to_indices(lists), other.to_indices(lists)))

    def of_rows(self, rows: torch.Tensor) -> Mask:
        """Keep some batch rows.

        Args:
            rows: Their numbers, (n,), int64.
        """

        def cut(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return tensor if tensor is None or len(tensor) == 1 else tensor[rows]

        lists = tuple(
            KeyLists(
                part.indices if len(part.indices) == 1 else part.indices[rows], cut(part.probabilities), run=part.run
            )
            for part in self.lists
        )
        return Mask(
            (len(rows), *self.shape[1:]),
            self.device,
            dense=cut(self._dense),
            spans=self.spans,
            lists=tuple(lists),
            is_full=self._is_full,
        )

    def extend(self, *lists: KeyLists) -> Mask:
        """Union with lists that are known to hold no key of this mask, nor of each other: nothing is compared.

        Args:
            *lists: The lists.

        Returns:
            A new mask; held as lists unless this one is dense.
        """
        if self.has_indices:
            return Mask(self.shape, self.device, spans=self.spans, lists=(*self.lists, *lists))
        return self.merge(Mask(self.shape, self.device, lists=lists))


def gather_last(tensor: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Gather along the last dimension, the others broadcast against each other.

    Args:
        tensor: (batch or 1, heads or 1, q_len or 1, kv_len).
        indices: (batch or 1, heads or 1, q_len or 1, n), int64.

    Returns:
        (batch, heads, q_len, n) of the tensor's dtype.
    """
    leading = [max(pair) for pair in zip(tensor.shape[:-1], indices.shape[:-1], strict=True)]
    return tensor.expand(*leading, -1).gather(-1, indices.expand(*leading, -1))
