"""The promise of adaptive sampling on the attention scores of SmolLM2-135M-Instruct."""

from __future__ import annotations

from pydoc_data.topics import topics
from typing import Any

import pytest
import torch

from sah.adapters.factory import create_adapter
from sah.sparse_attention import (
    AdaptiveSamplingMaskerConfig,
    CausalMaskerConfig,
    LocalMaskerConfig,
    ResearchAttentionConfig,
    SinkMaskerConfig,
    TopKMaskerConfig,
)
from tests.support.attention import Inputs
from tests.support.guarantee import DELTA, EPSILON, failure_rates

pytestmark = pytest.mark.e2e

LAYERS = [0, 1, 10, 21, 29]
"""The first layers spread their attention most widely, the middle ones least."""


@pytest.fixture(scope="module")
def first_decoded() -> dict[int, Inputs]:
    """What attention gets for the first token decoded after a thousand tokens of prose, layer by layer."""
    dense = create_adapter("embedded:smollm2-135m-instruct")
    spied = dense.with_sparse_attention(ResearchAttentionConfig(masker_configs=[CausalMaskerConfig()]))
    attention = spied.sparse_attention
    attend = attention.custom_attention
    seen: dict[int, Inputs] = {}

    def spy(
        module: Any, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *others: Any, **kwargs: Any
    ) -> Any:
        if queries.shape[2] == 1:
            allowed = torch.ones(1, 1, 1, keys.shape[2], dtype=torch.bool)
            inputs = Inputs(queries.clone(), keys.clone(), values.clone(), allowed, others[1])
            seen.setdefault(kwargs["layer_idx"], inputs)
        return attend(module, queries, keys, values, *others, **kwargs)

    attention.custom_attention = spy  # type: ignore[method-assign]
    prose = " ".join(topics[name] for name in sorted(topics))
    spied.answer(spied.prefill(prose[:4200]), "\nWhat is this text about?", max_new_tokens=2)
    spied.close()
    dense.close()
    return {layer: seen[layer] for layer in LAYERS}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("guarantee", ["denominator", "output"])
def test_the_promise_holds_on_real_scores(first_decoded: dict[int, Inputs], layer: int, guarantee: str) -> None:
    before = [SinkMaskerConfig(), LocalMaskerConfig(), TopKMaskerConfig(heavy_size=0.05)]
    sampler = AdaptiveSamplingMaskerConfig(epsilon=EPSILON, delta=DELTA, guarantee=guarantee)
    rates = failure_rates(first_decoded[layer], [*before, sampler], layer=layer, at_once=50)
    assert max(rates[guarantee]) <= DELTA, rates


def test_the_promise_fails_on_real_scores_without_a_top_k(first_decoded: dict[int, Inputs]) -> None:
    """As the module's documentation says; each step of the paper's recipe is needed."""
    sampler = AdaptiveSamplingMaskerConfig(epsilon=EPSILON, delta=DELTA)
    rates = failure_rates(first_decoded[10], [SinkMaskerConfig(), LocalMaskerConfig(), sampler], layer=10, at_once=50)
    assert max(rates["denominator"]) > DELTA, rates


def test_the_promise_fails_on_real_scores_with_a_short_base_sample(first_decoded: dict[int, Inputs]) -> None:
    """A twentieth of some 900 keys shows too little of the tail: hence `base_min`."""
    before = [SinkMaskerConfig(), LocalMaskerConfig(), TopKMaskerConfig(heavy_size=0.05)]
    sampler = AdaptiveSamplingMaskerConfig(epsilon=EPSILON, delta=DELTA, base_min=2)
    rates = failure_rates(first_decoded[1], [*before, sampler], layer=1, at_once=50)
    assert max(rates["denominator"]) > DELTA, rates
