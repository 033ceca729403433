"""Prefilled contexts shared by the points of a process, within a number of bytes."""

from __future__ import annotations

from collections.abc import Callable

from sah.adapters.context_cache import ContextCache, ContextStore, ids_digest
from sah.sparse_attention import EfficientAttentionConfig, MagicPigConfig
from sah.sparse_attention.prefill.a_shape_config import AShapeConfig
from tests.support.models import CONTEXT, QUESTIONS, adapter, dense_adapter

CONTEXTS = [f"{CONTEXT} Variation {i} of them." for i in range(4)]


def counting() -> tuple[Callable[[str], ContextCache], list[str]]:
    prefilled: list[str] = []

    def prefill(context: str) -> ContextCache:
        prefilled.append(context)
        return dense_adapter().prefill(context)

    return prefill, prefilled


def held_bytes(caches: list[ContextCache]) -> int:
    """Bytes of memory that the caches keep alive."""
    storages = {}
    for cache in caches:
        for layer in cache.past_key_values.layers:
            for states in (layer.keys, layer.values):
                storages[states.untyped_storage().data_ptr()] = states.untyped_storage().nbytes()
    return sum(storages.values())


def test_a_context_is_prefilled_once() -> None:
    prefill, prefilled = counting()
    store = ContextStore(1 << 30)
    first, reused = store.get("g", CONTEXTS[0], prefill)
    assert not reused
    again, reused = store.get("g", CONTEXTS[0], prefill)
    assert reused
    assert again is first
    assert prefilled == CONTEXTS[:1]


def test_groups_never_share() -> None:
    prefill, prefilled = counting()
    store = ContextStore(1 << 30)
    one, _ = store.get(("model a", "data"), CONTEXTS[0], prefill)
    other, reused = store.get(("model b", "data"), CONTEXTS[0], prefill)
    assert not reused
    assert other is not one
    assert len(prefilled) == 2


def test_zero_bytes_keep_nothing() -> None:
    prefill, prefilled = counting()
    store = ContextStore(0)
    for _ in range(2):
        cache, reused = store.get("g", CONTEXTS[0], prefill)
        assert not reused
        assert cache.length > 0
    assert len(prefilled) == 2
    assert store.nbytes() == 0


def test_the_first_contexts_that_fit_are_kept() -> None:
    prefill, prefilled = counting()
    size = dense_adapter().prefill(CONTEXTS[0]).nbytes()
    store = ContextStore(int(2.5 * size))
    for _ in range(3):
        for context in CONTEXTS:
            store.get("g", context, prefill)
        assert store.nbytes() <= store.capacity_bytes
    assert prefilled.count(CONTEXTS[0]) == 1
    assert len(prefilled) < 3 * len(CONTEXTS)


def test_contexts_are_kept_by_prefill_and_all_count() -> None:
    prefill, size = dense_adapter().prefill, dense_adapter().prefill(CONTEXTS[0]).nbytes()
    store, patterns = ContextStore(int(2.5 * size)), (None, AShapeConfig(density=0.2), AShapeConfig(density=0.3))
    for pattern in patterns:
        assert not store.get("g", CONTEXTS[0], prefill, pattern)[1]
    for pattern in patterns[:2]:
        cache, reused = store.get("g", CONTEXTS[0], prefill, pattern)
        assert reused and cache.prefill == pattern and store.holds("g", CONTEXTS[0], pattern)
    assert not store.holds("g", CONTEXTS[0], patterns[2]), "the first that fit are kept"
    assert store.nbytes() <= store.capacity_bytes


def test_another_group_makes_room() -> None:
    prefill, _ = counting()
    size = dense_adapter().prefill(CONTEXTS[0]).nbytes()
    store = ContextStore(int(2.5 * size))
    for context in CONTEXTS[:2]:
        store.get("old", context, prefill)
    store.get("new", CONTEXTS[2], prefill)
    assert store.get("new", CONTEXTS[2], prefill)[1]
    assert store.nbytes() <= store.capacity_bytes


