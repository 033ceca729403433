"""`EfficientAttention`: the same recipe, reading at decode only what the mask keeps."""

from __future__ import annotations

from typing import Any

import torch

from sah.errors import ConfigError
from sah.sparse_attention.config import MaskedAttentionConfig
from sah.sparse_attention.kernels.fused import fused_attention
from sah.sparse_attention.kernels.grouped import grouped_attention
from sah.sparse_attention.kernels.lists import attend_lists
from sah.sparse_attention.kernels.workspace import Workspace
from sah.sparse_attention.key_lists import KeyLists
from sah.sparse_attention.mask import Mask, gather_last
from sah.sparse_attention.research import ResearchAttention


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
