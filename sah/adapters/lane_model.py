"""One model call for rows of many lanes: projections and MLPs run once, attention setting by setting.

Rows are tokens. They stand side by side in one sequence, so that questions of different lengths need no padding, and
each has its own position; nothing but attention mixes them. Dense settings read every key by one product over the
context for all their rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from sah.adapters import attention_switch as switch
from sah.adapters.finite import FiniteWatch, usable
from sah.adapters.lane_cache import LaneCache
from sah.adapters.lane_products import CommonProducts
from sah.adapters.lane_rows import LaneRows, LaneSetting
from sah.sparse_attention.kernels.shared import attend_everything, row_pieces
from sah.sparse_attention.kernels.workspace import Workspace
from sah.sparse_attention.lanes import LaneSeconds
from sah.sparse_attention.shared import SharedStates
from sah.sparse_attention.times import now

if TYPE_CHECKING:
    from sah.adapters.huggingface import ModelAdapterHF


@dataclass(frozen=True)
class _Call:
    """What attention has to know of a model call."""

    cache: LaneCache
    groups: list[LaneRows]
    """Rows by setting."""

    together: LaneRows
    """All rows as if they were of one dense setting, for layers that see a window only."""

    workspace: Workspace
    watch: FiniteWatch


@dataclass(frozen=True)
class LaneOutput:
    """What a model call gave."""

    logits: torch.Tensor
    """(lanes, vocabulary) behind the last token of each lane, or (tokens of all lanes in order, vocabulary)."""

    broken: dict[int, tuple[int, str]]
    """Lanes, by their place in the call, whose logits are not finite, with the token and the place where it began."""


class LaneModel:
    """Calls a model for rows of lanes over one context.

    Args:
        adapter: An adapter of the model.
        past: The prefilled context's cache; read only.
        length: Tokens of the context.
        settings: The settings in the order of their lanes, which are counted from 0 over all of them.
        room: Most tokens that a lane may put behind the context.
    """

    def __init__(
        self, adapter: ModelAdapterHF, past: Any, length: int, settings: Sequence[LaneSetting], room: int
    ) -> None:
        self.adapter = adapter
        self.length = length
        self.settings = settings
        self._cache = LaneCache(past, length, settings[-1].stop, room)
        self._workspace = Workspace()
        self._everyone = LaneSetting(0, settings[-1].stop, None, None, LaneSeconds(settings[-1].stop))

    @torch.inference_mode()
    def run(
        self,
        phase: str,
        lanes: Sequence[int],
        tokens: Sequence[Sequence[int]],
        starts: Sequence[int],
        *,
        dense: set[int],
        every_token: bool = False,
    ) -> LaneOutput:
        """Run tokens of several lanes.

        Args:
            phase: `question` or `decode`.
            lanes: The lanes, ascending.
            tokens: Their tokens.
            starts: Place behind the context of the first token of each lane.
            dense: Numbers of settings that run dense in this call.
            every_token: Whether the logits behind every token are wanted, and not those behind each lane's last alone.

        Returns:
            The logits, and which lanes have any that are not finite.
        """
        device = self.adapter.model.get_input_embeddings().weight.device
        row_lanes = [lane for lane, ids in zip(lanes, tokens, strict=True) for _ in ids]
        slots = [start + place for start, ids in zip(starts, tokens, strict=True) for place in range(len(ids))]
        ends = torch.tensor([len(ids) for ids in tokens]).cumsum(0) - 1
        groups = self._groups(phase, row_lanes, slots, dense)
        together = self._rows(self._everyone, 0, row_lanes, slots, max(slots) + 1)
        call = _Call(self._cache, groups, together, self._workspace, FiniteWatch())
        self._cache.put(torch.tensor(row_lanes), torch.tensor(slots))
        positions = torch.tensor([slots], device=device) + self.length
        with self._switched():
            logits = self.adapter.model(
                input_ids=torch.tensor([[i for ids in tokens for i in ids]], device=device),
                position_ids=positions,
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=0 if every_token else ends.to(device),
                **{switch.META_DATA_KEY: call},
            ).logits[0]
        broken: dict[int, tuple[int, str]] = {}
        finite = usable(logits)
        if not bool(finite.all()):
            rows = [slice(end + 1 - len(ids), end + 1) for end, ids in zip(ends.tolist(), tokens, strict=True)]
            for place, mine in enumerate(rows):
                if not bool((finite[mine] if every_token else finite[place]).all()):
                    broken[place] = call.watch.where(mine)
        return LaneOutput(logits, broken)

    def _groups(self, phase: str, row_lanes: Sequence[int], slots: Sequence[int], dense: set[int]) -> list[LaneRows]:
        groups: list[LaneRows] = []
        first = 0
        for number, setting in enumerate(self.settings):
            stop = first
            while stop < len(row_lanes) and row_lanes[stop] < setting.stop:
                stop += 1
            if stop > first:
                shown = replace(setting, watches=True) if number in dense else setting
                # All rows are given the longest one's keys, so that products may be shared.
                rows = self._rows(shown, first, row_lanes[first:stop], slots[first:stop], max(slots) + 1)
                groups.append(rows)
                if shown.states is not None and not shown.watches:
                    shown.states.begin(phase, rows.lanes.tolist())
            first = stop
        return groups

    def _rows(
        self, setting: LaneSetting, first: int, row_lanes: Sequence[int], slots: Sequence[int], used: int
    ) -> LaneRows:
        lanes = [lane - setting.first for lane in row_lanes]
        return LaneRows(
            slice(first, first + len(lanes)),
            setting,
            torch.tensor(lanes),
            torch.tensor(slots) + self.length + 1,
            used,
            len(set(lanes)) == len(lanes),
            lanes == list(range(setting.stop - setting.first)),
        )

    @contextmanager
    def _switched(self) -> Iterator[None]:
        name = switch.unique_name()
        switch.register_lanes(name, _attention)
        try:
            with switch.switched(self.adapter.loaded, name):
                yield
        finally:
            switch.unregister(name)


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Hand each row to its setting's attention: (1, heads, rows, head_dim) to (1, rows, heads, value_dim)."""
    call: _Call = kwargs.pop(switch.META_DATA_KEY)
    layer_idx = int(kwargs.pop("layer_idx", getattr(module, "layer_idx", -1)))
    layer = call.cache.lane_layers[layer_idx]
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    queries = query[0].transpose(0, 1).unsqueeze(2).contiguous()
    full = switch.is_full_attention(module, layer_idx, kwargs)
    groups = call.groups if full else [call.together]
    output = torch.zeros(query.shape[2], query.shape[1], layer.own[1].shape[3], device=query.device)
    common = CommonProducts(call.together, groups, layer, queries, scaling, layer_idx, call.workspace)
    for group in groups:
        keys, values = common.states(group)
        mine = queries[group.rows]
        attention, states = group.setting.attention, group.setting.states
        begun = now(query.device)[0]
        if attention is not None and states is not None and not group.setting.watches:
            found = attention.attend_lanes(module, mine, keys, values, scaling, states, layer_idx=layer_idx, **kwargs)
        else:
            found = _attend_densely(mine, keys, values, scaling, None if full else kwargs["sliding_window"], kwargs)
            spent = now(query.device)[0] - begun
            for own in [group] if full else call.groups:
                own.setting.seconds.add(own.lanes, 0.0, spent * len(own.lanes) / len(group.lanes))
            if full and attention is not None and states is not None:
                wanted = attention.observed(layer_idx, question=True)
                states.see_question(wanted, layer_idx, mine, keys, scaling, kwargs)
        output[group.rows] = found
        common.remember(group, keys)
    common.add_deferred(output)
    call.watch.see(layer_idx, query[0].transpose(0, 1), output)
    return output[None].to(query.dtype), None


def _attend_densely(
    queries: torch.Tensor,
    keys: SharedStates,
    values: SharedStates,
    scaling: float,
    window: int | None,
    special: Mapping[str, Any],
) -> torch.Tensor:
    """Attend to every key, or those of a window, in pieces of rows whose logits are bounded; (rows, heads, dim)."""
    found = [
        attend_everything(
            queries[piece],
            keys.of_rows(piece),
            values.of_rows(piece),
            scaling,
            window=window,
            sinks=special.get("s_aux"),
            softcap=special.get("softcap"),
        )
        for piece in row_pieces(queries, keys)
    ]
    return torch.cat(found).squeeze(2)
