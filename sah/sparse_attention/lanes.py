"""State of the lanes of one setting that are decoded together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from sah.sparse_attention.attention_errors import ATTENTION_ERRORS_KEY, AttentionErrors
from sah.sparse_attention.config import QUESTION
from sah.sparse_attention.evicting_rows import mass_of_call
from sah.sparse_attention.key_state import CONTEXT_LENGTH_KEY, CONTEXT_STATE_KEY
from sah.sparse_attention.observe import Last, question_key
from sah.sparse_attention.randomness import LANES_KEY
from sah.sparse_attention.shared import SharedStates
from sah.sparse_attention.statistics import STATISTICS_KEY, AttentionStatistics
from sah.sparse_attention.times import ATTENTION, SELECTION, TIMES_KEY, AttentionTimes


class LaneSeconds:
    """Wall seconds of attention calls, shared equally among the rows that a call was for.

    Args:
        lanes: Lanes of the setting.
    """

    def __init__(self, lanes: int) -> None:
        self._seconds = [(0.0, 0.0)] * lanes

    def add(self, lanes: torch.Tensor, selection: float, attention: float) -> None:
        """Add a call.

        Args:
            lanes: Lane of each of its rows, (rows,), int64.
            selection: Seconds spent on choosing keys.
            attention: Seconds spent on attending to them.
        """
        shares = selection / len(lanes), attention / len(lanes)
        for lane in lanes.tolist():
            before = self._seconds[lane]
            self._seconds[lane] = before[0] + shares[0], before[1] + shares[1]

    def of(self, lane: int) -> tuple[float, float]:
        """Return selection and attention of one lane."""
        return self._seconds[lane]


class LaneStates:
    """What attention keeps of the lanes of one setting over one context.

    Args:
        alone: The `sparse_meta_data` of each lane, as it would have it alone. It is read, and used for layers that take
            the lanes one by one.
        seconds: Takes the time of layers that take all lanes at once.

    Attributes:
        alone: The same dicts.
        together: The `sparse_meta_data` of layers that take all lanes at once.
    """

    def __init__(self, alone: Sequence[dict[Any, Any]], seconds: LaneSeconds | None = None) -> None:
        self.together_seconds = seconds or LaneSeconds(len(alone))
        self.alone = [{**meta_data, TIMES_KEY: AttentionTimes()} for meta_data in alone]
        self.together: dict[Any, Any] = {key: alone[0][key] for key in (CONTEXT_STATE_KEY, CONTEXT_LENGTH_KEY)}
        self._identities = [meta_data[LANES_KEY][0] for meta_data in alone]
        errors = [one for m in alone if isinstance(one := m.get(ATTENTION_ERRORS_KEY), AttentionErrors) and one.rate]
        self.errors = errors if len(errors) == len(alone) else None
        """What compares rows with dense attention, one a lane; None where nothing is compared."""
        self._phase = QUESTION
        self._sums: dict[tuple[str, int], torch.Tensor] = {}
        """Sum of the densities of each lane's rows, and their number, (2, lanes), double."""
        self._dense: set[int] = set()
        """Layers that are no sparse ones."""

    def begin(self, phase: str, lanes: Sequence[int]) -> None:
        """Say what the next model call is for.

        Args:
            phase: `question` or `decode`.
            lanes: Lane of each row, rows of a lane together.
        """
        self._phase = phase
        self.together[LANES_KEY] = [self._identities[lane] for lane in lanes]
        for meta_data in self.alone:
            meta_data[STATISTICS_KEY].phase = phase

    def see_question(
        self,
        wanted: Iterable[Last],
        layer_idx: int,
        queries: torch.Tensor,
        keys: SharedStates,
        scaling: float,
        special: Mapping[str, Any],
    ) -> None:
        """Keep what a method wants to see of questions that run dense.

        Args:
            wanted: Observations wanted; see `sah.sparse_attention.observe`.
            layer_idx: The layer.
            queries: (rows, heads, 1, head_dim).
            keys: Those of the rows.
            scaling: Factor of the dot products.
            special: What the model passed on; `s_aux` and `softcap` are read.
        """
        for last in wanted:
            mass = mass_of_call(queries, keys, scaling, last, special)
            self.together.setdefault(layer_idx, {})[question_key(last)] = mass
            for lane, meta_data in enumerate(self.alone):
                length = int(keys.lengths[keys.lanes == lane].max()) if bool((keys.lanes == lane).any()) else 0
                meta_data.setdefault(layer_idx, {})[question_key(last)] = mass[lane : lane + 1, :, :length]

    def of_rows(self, rows: slice) -> dict[Any, Any]:
        """Return the state for some of the call's rows; layers' entries are those of all."""
        identities = self.together[LANES_KEY]
        if len(identities[rows]) == len(identities):
            return self.together
        return _View(self.together, {LANES_KEY: identities[rows]})

    def record(self, layer_idx: int, keys: SharedStates, kept: torch.Tensor, *, dense: bool) -> None:
        """Add what the rows of one call keep.

        Args:
            layer_idx: The layer.
            keys: The call's keys.
            kept: Keys kept, broadcastable to (rows, heads, 1).
            dense: Whether the layer is one of `dense_layers`.
        """
        name = (self._phase, layer_idx)
        if dense:
            self._dense.add(layer_idx)
        if name not in self._sums:
            self._sums[name] = torch.zeros(2, len(self._identities), dtype=torch.double, device=keys.device)
        shares = (kept.double() / keys.lengths.view(-1, 1, 1)).mean(dim=(1, 2)).expand(len(keys.lanes))
        self._sums[name].index_add_(1, keys.lanes, torch.stack([shares, torch.ones_like(shares)]))

    def statistics(self, lane: int) -> AttentionStatistics:
        """Return what one lane kept, in layers of both kinds."""
        found = AttentionStatistics()
        found.merge(self.alone[lane][STATISTICS_KEY])
        for (phase, layer_idx), sums in self._sums.items():
            # A lane has one row a step, but a question's rows are one call.
            calls = 1 if phase == QUESTION else int(sums[1, lane])
            found.add(phase, layer_idx, sums[:, lane], 0 if layer_idx in self._dense else calls)
        return found

    def seconds(self, lane: int) -> tuple[float, float]:
        """Return the wall seconds of selection and attention that fell to one lane."""
        own = self.alone[lane][TIMES_KEY].seconds
        selection, attention = self.together_seconds.of(lane)
        return selection + own[SELECTION][0], attention + own[ATTENTION][0]


class _View(dict[Any, Any]):
    """A dict with some entries replaced; what is added goes to the dict behind it."""

    def __init__(self, behind: dict[Any, Any], replaced: dict[Any, Any]) -> None:
        super().__init__({**behind, **replaced})
        self._behind = behind

    def setdefault(self, key: Any, default: Any = None) -> Any:
        """Look an entry up in the dict behind, putting the default there if it is missing."""
        return super().setdefault(key, self._behind.setdefault(key, default))
