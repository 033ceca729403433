"""What `benchmarks.prefill` compares: dense forms, patterns, and the data that they run on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from sah.sparse_attention import (
    AShapeConfig,
    BlockTopKConfig,
    PrefillConfig,
    PrefillPattern,
    VerticalSlashConfig,
)

DENSITY = 0.1
TARGET_LENGTH, TARGET_SPEEDUP = 16384, 2.5
SINKS, LINES, TOPICS, RUN, SLASHES = 4, 128, 64, 32, 2
SINK_LOGIT, LINE_LOGIT, NEAR_LOGIT, TOPIC_LOGIT, SLASH_SHARE = 8.0, 6.0, 7.0, 7.0, 0.9
"""By how much each structure raises logits over noise, whose standard deviation is 1; a slash's queries hold this share
of the key that they ask for."""


@dataclass(frozen=True)
class Model:
    """The attention shape of a model."""

    heads: int
    kv_heads: int
    head_dim: int

    def __str__(self) -> str:
        return f"{self.heads}/{self.kv_heads} heads x {self.head_dim}"


MODELS = {"smollm2": Model(9, 3, 64), "llama3-8b": Model(32, 8, 128)}


class Prompt:
    """Queries, keys and values of one layer over a prompt, made of what attention maps of models show.

    All heads have Gaussian noise, a few first keys that every query attends to, and nearness. Besides, the heads of a
    KV head have in turn: runs of keys on a topic that runs of queries ask for; single keys that every query attends to;
    fixed distances at which every query asks for the key itself.

    Args:
        model: The shape.
        length: Tokens.
    """

    def __init__(self, model: Model, length: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.model, self.length, self.scaling = model, length, model.head_dim**-0.5
        dim, group = model.head_dim, model.heads // model.kv_heads

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator)

        def directions(count: int) -> torch.Tensor:
            vectors = draw(count, dim)
            return vectors / vectors.norm(dim=-1, keepdim=True)

        def raising(logit: float) -> float:
            return float((logit / self.scaling) ** 0.5)

        self.keys, self.values = draw(1, model.kv_heads, length, dim), draw(1, model.kv_heads, length, dim)
        self.queries = draw(1, model.heads, length, dim)
        position = torch.arange(length)
        angles = position[:, None] * torch.logspace(0, -3, dim // 8)
        near = torch.cat([angles.cos(), angles.sin()], -1) / (dim // 8) ** 0.5
        for head in range(model.kv_heads):
            asking, keys = self.queries[0, head * group : (head + 1) * group], self.keys[0, head]
            first, line = directions(2)
            asking += raising(SINK_LOGIT) * first
            keys[:SINKS] += raising(SINK_LOGIT) * first
            kind = ("topics", "lines", "slashes")[head % 3]
            if kind == "topics":
                topics = raising(TOPIC_LOGIT) * directions(TOPICS)
                runs = -(-length // RUN)
                for states in (keys, *asking):
                    drawn = torch.randint(TOPICS, (runs,), generator=generator)
                    states += topics[drawn].repeat_interleave(RUN, 0)[:length]
            elif kind == "lines":
                asking += raising(LINE_LOGIT) * line
                keys[torch.randperm(length, generator=generator)[:LINES]] += raising(LINE_LOGIT) * line
            else:
                for distance in torch.randint(length // 2, (SLASHES,), generator=generator).tolist():
                    asking += SLASH_SHARE * keys.roll(distance, 0)
            places = slice(0, near.shape[1])
            asking[..., places] += raising(NEAR_LOGIT) * near
            keys[..., places] += raising(NEAR_LOGIT) * near

    def of_kv_head(self, head: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the queries and keys of one KV head."""
        group = self.model.heads // self.model.kv_heads
        return self.queries[:, head * group : (head + 1) * group], self.keys[:, head : head + 1]


def sdpa_grouped(prompt: Prompt) -> torch.Tensor:
    """Attend by torch's causal SDPA, which shares keys itself."""
    return torch.nn.functional.scaled_dot_product_attention(
        prompt.queries, prompt.keys, prompt.values, is_causal=True, enable_gqa=True, scale=prompt.scaling
    )


def sdpa_repeated(prompt: Prompt) -> torch.Tensor:
    """Attend by torch's causal SDPA over keys that are repeated for each query head."""
    group = prompt.model.heads // prompt.model.kv_heads
    keys, values = (part.repeat_interleave(group, 1) for part in (prompt.keys, prompt.values))
    return torch.nn.functional.scaled_dot_product_attention(
        prompt.queries, keys, values, is_causal=True, scale=prompt.scaling
    )


def all_rows(prompt: Prompt) -> torch.Tensor:
    """Attend to all keys in the patterns' own kernel."""
    pattern = PrefillPattern.create_from_config(AShapeConfig(density=1.0))
    return pattern.attend(prompt.queries, prompt.keys, prompt.values, prompt.scaling)[0]


DENSE: dict[str, Callable[[Prompt], torch.Tensor]] = {
    "causal-sdpa-gqa": sdpa_grouped,
    "causal-sdpa-repeated": sdpa_repeated,
    "block-rows-all-keys": all_rows,
}

PATTERNS: dict[str, Callable[[], PrefillConfig]] = {
    "a_shape": lambda: AShapeConfig(density=DENSITY),
    "vertical_slash": lambda: VerticalSlashConfig(density=DENSITY),
    "block_topk": lambda: BlockTopKConfig(density=DENSITY),
    "block_topk-group": lambda: BlockTopKConfig(density=DENSITY, selection="group"),
    "block_topk-antidiagonal": lambda: BlockTopKConfig(density=DENSITY, estimator="antidiagonal"),
}
