"""`Mask`: which keys each query reads, and with what probability each was included."""

from __future__ import annotations

import torch

Shape = tuple[int, int, int, int]


class Mask:
    """Kept keys of every query row, with one meaning in two representations.

    A key has an inclusion probability: 1 where it was chosen deterministically, the chance of its draw where it was
    sampled, and 0 where it is not kept. The mask holds it either densely, broadcastable to
    (batch, heads, q_len, kv_len), or as index lists (batch, heads, q_len, n) with a probability a place, 0 for unused
    places. Full and empty masks hold neither. Masks are immutable: every operation returns a new one.

    Attributes:
        shape: (batch, heads, q_len, kv_len) that the mask stands for.
    """

    def __init__(
        self,
        shape: Shape,
        device: torch.device,
        *,
        dense: torch.Tensor | None = None,
        indices: torch.Tensor | None = None,
        probabilities: torch.Tensor | None = None,
        is_full: bool = False,
    ) -> None:
        self.shape = shape
        self.device = device
        self._dense = dense
        self._indices = indices
        self._probabilities = probabilities
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
        return cls(shape, inclusion.device, dense=inclusion.float())

    @classmethod
    def from_indices(cls, shape: Shape, indices: torch.Tensor, probabilities: torch.Tensor) -> Mask:
        """Make a mask from index lists.

        Args:
            shape: (batch, heads, q_len, kv_len).
            indices: (batch, heads or 1, q_len, n), int64. No key may stand twice in a list in places with a probability
                above 0; what stands in other places does not matter as long as it is below kv_len.
            probabilities: Same shape as indices, float; 0 marks a place that is not used.

        Returns:
            The mask.
        """
        return cls(shape, indices.device, indices=indices, probabilities=probabilities.float())

    @property
    def is_full(self) -> bool:
        """Whether the mask was made full; a dense one that happens to hold every key is not found out."""
        return self._is_full

    @property
    def is_empty(self) -> bool:
        """Whether the mask was made empty."""
        return not self._is_full and self._dense is None and self._indices is None

    @property
    def has_indices(self) -> bool:
        """Whether the mask is held as index lists (an empty one is, with lists of length 0)."""
        return self._indices is not None or self.is_empty

    def to_dense(self) -> torch.Tensor:
        """Return the inclusion probabilities.

        Returns:
            Float32, broadcastable to (batch, heads, q_len, kv_len); not to be written to.
        """
        if self._dense is not None:
            return self._dense
        if self._indices is None or self._probabilities is None:
            value = 1.0 if self._is_full else 0.0
            return torch.full((1, 1, 1, 1), value, device=self.device).expand(1, 1, self.shape[2], self.shape[3])
        dense = torch.zeros(*self._indices.shape[:3], self.shape[3], device=self.device)
        # An unused place may name a key that another place keeps: the larger probability must win.
        return dense.scatter_reduce(3, self._indices, self._probabilities, reduce="amax")

    def to_indices(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mask as index lists.

        Returns:
            Indices (batch, heads or 1, q_len, n), int64, and probabilities of the same shape, 0 in unused places.
        """
        if self._indices is not None and self._probabilities is not None:
            return self._indices, self._probabilities
        if self.is_empty:
            lists = (self.shape[0], 1, self.shape[2], 0)
            return torch.zeros(lists, dtype=torch.long, device=self.device), torch.zeros(lists, device=self.device)
        dense = self.to_dense()
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
        if self.is_empty:
            return torch.zeros(1, 1, self.shape[2], dtype=torch.long, device=self.device)
        if self._is_full:
            return allowed.sum(-1)
        if self._indices is not None and self._probabilities is not None:
            return ((self._probabilities > 0) & gather_last(allowed, self._indices)).sum(-1)
        return ((self.to_dense() > 0) & allowed).sum(-1)

    def merge(self, other: Mask) -> Mask:
        """Union of two masks.

        A key that both hold gets the larger of its two probabilities. That is exact where one of them is 1, and where
        one sample contains the other; for two independent samples it is not (their union includes a key with
        p + q - pq), which is why a recipe holds at most one sampler.

        Args:
            other: A mask of the same shape.

        Returns:
            A new mask; neither input changes. Index lists stay index lists where both are.

        Raises:
            ValueError: If the shapes differ.
        """
        if self.shape != other.shape:
            raise ValueError(f"masks of shapes {self.shape} and {other.shape} cannot be merged")
        if self._is_full or other.is_empty:
            return self
        if other._is_full or self.is_empty:
            return other
        if self.has_indices and other.has_indices:
            return Mask.from_indices(self.shape, *_merge_lists(self.to_indices(), other.to_indices()))
        return Mask.from_dense(self.shape, torch.maximum(self.to_dense(), other.to_dense()))

    def extend(self, indices: torch.Tensor, probabilities: torch.Tensor) -> Mask:
        """Union with index lists that are known to hold no key of this mask: a plain concatenation.

        Args:
            indices: (batch, heads or 1, q_len, n), int64.
            probabilities: Same shape; 0 in unused places.

        Returns:
            A new mask; held as index lists unless this one is dense.
        """
        added = Mask.from_indices(self.shape, indices, probabilities)
        if self.is_empty or not self.has_indices:
            return self.merge(added)
        mine, mine_probabilities = self.to_indices()
        heads = max(mine.shape[1], indices.shape[1])
        parts = [t.expand(-1, heads, -1, -1) for t in (mine, indices, mine_probabilities, probabilities.float())]
        return Mask.from_indices(self.shape, torch.cat(parts[:2], -1), torch.cat(parts[2:], -1))


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


def _merge_lists(
    left: tuple[torch.Tensor, torch.Tensor], right: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    heads = max(left[0].shape[1], right[0].shape[1])
    indices = torch.cat([t.expand(-1, heads, -1, -1) for t in (left[0], right[0])], -1)
    probabilities = torch.cat([t.expand(-1, heads, -1, -1) for t in (left[1], right[1])], -1)
    # Sorted by key, larger probability first, every repetition of a key follows the place that counts.
    by_probability = probabilities.argsort(dim=-1, descending=True, stable=True)
    indices, probabilities = indices.gather(-1, by_probability), probabilities.gather(-1, by_probability)
    by_key = indices.argsort(dim=-1, stable=True)
    indices, probabilities = indices.gather(-1, by_key), probabilities.gather(-1, by_key)
    repeated = torch.zeros_like(indices, dtype=torch.bool)
    repeated[..., 1:] = indices[..., 1:] == indices[..., :-1]
    return indices, probabilities.masked_fill(repeated, 0.0)
