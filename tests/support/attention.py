"""Inputs, a naive reference, and the matrix of recipes and shapes that every masker is tested over."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from sah.sparse_attention import (
    AdaptiveSamplingMaskerConfig,
    CausalMaskerConfig,
    DoubleSparsityTopKMaskerConfig,
    EfficientAttention,
    EfficientAttentionConfig,
    H2OMaskerConfig,
    HashAttentionTopKMaskerConfig,
    LocalMaskerConfig,
    MagicPigConfig,
    PQCacheConfig,
    QuestTopKMaskerConfig,
    RandomSamplingMaskerConfig,
    ResearchAttention,
    ResearchAttentionConfig,
    SinkMaskerConfig,
    SnapKVMaskerConfig,
    SocketMaskerConfig,
    StreamingLLMMaskerConfig,
    TopKMaskerConfig,
    TopPMaskerConfig,
    TOVAMaskerConfig,
)
from sah.sparse_attention.hash_weights import HashLayer, HeadwiseLinear
from sah.sparse_attention.key_state import CONTEXT_STATE_KEY
from sah.sparse_attention.observe import observation_key

Recipe = Callable[[], list[Any]]

# Every masker with an easy and a hard setting, then recipes of several.
RECIPES: dict[str, Recipe] = {
    "causal": lambda: [CausalMaskerConfig()],
    "sink-easy": lambda: [SinkMaskerConfig(sink_size=0.5)],
    "sink-hard": lambda: [SinkMaskerConfig(sink_size=1)],
    "local-easy": lambda: [LocalMaskerConfig(window_size=0.5)],
    "local-hard": lambda: [LocalMaskerConfig(window_size=1)],
    "streaming_llm-easy": lambda: [StreamingLLMMaskerConfig(density=0.5)],
    "streaming_llm-hard": lambda: [StreamingLLMMaskerConfig(sink_size=0, window_size=2)],
    "topk-easy": lambda: [TopKMaskerConfig(density=0.5)],
    "topk-hard": lambda: [TopKMaskerConfig(heavy_size=1)],
    "topp-easy": lambda: [TopPMaskerConfig(top_p=0.9)],
    "topp-hard": lambda: [TopPMaskerConfig(top_p=0.05)],
    "random-easy": lambda: [RandomSamplingMaskerConfig(sampling_rate=0.5)],
    "random-hard": lambda: [RandomSamplingMaskerConfig(sampling_rate=1)],
    "random-group": lambda: [RandomSamplingMaskerConfig(density=0.3, selection="group")],
    "adaptive-easy": lambda: [AdaptiveSamplingMaskerConfig(base_rate=0.1, base_min=2, epsilon=0.5, delta=0.2)],
    "adaptive-hard": lambda: [AdaptiveSamplingMaskerConfig(base_rate=1)],
    "adaptive-numerator": lambda: [
        AdaptiveSamplingMaskerConfig(base_rate=4, epsilon=0.9, delta=0.5, guarantee="numerator")
    ],
    "adaptive-output": lambda: [AdaptiveSamplingMaskerConfig(base_rate=9, epsilon=0.9, guarantee="output")],
    "adaptive-group": lambda: [AdaptiveSamplingMaskerConfig(base_min=9, epsilon=0.4, delta=0.2, selection="group")],
    "sink+local+topk+adaptive": lambda: [
        SinkMaskerConfig(),
        LocalMaskerConfig(window_size=4),
        TopKMaskerConfig(heavy_size=0.1),
        AdaptiveSamplingMaskerConfig(base_min=5, epsilon=0.2),
    ],
    "sink+topk+adaptive-group": lambda: [
        SinkMaskerConfig(),
        TopKMaskerConfig(heavy_size=5, selection="group"),
        AdaptiveSamplingMaskerConfig(base_rate=9, epsilon=0.3, guarantee="output", selection="group"),
        LocalMaskerConfig(window_size=4),
    ],
    "topk-group": lambda: [TopKMaskerConfig(density=0.3, selection="group")],
    "topk-group-max": lambda: [TopKMaskerConfig(heavy_size=3, selection="group", group_score="max")],
    "topp-group": lambda: [TopPMaskerConfig(top_p=0.7, selection="group")],
    "quest-easy": lambda: [QuestTopKMaskerConfig(density=0.5, page_size=4)],
    "quest-hard": lambda: [QuestTopKMaskerConfig(heavy_size=7, page_size=16, label_bits=6)],
    "quest-group": lambda: [QuestTopKMaskerConfig(density=0.3, page_size=4, selection="group")],
    "quest-group-softmax": lambda: [
        QuestTopKMaskerConfig(heavy_size=20, page_size=3, selection="group", group_score="softmax_mean")
    ],
    "magicpig-easy": lambda: [MagicPigConfig(lsh_l=20, lsh_k=2)],
    "magicpig-hard": lambda: [MagicPigConfig(lsh_l=40, lsh_k=6)],
    "magicpig-rare": lambda: [MagicPigConfig(lsh_l=3, lsh_k=18, min_matches=1, center=False)],
    "sink+local+magicpig": lambda: [
        SinkMaskerConfig(),
        LocalMaskerConfig(window_size=8),
        MagicPigConfig(lsh_l=40, lsh_k=6),
    ],
    "topk+magicpig+local": lambda: [
        TopKMaskerConfig(heavy_size=5),
        MagicPigConfig(lsh_l=30, lsh_k=5),
        LocalMaskerConfig(window_size=4),
    ],
    "double_sparsity-easy": lambda: [DoubleSparsityTopKMaskerConfig(density=0.5, group_factor=2, label_bits=None)],
    "double_sparsity-hard": lambda: [DoubleSparsityTopKMaskerConfig(heavy_size=3, group_factor=4, label_bits=6)],
    "double_sparsity-group": lambda: [DoubleSparsityTopKMaskerConfig(density=0.2, group_factor=2, selection="group")],
    "pqcache-easy": lambda: [PQCacheConfig(density=0.5)],
    "pqcache-hard": lambda: [PQCacheConfig(heavy_size=3, subvectors=4, bits=3, iterations=2, metric="inner_product")],
    "pqcache-group": lambda: [PQCacheConfig(density=0.2, bits=5, selection="group")],
    "sink+local+pqcache-group": lambda: [
        SinkMaskerConfig(),
        LocalMaskerConfig(window_size=9),
        PQCacheConfig(density=0.4, bits=8, selection="group", group_score="max"),
    ],
    "hash_attention-easy": lambda: [HashAttentionTopKMaskerConfig(density=0.5, bits=8)],
    "hash_attention-hard": lambda: [HashAttentionTopKMaskerConfig(heavy_size=3, bits=24)],
    "hash_attention-group": lambda: [HashAttentionTopKMaskerConfig(density=0.3, selection="group")],
    "hash_attention-group-max": lambda: [
        HashAttentionTopKMaskerConfig(heavy_size=7, bits=128, selection="group", group_score="max")
    ],
    "sink+local+hash_attention": lambda: [
        SinkMaskerConfig(),
        LocalMaskerConfig(window_size=9),
        HashAttentionTopKMaskerConfig(density=0.4, bits=16, selection="group", group_score="softmax_mean"),
    ],
    "socket-easy": lambda: [SocketMaskerConfig(density=0.5, planes=4, tables=20)],
    "socket-hard": lambda: [SocketMaskerConfig(heavy_size=3, planes=9, tables=3, tau=0.1)],
    "socket-group": lambda: [SocketMaskerConfig(density=0.2, tables=10, selection="group")],
    "sink+local+socket-group": lambda: [
        SinkMaskerConfig(),
        LocalMaskerConfig(window_size=9),
        SocketMaskerConfig(density=0.4, planes=5, tables=8, selection="group", group_score="max"),
    ],
    "h2o-easy": lambda: [H2OMaskerConfig(density=0.5)],
    "h2o-hard": lambda: [H2OMaskerConfig(heavy_size=3, recent=1)],
    "h2o-query_aware": lambda: [H2OMaskerConfig(density=0.2, recent=2, query_aware=True)],
    "snapkv-easy": lambda: [SnapKVMaskerConfig(density=0.5, window=8, kernel=1)],
    "snapkv-hard": lambda: [SnapKVMaskerConfig(budget=9, window=4, kernel=3)],
    "snapkv-query_aware": lambda: [SnapKVMaskerConfig(density=0.2, query_aware=True)],
    "tova-easy": lambda: [TOVAMaskerConfig(density=0.5)],
    "tova-hard": lambda: [TOVAMaskerConfig(budget=4)],
    "tova-query_aware": lambda: [TOVAMaskerConfig(density=0.2, query_aware=True)],
    "sink+local+h2o": lambda: [
        SinkMaskerConfig(),
        LocalMaskerConfig(window_size=5),
        H2OMaskerConfig(density=0.3, recent=8),
    ],
    "topk+tova+local": lambda: [
        TopKMaskerConfig(heavy_size=3),
        TOVAMaskerConfig(density=0.3),
        LocalMaskerConfig(window_size=4),
    ],
    "snapkv+topk": lambda: [SnapKVMaskerConfig(budget=6, window=3, kernel=1), TopKMaskerConfig(density=0.3)],
    "sink+local+quest": lambda: [
        SinkMaskerConfig(),
        LocalMaskerConfig(window_size=9),
        QuestTopKMaskerConfig(density=0.4, page_size=4),
    ],
    "topk+streaming_llm+quest": lambda: [
        TopKMaskerConfig(heavy_size=3),
        StreamingLLMMaskerConfig(density=0.2),
        QuestTopKMaskerConfig(heavy_size=6, page_size=4),
    ],
    "sink+local+double_sparsity-group": lambda: [
        SinkMaskerConfig(),
        LocalMaskerConfig(window_size=9),
        DoubleSparsityTopKMaskerConfig(density=0.4, group_factor=4, selection="group", group_score="max"),
    ],
    "topk+quest": lambda: [TopKMaskerConfig(heavy_size=5), QuestTopKMaskerConfig(heavy_size=9, page_size=4)],
    "sink+local": lambda: [SinkMaskerConfig(), LocalMaskerConfig(window_size=8)],
    "local+sink": lambda: [LocalMaskerConfig(window_size=8), SinkMaskerConfig()],
    "sink+local+topk": lambda: [SinkMaskerConfig(), LocalMaskerConfig(window_size=8), TopKMaskerConfig(density=0.3)],
    "sink+local+topp": lambda: [SinkMaskerConfig(), LocalMaskerConfig(window_size=3), TopPMaskerConfig(top_p=0.6)],
    "sink+local+random": lambda: [
        SinkMaskerConfig(),
        LocalMaskerConfig(window_size=8),
        RandomSamplingMaskerConfig(density=0.4),
    ],
    "topk+random": lambda: [TopKMaskerConfig(heavy_size=5), RandomSamplingMaskerConfig(sampling_rate=0.2)],
    "topk+streaming_llm": lambda: [TopKMaskerConfig(heavy_size=5), StreamingLLMMaskerConfig(density=0.2)],
    "topk+random+local": lambda: [
        TopKMaskerConfig(heavy_size=5),
        RandomSamplingMaskerConfig(sampling_rate=0.1),
        LocalMaskerConfig(window_size=4),
    ],
}

# Each of these must give exactly dense attention.
DENSE_RECIPES: dict[str, Recipe] = {
    "all:causal": lambda: [CausalMaskerConfig()],
    "all:sink-1.0": lambda: [SinkMaskerConfig(sink_size=1.0)],
    "all:sink-above": lambda: [SinkMaskerConfig(sink_size=5000)],
    "all:local-1.0": lambda: [LocalMaskerConfig(window_size=1.0)],
    "all:local-above": lambda: [LocalMaskerConfig(window_size=5000)],
    "all:streaming_llm-density": lambda: [StreamingLLMMaskerConfig(density=1.0)],
    "all:streaming_llm-above": lambda: [StreamingLLMMaskerConfig(window_size=5000)],
    "all:topk-density": lambda: [TopKMaskerConfig(density=1.0)],
    "all:topk-above": lambda: [TopKMaskerConfig(heavy_size=5000)],
    "all:topk-size-1.0": lambda: [TopKMaskerConfig(heavy_size=1.0)],
    "all:topp-1": lambda: [TopPMaskerConfig(top_p=1)],
    "all:topk-group": lambda: [TopKMaskerConfig(density=1.0, selection="group", group_score="softmax_mean")],
    "all:random-group": lambda: [RandomSamplingMaskerConfig(sampling_rate=1.0, selection="group")],
    "all:adaptive-base": lambda: [AdaptiveSamplingMaskerConfig(base_rate=1.0, epsilon=0.9)],
    "all:adaptive-epsilon": lambda: [AdaptiveSamplingMaskerConfig(base_min=2, epsilon=1e-6)],
    "all:adaptive-group": lambda: [
        AdaptiveSamplingMaskerConfig(base_rate=3, epsilon=1e-6, guarantee="output", selection="group")
    ],
    "all:sink+topk+adaptive": lambda: [
        SinkMaskerConfig(),
        TopKMaskerConfig(heavy_size=3),
        AdaptiveSamplingMaskerConfig(base_min=2, epsilon=1e-6),
    ],
    "all:topp-group": lambda: [TopPMaskerConfig(top_p=1, selection="group")],
    "all:quest-density": lambda: [QuestTopKMaskerConfig(density=1.0)],
    "all:quest-above": lambda: [QuestTopKMaskerConfig(heavy_size=5000, selection="group")],
    "all:quest-size-1.0": lambda: [QuestTopKMaskerConfig(heavy_size=1.0, page_size=7, label_bits=4)],
    "all:sink+local+quest": lambda: [SinkMaskerConfig(), LocalMaskerConfig(), QuestTopKMaskerConfig(density=1.0)],
    "all:double_sparsity": lambda: [DoubleSparsityTopKMaskerConfig(density=1.0)],
    "all:double_sparsity-above": lambda: [DoubleSparsityTopKMaskerConfig(heavy_size=5000)],
    "all:double_sparsity-group": lambda: [DoubleSparsityTopKMaskerConfig(heavy_size=1.0, selection="group")],
    "all:pqcache": lambda: [PQCacheConfig(density=1.0)],
    "all:pqcache-group": lambda: [PQCacheConfig(heavy_size=5000, bits=2, metric="inner_product", selection="group")],
    "all:hash_attention": lambda: [HashAttentionTopKMaskerConfig(density=1.0)],
    "all:hash_attention-above": lambda: [HashAttentionTopKMaskerConfig(heavy_size=5000, bits=256, selection="group")],
    "all:socket": lambda: [SocketMaskerConfig(density=1.0)],
    "all:socket-group": lambda: [SocketMaskerConfig(heavy_size=5000, planes=2, selection="group")],
    "all:h2o": lambda: [H2OMaskerConfig(density=1.0)],
    "all:h2o-above": lambda: [H2OMaskerConfig(heavy_size=5000, query_aware=True)],
    "all:snapkv": lambda: [SnapKVMaskerConfig(density=1.0)],
    "all:snapkv-above": lambda: [SnapKVMaskerConfig(budget=5000, window=3, query_aware=True)],
    "all:tova": lambda: [TOVAMaskerConfig(density=1.0)],
    "all:sink+local+tova": lambda: [SinkMaskerConfig(), LocalMaskerConfig(), TOVAMaskerConfig(density=1.0)],
    "all:random-density": lambda: [RandomSamplingMaskerConfig(density=1.0)],
    "all:random-above": lambda: [RandomSamplingMaskerConfig(sampling_rate=5000)],
    "all:random-size-1.0": lambda: [RandomSamplingMaskerConfig(sampling_rate=1.0)],
    "all:sink+local+topk": lambda: [SinkMaskerConfig(), LocalMaskerConfig(), TopKMaskerConfig(density=1.0)],
    "all:sink+local+random": lambda: [SinkMaskerConfig(), LocalMaskerConfig(), RandomSamplingMaskerConfig(density=1.0)],
    "all:topk+random": lambda: [TopKMaskerConfig(heavy_size=3), RandomSamplingMaskerConfig(density=1.0)],
}


@dataclass(frozen=True)
class Shape:
    """One cell of the pairwise matrix."""

    group: int
    q_len: int
    padded: bool
    dtype: torch.dtype
    kv_len: int
    kv_heads: int = 2
    head_dim: int = 16

    def __str__(self) -> str:
        pad = "pad" if self.padded else "nopad"
        return f"g{self.group}-q{self.q_len}-{pad}-{str(self.dtype).removeprefix('torch.')}-kv{self.kv_len}"


F32, BF16 = torch.float32, torch.bfloat16
SHAPES = [
    Shape(1, 1, False, F32, 63),
    Shape(3, 1, True, BF16, 111),
    Shape(4, 5, False, BF16, 63),
    Shape(3, 7, True, F32, 63),
    Shape(4, 1, False, F32, 1000),
    Shape(1, 9, True, BF16, 111),
    Shape(3, 1, False, F32, 1),
    Shape(4, 1, True, F32, 111),
    Shape(1, 3, False, F32, 1000),
    Shape(4, 1, False, BF16, 1000),
]


# Each half holds every group size, one query and several, padding and none, both types, and short and long sequences.
HALVES = [[SHAPES[i] for i in (1, 2, 3, 6, 8)], [SHAPES[i] for i in (0, 5, 6, 7, 9)]]


def cases(recipes: Iterable[str], fits: Callable[[Shape], bool] = lambda shape: True) -> list[Any]:
    """Pair each recipe with one half of the shapes, in turn: pairwise, not every cross."""
    return [
        pytest.param(recipe, shape, id=f"{recipe}-{shape}")
        for place, recipe in enumerate(recipes)
        for shape in HALVES[place % 2]
        if fits(shape)
    ]


@dataclass
class Inputs:
    """Everything that one attention call gets."""

    queries: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    allowed: torch.Tensor
    scaling: float

    def tensors(self) -> list[torch.Tensor]:
        return [self.queries, self.keys, self.values, self.allowed]


def make_inputs(shape: Shape, seed: int = 0, batch: int = 2) -> Inputs:
    """Random inputs; padded ones have a different left padding in every batch row."""
    generator = torch.Generator().manual_seed(seed)

    def draw(heads: int, length: int) -> torch.Tensor:
        return torch.randn(batch, heads, length, shape.head_dim, generator=generator).to(shape.dtype)

    queries = draw(shape.kv_heads * shape.group, shape.q_len) * 2
    keys, values = draw(shape.kv_heads, shape.kv_len), draw(shape.kv_heads, shape.kv_len)
    allowed = causal(shape.q_len, shape.kv_len).repeat(batch, 1, 1, 1)
    if shape.padded:
        for row in range(batch):
            allowed[row, ..., : 5 * row + 3] = False
    return Inputs(queries, keys, values, allowed, shape.head_dim**-0.5)


def causal(q_len: int, kv_len: int) -> torch.Tensor:
    """Boolean (1, 1, q_len, kv_len); the last query stands at the last key."""
    return torch.ones(q_len, kv_len, dtype=torch.bool).tril(kv_len - q_len)[None, None]


def research(masker_configs: list[Any], seed: int = 0) -> ResearchAttention:
    return with_channels(ResearchAttention(ResearchAttentionConfig(masker_configs=masker_configs, seed=seed)))


def efficient(masker_configs: list[Any], seed: int = 0) -> EfficientAttention:
    return with_channels(EfficientAttention(EfficientAttentionConfig(masker_configs=masker_configs, seed=seed)))


def with_channels(attention: Any, layers: int = 4, kv_heads: int = 2, head_dim: int = 16, heads: int = 0) -> Any:
    """Give maskers that need them an order of channels or networks that hash, others for every layer and head.

    The networks of queries are for `heads` heads, or where it is 0 for the KV heads.
    """
    generator = torch.Generator().manual_seed(3)
    order = {
        layer: torch.stack([torch.randperm(head_dim, generator=generator) for _ in range(kv_heads)])
        for layer in range(layers)
    }
    for masker in attention.maskers:
        if getattr(masker, "needs_channels", False):
            masker.use_channels(order)
        if getattr(masker, "needs_hash_weights", False):
            shape = (heads or kv_heads, kv_heads, head_dim, masker.config.bits)
            masker.use_hash_weights({layer: hash_layer(*shape, seed=layer) for layer in range(layers)})
    return attention


def hash_layer(
    query_heads: int, key_heads: int, head_dim: int, bits: int, hidden: int = 12, seed: int = 0
) -> HashLayer:
    """Random networks of two maps for queries and for keys."""
    generator = torch.Generator().manual_seed(seed)

    def network(heads: int) -> tuple[HeadwiseLinear, ...]:
        sizes = ((head_dim, hidden), (hidden, bits))
        weights = [torch.randn(heads, *size, generator=generator) for size in sizes]
        return tuple(HeadwiseLinear(w, torch.randn(heads, 1, w.shape[2], generator=generator)) for w in weights)

    return HashLayer(network(query_heads), network(key_heads))


def with_observations(attention: Any, keys: torch.Tensor, before: int, meta: dict[Any, Any], layer_idx: int) -> Any:
    """Put what evicting methods see of a prefill into `meta`: some numbers that count from the context's last key."""
    observed = {m.observed for m in attention.maskers if hasattr(m, "observed")}
    if before and observed:
        numbers = torch.rand(keys.shape[1], 3000, generator=torch.Generator().manual_seed(11 + layer_idx))
        state = dict(meta.get(CONTEXT_STATE_KEY) or {})
        for last in observed:
            state.setdefault(observation_key(last, layer_idx), numbers[:, :before].flip(-1))
        meta[CONTEXT_STATE_KEY] = state
    return meta


