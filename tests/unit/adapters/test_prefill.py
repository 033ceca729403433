"""Contexts that run sparse, and methods that look on while a context or a question runs dense."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import torch

from sah.adapters import attention_switch
from sah.adapters.context_cache import ContextStore
from sah.adapters.huggingface import ModelAdapterHF
from sah.adapters.kv_cache import new_cache
from sah.adapters.lanes import Lane
from sah.adapters.prefill import run_context
from sah.errors import ConfigError, ModelError
from sah.sparse_attention import (
    AShapeConfig,
    BlockTopKConfig,
    H2OMaskerConfig,
    LocalMaskerConfig,
    ResearchAttentionConfig,
    SinkMaskerConfig,
    SnapKVMaskerConfig,
    TopKMaskerConfig,
    TOVAMaskerConfig,
    VerticalSlashConfig,
)
from sah.sparse_attention.prefill.base import PrefillPattern
from tests.support.lanes import assert_agree, ids_as_text, reads_ids, setting
from tests.support.models import (
    CONTEXT,
    FAMILIES,
    QUESTIONS,
    dense_adapter,
    folder,
    recorded_calls,
    same_cache,
    snapshot,
)

EVICTING: dict[str, Any] = {
    "h2o": lambda **more: [H2OMaskerConfig(density=0.2, **more)],
    "snapkv": lambda **more: [SnapKVMaskerConfig(density=0.2, window=9, **more)],
    "tova": lambda **more: [TOVAMaskerConfig(density=0.2, **more)],
    "sink+local+h2o+topk": lambda **more: [
        SinkMaskerConfig(sink_size=2),
        LocalMaskerConfig(window_size=4),
        H2OMaskerConfig(heavy_size=5, recent=2, **more),
        TopKMaskerConfig(density=0.3),
    ],
}
PATTERNS = [AShapeConfig(density=0.3), VerticalSlashConfig(density=0.4), BlockTopKConfig(density=0.4, block_size=16)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_looking_on_changes_nothing(family: str, implementation: str) -> None:
    plain = ModelAdapterHF(None, folder(family), model_kwargs={"attn_implementation": implementation})
    looking = setting(plain, [H2OMaskerConfig(density=0.2)])
    before = [config._attn_implementation for config, _ in plain.loaded]
    caches = [adapter.prefill(CONTEXT) for adapter in (plain, looking)]
    assert same_cache(*(snapshot(cache.past_key_values) for cache in caches))
    assert not caches[0].context_state
    seen = list(caches[1].context_state.values())
    assert seen
    for mass in seen:
        torch.testing.assert_close(mass.sum(-1), torch.full((len(mass),), float(caches[1].length)))
    assert [config._attn_implementation for config, _ in plain.loaded] == before


@pytest.mark.parametrize("phases", [["question", "decode"], ["decode"]], ids=["question", "decode"])
@pytest.mark.parametrize("aware", [False, True], ids=["agnostic", "aware"])
def test_lanes_of_evicting_methods_agree_with_each_alone(aware: bool, phases: list[str]) -> None:
    own = reads_ids(dense_adapter())
    settings = [setting(own, make(query_aware=aware), phases=phases) for make in EVICTING.values()]
    cache = own.prefill(ids_as_text(90, 0), observers=settings)
    lanes = [
        Lane(adapter, ids_as_text(tokens, tokens), max_new_tokens=new)
        for adapter in [own, *settings]
        for tokens, new in ((1, 4), (23, 6), (7, 9))
    ]
    assert assert_agree(cache, lanes).steps > 80


@pytest.mark.parametrize("name", EVICTING)
def test_a_context_is_seen_when_it_is_needed(name: str) -> None:
    """Whether it was prefilled for the method, beside it, or for nobody, and in both executions."""
    own = dense_adapter()
    mine = setting(own, EVICTING[name]())
    plain = own.with_sparse_attention(ResearchAttentionConfig(EVICTING[name]()))
    caches = [mine.prefill(CONTEXT), own.prefill(CONTEXT, observers=[mine]), own.prefill(CONTEXT)]
    answers = [
        adapter.answer(cache, question, max_new_tokens=6)
        for cache in caches
        for adapter in (mine, plain)
        for question in QUESTIONS
    ]
    assert {tuple(answer.token_ids) for answer in answers[::3]} == {tuple(answers[0].token_ids)}
    assert all(answer.density == pytest.approx(answers[place % 3].density) for place, answer in enumerate(answers))
    # The last one ran the context again, and its times are those of a state that was missing.
    names = [set(cache.context_state) for cache in caches]
    assert names[0] == names[1] == names[2] != set()
    for left, right in ((0, 1), (0, 2)):
        for key, mass in caches[left].context_state.items():
            assert torch.equal(mass, caches[right].context_state[key])


def test_a_context_that_is_there_runs_again_once_for_all() -> None:
    """And the time that seeing takes is told by the first setting that needs it, whichever way it was seen."""
    own = dense_adapter()
    settings = [setting(own, make()) for make in EVICTING.values()]
    store = ContextStore(1 << 30)
    cache, _ = store.get("tiny", CONTEXT, own.prefill)
    assert (cache.context_state, cache.seeing_seconds) == ({}, 0.0)
    with recorded_calls(own.model) as calls:
        found, reused = store.get("tiny", CONTEXT, own.prefill, None, settings)
        assert (found, reused) == (cache, True)
        told = [adapter.prepare_context(cache) for adapter in settings]
    assert len(calls) == 1
    assert told[0] > 0 and told[1:] == [0.0] * (len(settings) - 1)
    seen = settings[0].prefill(CONTEXT)
    assert 0 < seen.seeing_seconds == settings[0].prepare_context(seen)
    assert own.prepare_context(own.prefill(CONTEXT, observers=settings)) == 0.0


def test_generation_sees_its_prompt() -> None:
    own = dense_adapter()
    mine = setting(own, EVICTING["h2o"]())
    with mine.enable_sparse_mode():
        output = mine.generate(CONTEXT, max_new_tokens=5, do_sample=False)
    assert output.shape[1] > 5


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.name)
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_pattern_changes_the_context_and_says_how_much_it_read(pattern: Any, family: str) -> None:
    own = dense_adapter(family)
    dense = own.prefill(CONTEXT)
    sparse = own.prefill(CONTEXT, pattern)
    assert (dense.prefill, dense.prefill_density) == (None, 1.0)
    assert sparse.prefill == pattern
    assert 0.1 < sparse.prefill_density < 0.9
    assert not same_cache(snapshot(dense.past_key_values), snapshot(sparse.past_key_values))
    full = own.prefill(CONTEXT, type(pattern)(density=1.0))
    assert full.prefill_density == 1.0
    pairs = zip(snapshot(dense.past_key_values), snapshot(full.past_key_values), strict=True)
    assert max(float((x - y).abs().max()) for left, right in pairs for x, y in zip(left, right, strict=True)) < 1e-3


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.name)
def test_patterns_combine_with_decoding_methods(pattern: Any) -> None:
    own = dense_adapter()
    sparse = setting(own, EVICTING["snapkv"]())
    caches = [sparse.prefill(CONTEXT, pattern), own.prefill(CONTEXT, pattern)]
    answers = [sparse.answer(cache, QUESTIONS[0], max_new_tokens=6) for cache in caches]
    assert answers[0].token_ids == answers[1].token_ids
    assert own.answer(caches[1], QUESTIONS[0], max_new_tokens=3).token_ids


def test_all_attention_cannot_be_seen_where_some_is_left_out() -> None:
    own = dense_adapter()
    heavy = setting(own, EVICTING["h2o"]())
    for prefill in (
        lambda: heavy.prefill(CONTEXT, AShapeConfig()),
        lambda: heavy.answer(own.prefill(CONTEXT, AShapeConfig()), QUESTIONS[0]),
    ):
        with pytest.raises(ConfigError, match="prefill=a_shape.*h2o.*prefill=dense"):
            prefill()


def test_a_prefill_that_ran_dense_is_an_error() -> None:
    own = dense_adapter()
    past = new_cache(own.model.config)
    with (
        patch.object(attention_switch, "is_full_attention", return_value=False),
        pytest.raises(ModelError, match="ran dense"),
    ):
        run_context(
            own, own.prompts.context_prompt(CONTEXT).ids, past, pattern=PrefillPattern.create_from_config(PATTERNS[0])
        )
