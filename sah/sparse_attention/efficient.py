"""`EfficientAttention`: the same recipe, reading at decode only what the mask keeps."""

from __future__ import annotations

from typing import Any

import torch

from sah.sparse_attention.allowed import allowed_keys
from sah.sparse_attention.kernels.gather import gathered_attention
from sah.sparse_attention.mask import gather_last
from sah.sparse_attention.research import ResearchAttention, attend_densely, record_density


class EfficientAttention(ResearchAttention):
    """Runs one query a row (decode) over gathered keys and values.

    The maskers choose index lists, so that no mask, weight or probability of size kv_len is built beyond the scores
    (or, for uniform sampling, the random numbers) that a method itself needs. Chunks of several queries choose their
    keys the same way and attend through the plain masked form. No attention weights are returned at decode and no
    gradient is promised: take `ResearchAttention` for either.
    """

    chooses_indices = True

    def custom_attention(
        self,
        module: torch.nn.Module | None,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float,
        dropout: float,
        sparse_meta_data: dict[Any, Any],
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Compute attention over the recipe's mask; see `SparseAttention.custom_attention`.

        Raises:
            ConfigError: If a query that may read keys keeps none.
        """
        allowed = allowed_keys(attention_mask, queries, keys)
        mask = self.build_mask(queries, keys, values, allowed, scaling, dropout, sparse_meta_data, **kwargs)
        if queries.shape[2] > 1 or mask.is_full or dropout > 0:
            return attend_densely(queries, keys, values, mask, allowed, scaling, dropout, sparse_meta_data, **kwargs)
        indices, probabilities = mask.to_indices()
        probabilities = probabilities * gather_last(allowed, indices)
        record_density(sparse_meta_data, kwargs["layer_idx"], (probabilities > 0).sum(-1), allowed.sum(-1))
        output = gathered_attention(
            queries,
            keys,
            values,
            indices.squeeze(2),
            probabilities.squeeze(2),
            scaling,
            sinks=kwargs.get("s_aux"),
            softcap=kwargs.get("softcap"),
        )
        return output.transpose(1, 2).contiguous(), None
