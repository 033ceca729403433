"""`EfficientAttention`: the same recipe, reading at decode only what the mask keeps."""

from __future__ import annotations

from typing import Any

import torch

from sah.errors import ConfigError
from sah.sparse_attention.attention_errors import chosen_rows, observe_rows
from sah.sparse_attention.config import MaskedAttentionConfig
from sah.sparse_attention.kernels.fused import fused_attention
from sah.sparse_attention.kernels.grouped import grouped_attention
from sah.sparse_attention.kernels.lists import attend_lists
from sah.sparse_attention.kernels.shared import (
    attend_dense_mask,
    attend_everything,
    attend_shared_lists,
    row_pieces,
)
from sah.sparse_attention.kernels.workspace import Workspace
from sah.sparse_attention.key_lists import KeyLists
from sah.sparse_attention.lanes import LaneStates
from sah.sparse_attention.mask import Mask, gather_last
from sah.sparse_attention.research import ResearchAttention
from sah.sparse_attention.shared import SharedStates
from sah.sparse_attention.times import now


class EfficientAttention(ResearchAttention):
    """Runs one query a row (decode) over gathered keys and values.

    The maskers choose lists, so that no mask, weight or probability of size kv_len is built beyond the scores that a
    method itself needs. Chunks of several queries choose their keys the same way and attend through a fused kernel
    with a dense mask, and so does a decoded query whose mask a masker left dense (padding, or a sample of nearly all
    keys). No attention weights are returned and no gradient is promised: take `ResearchAttention` for
    either.

    Args:
        config: The recipe and the seed.

    Raises:
        ConfigError: If the recipe cannot be run.
    """

    chooses_indices = True

    def __init__(self, config: MaskedAttentionConfig) -> None:
        super().__init__(config)
        self.workspace = Workspace()

    @torch.no_grad()
    def custom_attention(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Compute attention over the recipe's mask; see `SparseAttention.custom_attention`.

        Raises:
            ConfigError: If a query that may read keys keeps none, or attention weights are asked for.
        """
        if kwargs.get("output_attentions"):
            raise ConfigError(
                "execution=efficient was asked for attention weights (output_attentions=True), which it does not "
                "compute. Allowed: auto or research. Write execution=auto, or AutoAttentionConfig(...)"
            )
        return super().custom_attention(*args, **kwargs)

    @torch.no_grad()
    def attend_lanes(
        self,
        module: torch.nn.Module | None,
        queries: torch.Tensor,
        keys: SharedStates,
        values: SharedStates,
        scaling: float,
        states: LaneStates,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Compute attention for rows of several lanes, over the context at once; see `SparseAttention.attend_lanes`.

        A layer whose recipe holds a masker that cannot do so takes the lanes one by one.
        """
        layer_idx = kwargs["layer_idx"]
        if not all(masker.works_in_lanes for masker in self.recipe_of(layer_idx)):
            return super().attend_lanes(module, queries, keys, values, scaling, states, **kwargs)
        pieces = []
        for piece in row_pieces(queries, keys):
            arguments = (queries[piece], keys.of_rows(piece), values.of_rows(piece), scaling)
            pieces.append(self._attend_rows(*arguments, states, states.of_rows(piece), **kwargs))
        return torch.cat(pieces).squeeze(2)

    def _attend_rows(
        self,
        queries: torch.Tensor,
        keys: SharedStates,
        values: SharedStates,
        scaling: float,
        states: LaneStates,
        meta_data: dict[Any, Any],
        **kwargs: Any,
    ) -> torch.Tensor:
        """Return (rows, heads, 1, value_dim)."""
        layer_idx = kwargs["layer_idx"]
        errors = states.errors
        looked_at = None if errors is None else chosen_rows(errors, keys.lanes, layer_idx)
        if looked_at is not None and len(looked_at):
            # The output is needed here and now.
            values = values.deferring(None)
        begun = now(queries.device)[0]
        allowed = keys.allowed()
        recipe = self.recipe_of(layer_idx)
        mask = self.build_mask(queries, keys, values, allowed, scaling, 0.0, meta_data, **kwargs)
        chosen = now(queries.device)[0]
        kept = mask.count_listed() if mask.has_indices else mask.count(allowed)
        self.check_kept(kept, layer_idx)
        states.record(layer_idx, keys, kept, dense=not recipe)
        sinks, softcap = kwargs.get("s_aux"), kwargs.get("softcap")
        if mask.is_full:
            output = attend_everything(queries, keys, values, scaling, sinks=sinks, softcap=softcap)
        elif mask.has_indices:
            output = attend_shared_lists(
                queries, keys, values, mask.spans, mask.lists, scaling, self.workspace, sinks=sinks, softcap=softcap
            )
        else:
            inclusion = mask.inclusion(allowed)
            output = attend_dense_mask(queries, keys, values, inclusion, scaling, sinks=sinks, softcap=softcap)
        states.together_seconds.add(keys.lanes, chosen - begun, now(queries.device)[0] - chosen)
        if errors is not None and looked_at is not None and len(looked_at):
            observe_rows(errors, looked_at, output, queries, keys, values, mask, scaling, **kwargs)
        return output

    def attend(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        mask: Mask,
        allowed: torch.Tensor,
        scaling: float,
        dropout: float,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend over a mask, reading at decode nothing that it does not keep; see `ResearchAttention.attend`."""
        sinks, softcap = kwargs.get("s_aux"), kwargs.get("softcap")
        special = sinks is not None or softcap is not None
        lists_fit = queries.shape[2] == 1 and mask.has_indices
        if dropout > 0 or (special and not lists_fit):
            return super().attend(queries, keys, values, mask, allowed, scaling, dropout, **kwargs)
        everything = bool(allowed.all())
        if queries.shape[2] == 1 and mask.is_full and everything:
            return grouped_attention(queries, keys, values, None, scaling).transpose(1, 2).contiguous(), None
        if not lists_fit:
            output = fused_attention(queries, keys, values, mask.to_dense() * allowed, scaling)
            return output.transpose(1, 2).contiguous(), None
        spans, lists = mask.spans, mask.lists
        if not everything:
            indices, probabilities = mask.to_indices()
            spans, lists = (), (KeyLists(indices, probabilities * gather_last(allowed, indices)),)
        output = attend_lists(
            queries, keys, values, spans, lists, scaling, self.workspace, sinks=sinks, softcap=softcap
        )
        return output.transpose(1, 2).contiguous(), None
