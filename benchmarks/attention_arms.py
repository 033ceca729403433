"""What `benchmarks.attention` compares: dense forms, sparse recipes, and the data that they run on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from sah.sparse_attention import (
    AdaptiveSamplingMaskerConfig,
    DoubleSparsityTopKMaskerConfig,
    H2OMaskerConfig,
    HashAttentionTopKMaskerConfig,
    LocalMaskerConfig,
    MagicPigConfig,
    MaskerConfig,
    PQCacheConfig,
    QuestTopKMaskerConfig,
    RandomSamplingMaskerConfig,
    SinkMaskerConfig,
    SnapKVMaskerConfig,
    SocketMaskerConfig,
    StreamingLLMMaskerConfig,
    TopKMaskerConfig,
    TopPMaskerConfig,
    TOVAMaskerConfig,
)
from sah.sparse_attention.kernels.grouped import grouped_attention

HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
SCALING = HEAD_DIM**-0.5
DENSITY = 0.05
KEPT_KEYS = 2048
"""Keys that the arms of the curve keep, whatever the length."""

PAGE_MULTIPLE = 128
TOPICS = 64
TOPIC_KEYS = 32
TOPIC_SIZE = 8.0
"""Length of the vector that keys of a topic and a query that asks for it share; the noise of each is 11.3 long. It
raises their logits by 8 * 8 / sqrt(128) = 5.7 over those of the other keys."""


class Stream:
    """A context's keys and values with room behind them, and at every step one key more and new queries.

    Keys come in runs of `TOPIC_KEYS` that share a topic vector, one of `TOPICS` of each KV head, over Gaussian noise.
    The query heads of a KV head ask for one topic, another one at every step.

    Args:
        context: Keys at the beginning.
        steps: Keys that may follow.
        dtype: Of keys, values and queries.
    """

    def __init__(self, context: int, steps: int, dtype: torch.dtype) -> None:
        self.length = context
        self.dtype = dtype
        self._generator = torch.Generator().manual_seed(0)
        capacity = -(-(context + steps) // PAGE_MULTIPLE) * PAGE_MULTIPLE
        shape = (1, KV_HEADS, capacity, HEAD_DIM)
        self._keys, self._values = torch.empty(shape, dtype=dtype), torch.empty(shape, dtype=dtype)
        directions = torch.randn(KV_HEADS, TOPICS, HEAD_DIM, generator=self._generator)
        self._topics = TOPIC_SIZE * directions / directions.norm(dim=-1, keepdim=True)
        runs = torch.randint(TOPICS, (KV_HEADS, capacity // TOPIC_KEYS), generator=self._generator)
        for head in range(KV_HEADS):
            noise = torch.randn(capacity, HEAD_DIM, generator=self._generator)
            topic = self._topics[head, runs[head]].repeat_interleave(TOPIC_KEYS, 0)
            self._keys[0, head] = noise.add_(topic)
            self._values[0, head] = noise.normal_(generator=self._generator)
        self._draw_queries()

    @property
    def keys(self) -> torch.Tensor:
        """(1, kv_heads, length, head_dim), a view."""
        return self._keys[:, :, : self.length]

    @property
    def values(self) -> torch.Tensor:
        """(1, kv_heads, length, head_dim), a view."""
        return self._values[:, :, : self.length]

    @property
    def kv_bytes(self) -> int:
        """Bytes of all keys and values."""
        return 2 * self.keys.numel() * self._keys.element_size()

    def advance(self) -> None:
        """Take one key more and new queries."""
        self.length += 1
        self._draw_queries()

    def mass_of_best(self, share: float) -> float:
        """Return the softmax mass that the largest logits hold, averaged over heads."""
        grouped = self.queries.view(1, KV_HEADS, -1, HEAD_DIM)
        mass = torch.softmax((grouped @ self.keys.mT).float() * SCALING, -1)
        return float(mass.topk(round(share * self.length), dim=-1).values.sum(-1).mean())

    def exact(self) -> torch.Tensor:
        """Attend to all keys in float64, (1, 1, heads, head_dim)."""
        outputs = []
        queries = self.queries.view(KV_HEADS, -1, HEAD_DIM).double()
        for query, keys, values in zip(queries, self.keys[0], self.values[0], strict=True):
            outputs.append(torch.softmax(query @ keys.double().mT * SCALING, -1) @ values.double())
        return torch.cat(outputs).view(1, 1, HEADS, HEAD_DIM)

    def _draw_queries(self) -> None:
        noise = torch.randn(1, HEADS, 1, HEAD_DIM, generator=self._generator)
        asked = torch.randint(TOPICS, (KV_HEADS,), generator=self._generator)
        topics = self._topics[torch.arange(KV_HEADS), asked].repeat_interleave(HEADS // KV_HEADS, 0)
        self.queries = (noise + topics.view(1, HEADS, 1, HEAD_DIM)).to(self.dtype)


_MODULE = torch.nn.Module()
_MODULE.num_key_value_groups = HEADS // KV_HEADS  # type: ignore[assignment]
_MODULE.is_causal = True  # type: ignore[assignment]


def model_call(stream: Stream) -> torch.Tensor:
    """Attend as transformers' models do under `attn_implementation="sdpa"`, the default."""
    inputs = (stream.queries, stream.keys, stream.values)
    return sdpa_attention_forward(_MODULE, *inputs, None, scaling=SCALING)[0]