EXECUTIONS = {"research": research, "efficient": efficient}


def attend(attention: Any, inputs: Inputs, meta: dict[Any, Any] | None = None, **kwargs: Any) -> torch.Tensor:
    """Output (batch, heads, q_len, dim), for easier comparison with other implementations."""
    kwargs.setdefault("layer_idx", 0)
    mask = kwargs.pop("attention_mask", inputs.allowed)
    before = inputs.keys.shape[2] - inputs.queries.shape[2]
    meta = with_observations(attention, inputs.keys, before, {} if meta is None else meta, kwargs["layer_idx"])
    output, _ = attention.custom_attention(
        None,
        inputs.queries,
        inputs.keys,
        inputs.values,
        mask,
        inputs.scaling,
        0.0,
        meta,
        **kwargs,
    )
    return output.transpose(1, 2)


def inclusion_of(
    attention: ResearchAttention, inputs: Inputs, meta: dict[Any, Any] | None = None, **kwargs: Any
) -> torch.Tensor:
    """Inclusion probabilities (batch, heads, q_len, kv_len) that a recipe gives, 0 for forbidden keys."""
    kwargs.setdefault("layer_idx", 0)
    before = inputs.keys.shape[2] - inputs.queries.shape[2]
    meta = with_observations(attention, inputs.keys, before, {} if meta is None else meta, kwargs["layer_idx"])
    mask = attention.build_mask(*inputs.tensors(), inputs.scaling, 0.0, meta, **kwargs)
    full = (*inputs.queries.shape[:3], inputs.keys.shape[2])
    return (mask.to_dense() * inputs.allowed).expand(full)