def test_a_context_that_can_never_fit_drives_nobody_out() -> None:
    prefill, _ = counting()
    size = dense_adapter().prefill(CONTEXTS[0]).nbytes()
    store = ContextStore(int(1.5 * size))
    store.get("old", CONTEXTS[0], prefill)
    cache, _ = store.get("new", CONTEXT * 5, prefill)
    assert cache.nbytes() > store.capacity_bytes
    assert store.get("old", CONTEXTS[0], prefill)[1]


def test_the_cap_is_on_memory_really_held() -> None:
    """Room behind each context is memory, too."""
    prefill, _ = counting()
    store = ContextStore(300_000)
    kept = []
    for context in CONTEXTS:
        cache, _ = store.get("g", context, prefill)
        if store.get("g", context, prefill)[1]:
            kept.append(cache)
    assert held_bytes(kept) <= store.capacity_bytes


def derive(cache: ContextCache, tables: int) -> float:
    """Derive the state of a setting, which no other number of tables shares."""
    config = EfficientAttentionConfig(masker_configs=[MagicPigConfig(lsh_l=tables, lsh_k=4)])
    return dense_adapter().with_sparse_attention(config).prepare_context(cache)


def test_derived_state_gives_way_that_of_the_context_asked_for_last() -> None:
    prefill, prefilled = counting()
    store = ContextStore(1 << 30)
    first, second, third = (store.get("g", context, prefill)[0] for context in CONTEXTS[:3])
    contexts = store.nbytes()
    for cache in (first, second, third):
        derive(cache, 4)
    state = (store.nbytes() - contexts) // 3
    assert state > 0

    store.capacity_bytes = store.nbytes()
    store.get("g", CONTEXTS[0], prefill)
    assert first.context_state and second.context_state and third.context_state
    store.capacity_bytes = contexts + int(2.5 * state)
    store.get("g", CONTEXTS[0], prefill)
    assert first.context_state and not second.context_state and third.context_state
    store.capacity_bytes = contexts + state // 2
    store.get("g", CONTEXTS[0], prefill)
    assert not (first.context_state or second.context_state or third.context_state)
    assert store.nbytes() == contexts
    assert prefilled == CONTEXTS[:3], "contexts stay"


def test_state_of_many_settings_does_not_pile_up() -> None:
    prefill, _ = counting()
    store = ContextStore(1 << 30)
    for context in CONTEXTS[:2]:
        store.get("g", context, prefill)
    store.capacity_bytes = store.nbytes()
    for tables in (40, 50, 60):
        for context in CONTEXTS[:2]:
            cache, _ = store.get("g", context, prefill)
            assert store.nbytes() <= store.capacity_bytes
            assert derive(cache, tables) > 0
            assert derive(cache, tables) == 0, "it is there"
    assert store.nbytes() > store.capacity_bytes, "what the last setting derived was measured at no `get`"


def test_clear() -> None:
    prefill, prefilled = counting()
    store = ContextStore(1 << 30)
    store.get("g", CONTEXTS[0], prefill)
    store.clear()
    assert store.nbytes() == 0
    assert not store.get("g", CONTEXTS[0], prefill)[1]
    assert len(prefilled) == 2


def test_a_kept_context_answers_as_a_fresh_one() -> None:
    prefill, _ = counting()
    store = ContextStore(1 << 30)
    answers = []
    for recipe in ("topk-hard", "sink+local", "topk-hard"):
        cache, _ = store.get("g", CONTEXTS[0], prefill)
        answers.append(adapter("llama", recipe).answer(cache, QUESTIONS[0], max_new_tokens=5).token_ids)
    assert answers[0] == answers[2]
    fresh = adapter("llama", "sink+local")
    assert fresh.answer(fresh.prefill(CONTEXTS[0]), QUESTIONS[0], max_new_tokens=5).token_ids == answers[1]


def test_digests_tell_ids_apart() -> None:
    assert ids_digest([1, 2, 3]) == ids_digest([1, 2, 3])
    assert len({ids_digest(ids) for ids in ([1, 2, 3], [1, 2], [3, 2, 1], [1, 2, 3, 0], [])}) == 5
    one, other = (dense_adapter().prefill(context) for context in CONTEXTS[:2])
    assert one.digest != other.digest
    assert one.digest == dense_adapter().prefill(CONTEXTS[0]).digest