def grouped_sdpa(stream: Stream) -> torch.Tensor:
    """Attend by SDPA with the query heads of a KV head as queries of one head."""
    output = grouped_attention(stream.queries, stream.keys, stream.values, None, SCALING)
    return output.transpose(1, 2).contiguous()


def matmul(stream: Stream) -> torch.Tensor:
    """Attend by two matrix products over grouped queries, the softmax in float32."""
    # The keys on the left: MKL's product of a few rows with a transposed matrix takes twice as long in float32.
    logits = (stream.keys @ stream.queries.view(1, KV_HEADS, -1, HEAD_DIM).mT).mT
    weights = torch.softmax(logits.float() * SCALING, dim=-1).to(stream.dtype)
    return (weights @ stream.values).view(1, 1, HEADS, HEAD_DIM)


def matmul_by_head(stream: Stream) -> torch.Tensor:
    """Attend by two matrix products for each KV head, the softmax in float32."""
    # One head's keys lie whole in memory; over all heads bfloat16 products copy keys that have room behind them.
    queries = stream.queries.view(KV_HEADS, -1, HEAD_DIM)
    output = torch.empty_like(queries)
    for head, (query, keys, values) in enumerate(zip(queries, stream.keys[0], stream.values[0], strict=True)):
        weights = torch.softmax((query @ keys.mT).float() * SCALING, dim=-1)
        output[head] = weights.to(stream.dtype) @ values
    return output.view(1, 1, HEADS, HEAD_DIM)


DENSE: dict[str, Callable[[Stream], torch.Tensor]] = {
    "dense-model-call": model_call,
    "dense-grouped-sdpa": grouped_sdpa,
    "dense-matmul": matmul,
    "dense-matmul-by-head": matmul_by_head,
}
STOCK = ("dense-model-call", "dense-grouped-sdpa")
"""Dense forms that come with transformers and torch; the others are written here, to be beaten as well."""


@dataclass(frozen=True)
class Arm:
    """A sparse recipe and what is expected of it."""

    recipe: Callable[[], list[MaskerConfig]]

    reads: str = "nothing"
    """What choosing keys reads of a length that grows with kv_len: `nothing`, its `state`, or all `keys`."""

    reads_drawn: bool = False
    """Whether choosing also reads the keys of the mask's last list, which attention then need not read again."""

    by_group: bool = False
    """Whether the query heads of a KV head share one set of keys."""

    most_time: float | None = None
    """Target: at most this share of the best dense time, at `TARGET_KV_LEN`."""

    most_of_streaming: float | None = None
    """Target: at most this share of the time of the arm `streaming_llm`, at `TARGET_KV_LEN`."""

    in_curve: bool = False
    """Whether it keeps `KEPT_KEYS` keys at every length."""


def _double_sparsity(selection: str) -> list[MaskerConfig]:
    return [DoubleSparsityTopKMaskerConfig(density=DENSITY, selection=selection)]


