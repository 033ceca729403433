"""HashAttention: top-k by the agreement of learned bit signatures.

Based on "HashAttention: Semantic Sparsity for Faster Inference" (Desai et al. 2024, arXiv 2412.14468). Two small
networks a layer and head, one of queries and one of keys, give `bits` numbers, whose signs are the signature; they are
trained so that keys with much attention agree with the query in many bits. The score of a key is the number of bits in
which it agrees with the query. With `selection: group` the agreements of a KV head's query heads are combined as
`group_score` says.

Deviations: networks may have a head for each KV head instead of each query head, and for keys those trained here do: a
signature a KV head then serves all its query heads. The paper leaves open which of equal scores is kept; here it is the
earlier key, in both executions. Sinks and the local window, which the paper keeps besides, are not part of this masker:
put `sink` and `local` before it.
State: packed signatures, bits / 8 bytes a key and KV head (a key and query head, where keys have a network for each);
built once for a context, key by key behind it.
Bytes read per decoded token: all signatures, and the keys and values kept.

The networks run in float64, so that no rounding decides on a bit: signatures built key by key equal those built at
once. Bits carry no gradient.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch

from sah.errors import ConfigError
from sah.sparse_attention.hash_weights import HashLayer, HeadwiseLinear, mapped
from sah.sparse_attention.kernels.signatures import agreements, packed
from sah.sparse_attention.key_lists import to_heads
from sah.sparse_attention.key_state import KeyStateMasker
from sah.sparse_attention.maskers.base import KeyScoreMasker
from sah.sparse_attention.maskers.hash_attention_config import HashAttentionTopKMaskerConfig
from sah.sparse_attention.shared import SharedStates, States

BLOCK_NUMBERS = 1 << 22
"""Numbers that the widest map of a network gives at once."""


class HashAttentionTopKMasker(KeyStateMasker, KeyScoreMasker):
    """Adds the residual keys whose signatures agree most with the query's."""

    config: HashAttentionTopKMaskerConfig
    works_in_lanes = True
    earlier_first = True
    needs_hash_weights = True

    def __init__(self, config: HashAttentionTopKMaskerConfig, key: str = "", seed: int = 0) -> None:
        super().__init__(config, key, seed)
        self._layers: dict[int, HashLayer] = {}

    def use_hash_weights(self, layers: dict[int, HashLayer]) -> None:
        """Take the networks.

        Args:
            layers: Of each layer.
        """
        self._layers = {
            number: HashLayer(_converted(layer.query, torch.float64), _converted(layer.key, torch.float64))
            for number, layer in layers.items()
        }

    def state_identity(self) -> Hashable:
        """Return what the signatures depend on; see `KeyStateMasker.state_identity`."""
        return (self.config.name, self.config.bits, self.config.weights)

    @torch.no_grad()
    def derive(self, keys: torch.Tensor, fitted: Any, layer_idx: int) -> torch.Tensor:
        """Return the packed signatures, uint8, (batch, kv_heads, n, width), a key's for several heads side by side."""
        layer = self._layer(keys, layer_idx)
        batch, kv_heads, length, _ = keys.shape
        each = layer.key[0].weight.shape[0] // kv_heads
        found = torch.empty(batch, kv_heads, length, each, self.config.bits // 8, dtype=torch.uint8, device=keys.device)
        widest = max(linear.weight.shape[2] for linear in layer.key)
        step = max(1, BLOCK_NUMBERS // (batch * kv_heads * each * widest))
        for start in range(0, length, step):
            bits = bits_of_keys(keys[:, :, start : start + step], layer)
            found[:, :, start : start + step] = (
                packed(bits).view(batch, kv_heads, each, -1, self.config.bits // 8).transpose(2, 3)
            )
        return found.flatten(3)

    @torch.no_grad()
    def scores(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        scaling: float,
        sparse_meta_data: dict[Any, Any],
        **kwargs: Any,
    ) -> torch.Tensor:
        """Count agreements bit by bit, bits made from scratch; see `KeyScoreMasker.scores`."""
        layer = self._layer(keys, kwargs["layer_idx"], queries)
        asked, held = bits_of_queries(queries, layer), to_heads(bits_of_keys(keys, layer), queries.shape[1])
        agreeing = torch.zeros(*queries.shape[:3], keys.shape[2], device=queries.device)
        for bit in range(self.config.bits):
            agreeing += asked[..., bit].unsqueeze(3) == held[..., bit].unsqueeze(2)
        return agreeing

    def fast_scores(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        scaling: float,
        sparse_meta_data: dict[Any, Any],
        **kwargs: Any,
    ) -> torch.Tensor:
        """Count agreements over the packed signatures that the state holds; plain twin: `scores`."""
        return self._agreements(queries, keys, sparse_meta_data, kwargs["layer_idx"], mean_of_group=False)

    def group_scores(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        attention_mask: torch.Tensor,
        scaling: float,
        sparse_meta_data: dict[Any, Any],
        **kwargs: Any,
    ) -> torch.Tensor:
        """Average agreements while they are counted, where the mean is asked for; see `KeyScoreMasker.group_scores`."""
        if self.config.group_score != "mean":
            return super().group_scores(queries, keys, attention_mask, scaling, sparse_meta_data, **kwargs)
        return self._agreements(queries, keys, sparse_meta_data, kwargs["layer_idx"], mean_of_group=True)

    @torch.no_grad()
    def _agreements(
        self,
        queries: torch.Tensor,
        keys: States,
        sparse_meta_data: dict[Any, Any],
        layer_idx: int,
        *,
        mean_of_group: bool,
    ) -> torch.Tensor:
        asked = packed(bits_of_queries(queries, self._layer(keys, layer_idx, queries)))
        if isinstance(keys, SharedStates):
            context, own = self.lane_state(keys, sparse_meta_data, layer_idx)
            segments = [context.units, keys.with_states(context.units, own).own_rows()]
        else:
            _, segments = self.key_state(keys, sparse_meta_data, layer_idx, queries.shape[2])
        return agreements(asked, segments, mean_of_group=mean_of_group)

    def _layer(self, keys: States, layer_idx: int, queries: torch.Tensor | None = None) -> HashLayer:
        """Return the networks of a layer where its keys lie, after a check that they fit."""
        key, bits = self.config.key("weights"), self.config.bits
        layer = self._layers.get(layer_idx)
        if layer is None:
            raise ConfigError(
                f"{key}: there are no networks for layer {layer_idx}. Run the recipe through an adapter, which loads "
                f"those that python -m sah.train_hash model=<model> bits={bits} trained for its model, or write "
                f"{key}=<file.safetensors>"
            )
        kv_heads, head_dim = keys.shape[1], keys.shape[3]
        heads = queries.shape[1] if queries is not None else None
        for side, maps in (("queries", layer.query), ("keys", layer.key)):
            own, inputs, outputs = maps[0].weight.shape[0], maps[0].weight.shape[1], maps[-1].weight.shape[2]
            fits = own % kv_heads == 0 if heads is None else own in (heads, kv_heads)
            if not fits or inputs != head_dim or outputs != bits:
                raise ConfigError(
                    f"{key}={self.config.weights!r}: in layer {layer_idx} the networks of {side} are for {own} heads "
                    f"of head_dim {inputs} and give {outputs} bits, but the model has {kv_heads} KV heads"
                    f"{f' and {heads} query heads' if heads else ''} of head_dim {head_dim}, and "
                    f"{self.config.key('bits')} is {bits}. Allowed: networks of as many bits, and as many heads as the "
                    f"model has. Write {self.config.key('bits')}={outputs} if only that differs, or train others: "
                    f"python -m sah.train_hash model=<model> bits={bits}"
                )
        if layer.key[0].weight.device != keys.device:
            layer = HashLayer(_converted(layer.query, keys.device), _converted(layer.key, keys.device))
            self._layers[layer_idx] = layer
        return layer


def bits_of_keys(keys: torch.Tensor, layer: HashLayer) -> torch.Tensor:
    """Map keys to bits.

    Args:
        keys: (batch, kv_heads, n, head_dim).
        layer: The networks, those of keys for each KV head or each query head.

    Returns:
        Boolean, (batch, kv_heads or heads, n, bits).
    """
    return mapped(to_heads(keys, layer.key[0].weight.shape[0]), layer.key) > 0


def bits_of_queries(queries: torch.Tensor, layer: HashLayer) -> torch.Tensor:
    """Map queries to bits.

    Args:
        queries: (batch, heads, q_len, head_dim).
        layer: The networks, those of queries for each KV head or each query head.

    Returns:
        Boolean, (batch, heads, q_len, bits).
    """
    batch, heads, q_len, head_dim = queries.shape
    together = queries.reshape(batch, layer.query[0].weight.shape[0], -1, head_dim)
    return (mapped(together, layer.query) > 0).view(batch, heads, q_len, -1)


def _converted(maps: tuple[HeadwiseLinear, ...], to: torch.dtype | torch.device) -> tuple[HeadwiseLinear, ...]:
    return tuple(HeadwiseLinear(part.weight.to(to), part.bias.to(to)) for part in maps)
