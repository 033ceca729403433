"""Both executions on SmolLM2's own queries, keys and values: a needle prompt, all layers, step after step."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import pytest
import torch

from sah.adapters import attention_switch as switch
from sah.adapters.calibration import give_channels
from sah.adapters.factory import create_adapter
from sah.sparse_attention import (
    AdaptiveSamplingMaskerConfig,
    DoubleSparsityTopKMaskerConfig,
    LocalMaskerConfig,
    MagicPigConfig,
    QuestTopKMaskerConfig,
    RandomSamplingMaskerConfig,
    SinkMaskerConfig,
    StreamingLLMMaskerConfig,
    TopKMaskerConfig,
    TopPMaskerConfig,
)
from sah.sparse_attention.allowed import allowed_keys
from sah.sparse_attention.base import SparseAttention
from sah.sparse_attention.key_state import CONTEXT_STATE_KEY
from sah.sparse_attention.randomness import LANES_KEY
from tests.support.agreement import TOLERANCE, Pair
from tests.support.attention import Inputs, Recipe, attend

pytestmark = pytest.mark.e2e

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
NEEDLE = "One of the special magic numbers for quiet-harbor is: 7492318. "
CONTEXT = (
    "A special magic number is hidden within the following text. Make sure to memorize it. I will quiz you about the "
    "number afterwards.\n" + NOISE * 18 + NEEDLE + NOISE * 22
)
QUESTION = "\nWhat is the special magic number for quiet-harbor mentioned in the provided text?"
STEPS = 8


def behind(*recipe: Any) -> list[Any]:
    return [SinkMaskerConfig(), LocalMaskerConfig(window_size=32), *recipe]


METHODS: dict[str, Recipe] = {
    "topk": lambda: [TopKMaskerConfig(density=0.05)],
    "topk-group": lambda: [TopKMaskerConfig(density=0.05, selection="group")],
    "topp": lambda: [TopPMaskerConfig(top_p=0.8)],
    "quest": lambda: [QuestTopKMaskerConfig(density=0.05)],
    "quest-group": lambda: [QuestTopKMaskerConfig(density=0.05, selection="group", group_score="max")],
    "double_sparsity": lambda: behind(DoubleSparsityTopKMaskerConfig(density=0.1)),
    "double_sparsity-group": lambda: [DoubleSparsityTopKMaskerConfig(density=0.1, selection="group")],
    "streaming_llm": lambda: [StreamingLLMMaskerConfig(density=0.05)],
    "random": lambda: behind(RandomSamplingMaskerConfig(density=0.1)),
    "adaptive": lambda: behind(TopKMaskerConfig(heavy_size=0.02), AdaptiveSamplingMaskerConfig(epsilon=0.1, delta=0.1)),
    "magicpig": lambda: behind(MagicPigConfig()),
}


class Both(SparseAttention):
    """Runs both executions of a recipe on what the model hands over, and goes on with the efficient one's output."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.metas: tuple[dict[Any, Any], ...] = tuple({LANES_KEY: ["needle"]} for _ in range(2))
        self.apart: list[float] = []

    def custom_attention(
        self, module: Any, queries: Any, keys: Any, values: Any, mask: Any, scaling: float, *_: Any, **kwargs: Any
    ) -> Any:
        inputs = Inputs(queries, keys, values, allowed_keys(mask, queries, keys), scaling)
        layer_idx = kwargs["layer_idx"]
        if queries.shape[2] == 1:
            output = self.pair.step(inputs, self.metas, layer_idx)
        else:
            executions = (self.pair.research, self.pair.efficient)
            plain, output = (
                attend(x, inputs, m, layer_idx=layer_idx) for x, m in zip(executions, self.metas, strict=True)
            )
            self.apart += ((plain - output).abs().amax(-1).amax(1) > TOLERANCE).float().mean(1).tolist()
        return output.transpose(1, 2).contiguous(), None


def run(dense: Any, cache: Any, recipe: Recipe) -> Both:
    """Prefill a question's chunk and decode, each layer's call in both executions; the context dense, as always."""
    both, state = Both(Pair(recipe, lambda attention: give_channels(dense, attention))), {}
    for layer_idx, layer in enumerate(cache.past_key_values.layers):
        held = [states[:, :, : cache.length] for states in (layer.keys, layer.values)]
        both.pair.efficient.prepare_context(state, layer_idx, *held)
    for meta in both.metas:
        meta[CONTEXT_STATE_KEY] = MappingProxyType(state)
    name, position = switch.unique_name(), cache.length
    ids = dense.prompts.question_ids(cache.prompt, QUESTION)
    switch.register(name, switch.attention_function(both))
    try:
        with torch.no_grad(), switch.switched(switch.implementations(dense.model), name):
            for _ in range(1 + STEPS):
                output = dense.model(
                    input_ids=torch.tensor([ids]),
                    position_ids=torch.arange(position, position + len(ids))[None],
                    past_key_values=cache.past_key_values,
                    sparse_meta_data={},
                )
                position, ids = position + len(ids), [int(output.logits[0, -1].argmax())]
    finally:
        switch.unregister(name)
        cache.cut_back()
    return both


def test_both_executions_agree_on_a_model_s_own_steps(capsys: pytest.CaptureFixture[str]) -> None:
    """A step is one call of one layer. Where a question's chunk differs is counted only, not shown to be a tie."""
    dense = create_adapter("embedded:smollm2-135m-instruct")
    cache = dense.prefill(CONTEXT)
    assert 950 < cache.length < 1100
    steps, ties, apart = 0, 0, []
    for method, recipe in METHODS.items():
        try:
            both = run(dense, cache, recipe)
        except AssertionError as error:
            raise AssertionError(f"{method}: {error}") from error
        assert both.pair.steps == 30 * STEPS
        assert len(both.apart) == 30
        steps, ties, apart = steps + both.pair.steps, ties + both.pair.exceptions, apart + both.apart
    dense.close()
    share = sum(apart) / len(apart)
    with capsys.disabled():
        print(f"\n{ties} ties in {steps} steps of {len(METHODS)} methods; {share:.3%} of a chunk's rows are apart")
    assert ties <= 0.001 * steps
    assert share <= 0.001