def _hash_attention(selection: str) -> list[MaskerConfig]:
    return [HashAttentionTopKMaskerConfig(density=DENSITY, selection=selection)]


def _adaptive(base_rate: float) -> list[MaskerConfig]:
    adaptive = AdaptiveSamplingMaskerConfig(base_rate=base_rate)
    return [SinkMaskerConfig(), LocalMaskerConfig(), TopKMaskerConfig(heavy_size=DENSITY / 2), adaptive]


ARMS: dict[str, Arm] = {
    "streaming_llm": Arm(lambda: [StreamingLLMMaskerConfig(density=DENSITY)], by_group=True, most_time=1 / 10),
    # h2o and tova compute the logits of what they hold, which attention takes over.
    "h2o": Arm(lambda: [H2OMaskerConfig(density=DENSITY)], reads_drawn=True, by_group=True, most_of_streaming=1.2),
    "snapkv": Arm(lambda: [SnapKVMaskerConfig(density=DENSITY)], by_group=True, most_of_streaming=1.2),
    "tova": Arm(lambda: [TOVAMaskerConfig(density=DENSITY)], reads_drawn=True, by_group=True, most_of_streaming=1.2),
    "quest-group": Arm(
        lambda: [QuestTopKMaskerConfig(density=DENSITY, selection="group")], "state", by_group=True, most_time=1 / 5
    ),
    "double_sparsity-group": Arm(lambda: _double_sparsity("group"), "state", by_group=True, most_time=1 / 3),
    "pqcache-group": Arm(
        lambda: [PQCacheConfig(density=DENSITY, selection="group")], "state", by_group=True, most_time=1 / 3
    ),
    "hash_attention-group": Arm(lambda: _hash_attention("group"), "state", by_group=True, most_time=1 / 3),
    "socket-group": Arm(
        lambda: [SocketMaskerConfig(density=DENSITY, selection="group")], "state", by_group=True, most_time=1 / 3
    ),
    "quest-head": Arm(lambda: [QuestTopKMaskerConfig(density=DENSITY)], "state", most_time=1 / 1.5),
    "double_sparsity-head": Arm(lambda: _double_sparsity("head"), "state"),
    "hash_attention-head": Arm(lambda: _hash_attention("head"), "state"),
    "pqcache-head": Arm(lambda: [PQCacheConfig(density=DENSITY)], "state"),
    "socket-head": Arm(lambda: [SocketMaskerConfig(density=DENSITY)], "state"),
    # A sixth of the tables that are the default.
    "socket-group-10": Arm(
        lambda: [SocketMaskerConfig(density=DENSITY, tables=10, selection="group")], "state", by_group=True
    ),
    "topk-group": Arm(lambda: [TopKMaskerConfig(density=DENSITY, selection="group")], "keys", by_group=True),
    "topk-head": Arm(lambda: [TopKMaskerConfig(density=DENSITY)], "keys", most_time=1.3),
    # Half of the density by top-k, the other half as the least sample: the method's default of 0.05 would exceed it.
    "adaptive": Arm(lambda: _adaptive(DENSITY / 2), "keys", reads_drawn=True, most_time=1.6),
    "adaptive-base-0.05": Arm(lambda: _adaptive(0.05), "keys", reads_drawn=True),
    "random": Arm(lambda: [RandomSamplingMaskerConfig(density=DENSITY)]),
    "magicpig": Arm(lambda: [SinkMaskerConfig(), LocalMaskerConfig(), MagicPigConfig()], "state", reads_drawn=True),
    "topp-0.9": Arm(lambda: [TopPMaskerConfig()], "keys"),
    "streaming_llm-fixed": Arm(
        lambda: [StreamingLLMMaskerConfig(window_size=KEPT_KEYS - 4)], by_group=True, in_curve=True
    ),
    "quest-group-fixed": Arm(
        lambda: [QuestTopKMaskerConfig(heavy_size=KEPT_KEYS, selection="group")],
        "state",
        by_group=True,
        in_curve=True,
    ),
    "quest-head-fixed": Arm(lambda: [QuestTopKMaskerConfig(heavy_size=KEPT_KEYS)], "state", in_curve=True),
}
