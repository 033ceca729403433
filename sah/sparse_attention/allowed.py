"""Which keys causality and padding allow, read once from whatever mask the model hands over."""

from __future__ import annotations

import torch


def allowed_keys(attention_mask: torch.Tensor | None, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Turn an attention mask into a boolean one.

    Args:
        attention_mask: Boolean (True is allowed) or additive (very negative is forbidden), broadcastable to
            (batch, heads, q_len, kv_len); or None for plain causality, the last query standing at the last key.
        queries: (batch, heads, q_len, head_dim).
        keys: (batch, kv_heads, kv_len, head_dim).

    Returns:
        Boolean (batch or 1, heads or 1, q_len, kv_len).

    Raises:
        ValueError: If an additive mask holds anything but 0 and very negative numbers.
    """
    q_len, kv_len = queries.shape[2], keys.shape[2]
    if attention_mask is None:
        last = torch.arange(kv_len - q_len, kv_len, device=keys.device)
        return (torch.arange(kv_len, device=keys.device) <= last[:, None])[None, None]
    mask = attention_mask[..., :kv_len]
    if mask.dtype != torch.bool:
        allowed = mask > torch.finfo(mask.dtype).min / 2
        if bool((mask.masked_fill(~allowed, 0.0) != 0).any()):
            raise ValueError(
                "attention_mask holds biases, which sparse attention does not add: give 0 or very negative"
            )
        mask = allowed
    return mask.expand(-1, -1, q_len, kv_len)
