"""Lets a model read a text, dense, and shows the queries and keys that its attention sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from sah.adapters import attention_switch as switch
from sah.adapters.kv_cache import new_cache
from sah.sparse_attention.allowed import allowed_keys
from sah.sparse_attention.base import SparseAttention
from sah.sparse_attention.kernels.masked import masked_attention

if TYPE_CHECKING:
    from sah.adapters.huggingface import ModelAdapterHF

CHUNK_TOKENS = 128
"""Tokens of one model call; bounds the attention weights that are held at once."""

See = Callable[[int, torch.Tensor, torch.Tensor], None]
"""Is shown a layer, its queries of a chunk (1, heads, n, head_dim), and the keys of the same tokens (1, kv_heads, n,
head_dim), after the rotary embedding."""


class _Reader(SparseAttention):
    """Attends densely, and shows every layer that attends to the whole sequence."""

    def __init__(self, see: See) -> None:
        self._see = see

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
        """Attend densely and show; see `SparseAttention.custom_attention`."""
        self._see(kwargs["layer_idx"], queries, keys[:, :, -queries.shape[2] :])
        allowed = allowed_keys(attention_mask, queries, keys).float()
        sinks, softcap = kwargs.get("s_aux"), kwargs.get("softcap")
        output, _ = masked_attention(queries, keys, values, allowed, scaling, sinks=sinks, softcap=softcap)
        return output.transpose(1, 2).contiguous(), None


@torch.no_grad()
def read_text(
    adapter: ModelAdapterHF, ids: torch.Tensor, see: See, advance: Callable[[int], None] = lambda tokens: None
) -> None:
    """Run a text through a model, dense, chunk by chunk.

    Attention is our own plain form, which every loaded implementation equals within rounding, so that eager, SDPA and
    flash attention show the same.

    Args:
        adapter: The model. Whatever mode it is in, it is in again afterwards.
        ids: The text's tokens, int64 (length,).
        see: Is shown every chunk of every layer that attends to the whole sequence.
        advance: Told the number of tokens of each chunk when it is done.
    """
    name = switch.unique_name()
    device = adapter.model.get_input_embeddings().weight.device
    past = new_cache(adapter.model.config)
    switch.register(name, switch.attention_function(_Reader(see)))
    try:
        with switch.switched(switch.implementations(adapter.model), name):
            for start in range(0, len(ids), CHUNK_TOKENS):
                chunk = ids[start : start + CHUNK_TOKENS]
                adapter.model(
                    input_ids=chunk[None].to(device),
                    position_ids=torch.arange(start, start + len(chunk), device=device)[None],
                    past_key_values=past,
                    use_cache=True,
                    logits_to_keep=1,
                    sparse_meta_data={},
                )
                advance(len(chunk))
    finally:
        switch.unregister(name)