def naive_attention(
    inputs: Inputs, inclusion: torch.Tensor, sinks: torch.Tensor | None = None, softcap: float | None = None
) -> torch.Tensor:
    """Row by row, in double precision, straight from the formula."""
    queries, keys, values = inputs.queries.double(), inputs.keys.double(), inputs.values.double()
    batch, heads, q_len, _ = queries.shape
    group = heads // keys.shape[1]
    output = torch.zeros(batch, heads, q_len, values.shape[-1], dtype=torch.double)
    for b in range(batch):
        for h in range(heads):
            for q in range(q_len):
                chosen = inclusion[b, h, q].nonzero().squeeze(-1)
                logits = keys[b, h // group, chosen] @ queries[b, h, q] * inputs.scaling
                if softcap is not None:
                    logits = softcap * torch.tanh(logits / softcap)
                log_weights = logits - inclusion[b, h, q, chosen].double().log()
                if sinks is not None:
                    log_weights = torch.cat([log_weights, sinks[h].double().view(1)])
                weights = torch.softmax(log_weights, -1)[: len(chosen)]
                output[b, h, q] = weights @ values[b, h // group, chosen]
    return output


def sdpa(inputs: Inputs) -> torch.Tensor:
    """Dense attention by torch, in float32."""
    group = inputs.queries.shape[1] // inputs.keys.shape[1]
    return torch.nn.functional.scaled_dot_product_attention(
        inputs.queries.float(),
        inputs.keys.float().repeat_interleave(group, 1),
        inputs.values.float().repeat_interleave(group, 1),
        attn_mask=inputs.allowed,
        scale=inputs.scaling,
    )


def assert_near(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype = F32) -> None:
    """Compare with a tolerance that follows the dtype the result was rounded to; NaN never passes."""
    tolerance = {F32: 2e-5, BF16: 2e-2}[dtype]
    actual, expected = actual.double(), expected.double()
    assert torch.isfinite(actual).all()
    error = (actual - expected).abs()
    scale = expected.abs().clamp(min=1)
    assert (error / scale).max() <= tolerance, f"absolute {error.max():.3g}, relative {(error / scale).max():.3g}"
