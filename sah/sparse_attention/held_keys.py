"""The keys that an evicting method still holds: places that new keys take over from evicted ones."""

from __future__ import annotations

import torch

GROWTH = 16
"""Places added at least when all are taken."""


class HeldKeys:
    """Positions and scores of the keys that lanes hold in one layer, in no order.

    Args:
        positions: (lanes, kv_heads, places), int64; any key's position where a place is free.
        used: Which places hold a key, boolean, of the same shape.
        scores: Float32, of the same shape.
        seen: How many keys of its sequence each lane has met, (lanes,), int64; -1 for a lane that has not begun.

    Attributes:
        states: Keys and values of the places, (lanes, kv_heads, places, dim), once they are held.
    """

    def __init__(self, positions: torch.Tensor, used: torch.Tensor, scores: torch.Tensor, seen: torch.Tensor) -> None:
        self.positions = positions
        self.used = used
        self.scores = scores
        self.seen = seen
        self.states: tuple[torch.Tensor, torch.Tensor] | None = None

    @classmethod
    def none(cls, lanes: int, kv_heads: int, device: torch.device) -> HeldKeys:
        """Make the state of lanes that have not begun."""
        shape = (lanes, kv_heads, 0)
        return cls(
            torch.zeros(shape, dtype=torch.long, device=device),
            torch.zeros(shape, dtype=torch.bool, device=device),
            torch.zeros(shape, device=device),
            torch.full((lanes,), -1, device=device),
        )

    @classmethod
    def of_first(cls, scores: torch.Tensor, before: torch.Tensor) -> HeldKeys:
        """Make the state of lanes that hold the first keys of their sequence.

        Args:
            scores: (lanes, kv_heads, n), float32, n at least the largest of `before`; copied.
            before: How many keys each lane holds, (lanes,), int64.
        """
        longest = int(before.max())
        place = torch.arange(longest, device=scores.device).expand(*scores.shape[:2], -1)
        used = place < before[:, None, None]
        return cls(place.masked_fill(~used, 0), used, scores[..., :longest].clone(), before.clone())

    def of(self, lanes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return positions, use and scores of some lanes, ascending: of all of them the tensors themselves."""
        if len(lanes) == len(self.seen):
            return self.positions, self.used, self.scores
        return self.positions[lanes], self.used[lanes], self.scores[lanes]

    def drop(self, lanes: torch.Tensor, dropped: torch.Tensor) -> None:
        """Free places, boolean (n, kv_heads, places), of some lanes."""
        if len(lanes) == len(self.seen):
            self.used &= ~dropped
        else:
            self.used[lanes] &= ~dropped

    def add_scores(self, lanes: torch.Tensor, more: torch.Tensor) -> None:
        """Add to the scores of some lanes, (n, kv_heads, places)."""
        if len(lanes) == len(self.seen):
            self.scores += more
        else:
            self.scores[lanes] += more

    def add(
        self, lanes: torch.Tensor, position: torch.Tensor, score: torch.Tensor, places: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Put each lane's next key into a free place, or into that of a key that goes.

        Args:
            lanes: The lanes, (n,), int64, each once.
            position: Position of each one's key, (n,), int64.
            score: Its score, (n, kv_heads), float32.
            places: The places, (n, kv_heads, 1), int64; None takes free ones.

        Returns:
            The places, (n, kv_heads, 1), int64.
        """
        if places is None:
            used = self.of(lanes)[1]
            if used.shape[2] == 0 or bool(used.all(-1).any()):
                self._grow(used.shape[2] + max(GROWTH, used.shape[2] // 64))
                used = self.of(lanes)[1]
            places = used.view(torch.uint8).argmin(-1, keepdim=True)
        where = (lanes[:, None, None], torch.arange(self.used.shape[1], device=lanes.device)[:, None], places)
        self.positions[where] = position[:, None, None].expand(places.shape)
        self.scores[where] = score.unsqueeze(-1)
        self.used[where] = True
        self.seen[lanes] = position + 1
        return places

    def put_states(self, places: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write the key and value, (lanes, kv_heads, 1, dim), of every lane's new place."""
        for held, new in zip(self.states or (), (keys, values), strict=False):
            held.scatter_(2, places.unsqueeze(-1).expand(new.shape), new.to(held.dtype))

    def take(self, lanes: torch.Tensor, other: HeldKeys) -> None:
        """Make what another state holds the state of some lanes, without its free places.

        Args:
            lanes: The lanes, (n,), int64.
            other: Of n lanes.
        """
        longest = int(other.used.sum(-1).max())
        if longest > self.used.shape[2]:
            self._grow(longest)
        # A stable sort of "not used" brings the keys that are held to the front in their own order.
        order = (~other.used).to(torch.uint8).argsort(dim=-1, stable=True)[..., :longest]
        self.used[lanes] = False
        self.positions[lanes, :, :longest] = other.positions.gather(-1, order)
        self.scores[lanes, :, :longest] = other.scores.gather(-1, order)
        self.used[lanes, :, :longest] = other.used.gather(-1, order)
        self.seen[lanes] = other.seen

    def nbytes(self) -> int:
        """Return the bytes of positions, scores, and held keys and values."""
        return sum(t.nbytes for t in (self.positions, self.used, self.scores, *(self.states or ())))

    def _grow(self, places: int) -> None:
        def longer(tensor: torch.Tensor) -> torch.Tensor:
            shape = (*tensor.shape[:2], places - tensor.shape[2], *tensor.shape[3:])
            return torch.cat([tensor, tensor.new_zeros(shape)], dim=2)

        self.positions, self.used, self.scores = longer(self.positions), longer(self.used), longer(self.scores)
        if self.states is not None:
            self.states = longer(self.states[0]), longer(self.states[1])
