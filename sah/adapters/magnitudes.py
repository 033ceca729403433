"""Adds up the magnitudes of a model's queries and keys while it reads a text."""

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

Magnitudes = dict[int, tuple[torch.Tensor, torch.Tensor]]
"""Layer to the sums over tokens of |q|, (heads, head_dim), and of |k|, (kv_heads, head_dim), float32."""


class _Recorder(SparseAttention):
    """Attends densely, and adds up |q| and |k| of every layer that attends to the whole sequence."""

    def __init__(self) -> None:
        self.sums: Magnitudes = {}

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
        """Attend densely and record; see `SparseAttention.custom_attention`."""
        layer = kwargs["layer_idx"]
        new = (queries, keys[:, :, -queries.shape[2] :])
        of_queries, of_keys = (states.float().abs().sum(dim=(0, 2)) for states in new)
        if layer in self.sums:
            of_queries, of_keys = self.sums[layer][0] + of_queries, self.sums[layer][1] + of_keys
        self.sums[layer] = (of_queries, of_keys)
        allowed = allowed_keys(attention_mask, queries, keys).float()
        sinks, softcap = kwargs.get("s_aux"), kwargs.get("softcap")
        output, _ = masked_attention(queries, keys, values, allowed, scaling, sinks=sinks, softcap=softcap)
        return output.transpose(1, 2).contiguous(), None


@torch.no_grad()
def record_magnitudes(
    adapter: ModelAdapterHF, ids: torch.Tensor, advance: Callable[[int], None] = lambda tokens: None
) -> Magnitudes:
    """Run a text through a model, dense, and add up |q| and |k| as attention sees them.

    The keys and queries are those after the rotary embedding. Attention is our own plain form, which every loaded
    implementation equals within rounding, so that eager, SDPA and flash attention are recorded alike.

    Args:
        adapter: The model. Whatever mode it is in, it is in again afterwards.
        ids: The text's tokens, int64 (length,).
        advance: Told the number of tokens of each chunk when it is done.

    Returns:
        The sums of every layer that attends to the whole sequence.
    """
    recorder, name = _Recorder(), switch.unique_name()
    device = adapter.model.get_input_embeddings().weight.device
    past = new_cache(adapter.model.config)
    switch.register(name, switch.attention_function(recorder))
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
    return recorder.sums
