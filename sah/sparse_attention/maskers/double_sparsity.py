"""Double Sparsity: top-k by approximate scores over a few calibrated channels.

Based on "Post-Training Sparse Attention with Double Sparsity" (Yang et al. 2024, arXiv 2408.07092). Labels are the
entries of a key in the head_dim / group_factor channels that matter most, chosen for each layer and KV head by
calibration; scores are dot products over these channels alone.
Deviations: channels are chosen for each KV head, not for each query head; queries are not rounded. Labels are rounded
to `label_bits` bits and held in the keys' own type, not packed.
State: labels, 1 / group_factor of the keys' bytes; built once for a context, key by key behind it.
Bytes read per decoded token: all labels, and the keys and values kept.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch

from sah.errors import ConfigError, bad_value
from sah.sparse_attention.kernels.scores import attention_logits
from sah.sparse_attention.key_lists import to_heads
from sah.sparse_attention.key_state import KeyStateMasker
from sah.sparse_attention.labels import rounded_labels
from sah.sparse_attention.maskers.base import KeyScoreMasker
from sah.sparse_attention.maskers.double_sparsity_config import DoubleSparsityTopKMaskerConfig
from sah.sparse_attention.shared import SharedStates, States


class DoubleSparsityTopKMasker(KeyStateMasker, KeyScoreMasker):
    """Adds the residual keys with the largest scores over the most important channels."""

    config: DoubleSparsityTopKMaskerConfig
    works_in_lanes = True
    is_linear = True
    needs_channels = True
    _order: dict[int, torch.Tensor] | None = None

    def use_channels(self, order: dict[int, torch.Tensor]) -> None:
        """Take the order of the channels.

        Args:
            order: For each layer the channels of each KV head, most important first, (kv_heads, head_dim), int64.
        """
        self._order = order

    def state_identity(self) -> Hashable:
        """Return what the labels depend on; see `KeyStateMasker.state_identity`."""
        config = self.config
        return (config.name, config.group_factor, config.label_bits, config.channels)

    def derive(self, keys: torch.Tensor, fitted: Any, layer_idx: int) -> torch.Tensor:
        """Return the labels, (batch, kv_heads, n, width)."""
        chosen = self._chosen(keys, layer_idx)
        labels = keys.gather(3, chosen[None, :, None].expand(keys.shape[0], -1, keys.shape[2], -1))
        bits = self.config.label_bits
        return labels if bits is None else rounded_labels(labels, bits)

    def scores(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        scaling: float,
        sparse_meta_data: dict[Any, Any],
        **kwargs: Any,
    ) -> torch.Tensor:
        """Score over the chosen channels, labels made from scratch; see `KeyScoreMasker.scores`."""
        layer_idx = kwargs["layer_idx"]
        return attention_logits(self._of_queries(queries, keys, layer_idx), self.derive(keys, None, layer_idx), scaling)

    def fast_scores(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        scaling: float,
        sparse_meta_data: dict[Any, Any],
        **kwargs: Any,
    ) -> torch.Tensor:
        """Score over the labels that the state holds; plain twin: `scores`."""
        layer_idx = kwargs["layer_idx"]
        if isinstance(keys, SharedStates):
            context, own = self.lane_state(keys, sparse_meta_data, layer_idx)
            short = self._of_queries(queries, keys, layer_idx)
            return attention_logits(short, keys.with_states(context.units, own), scaling)
        _, segments = self.key_state(keys, sparse_meta_data, layer_idx, queries.shape[2])
        short = self._of_queries(queries, keys, layer_idx)
        return torch.cat([attention_logits(short, labels, scaling) for labels in segments], dim=-1)

    def _of_queries(self, queries: torch.Tensor, keys: States, layer_idx: int) -> torch.Tensor:
        """Take the chosen channels of each query, (batch, heads, q_len, width)."""
        chosen = to_heads(self._chosen(keys, layer_idx)[None], queries.shape[1])
        return queries.gather(3, chosen.unsqueeze(2).expand(queries.shape[0], queries.shape[1], queries.shape[2], -1))

    def _chosen(self, keys: States, layer_idx: int) -> torch.Tensor:
        """Return the channels that labels hold, (kv_heads, width)."""
        order = (self._order or {}).get(layer_idx)
        if order is None:
            raise ConfigError(
                f"{self.config.key('channels')}: there is no order of channels for layer {layer_idx}. Run the recipe "
                f"through an adapter, which calibrates them, or write {self.config.key('channels')}=<file.safetensors>"
            )
        head_dim, factor = keys.shape[3], self.config.group_factor
        if factor > head_dim:
            key = self.config.key("group_factor")
            raise bad_value(key, factor, f"1 to the model's head_dim of {head_dim}", f"{key}=8")
        width = head_dim // factor
        return order[:, :width].to(keys.device)
