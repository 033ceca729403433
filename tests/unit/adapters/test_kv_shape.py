"""What keys and values take, and what is read beside them, against the tensors themselves."""

from __future__ import annotations

import pytest

from sah.adapters.kv_cache import kv_shape
from sah.adapters.lane_cache import bytes_a_token
from sah.sparse_attention import EfficientAttentionConfig, TopKMaskerConfig, TopPMaskerConfig
from sah.sparse_attention.key_state import ContextPart
from sah.sparse_attention.maskers.double_sparsity_config import DoubleSparsityTopKMaskerConfig
from sah.sparse_attention.maskers.magicpig_config import MagicPigConfig
from sah.sparse_attention.maskers.pqcache_config import PQCacheConfig
from sah.sparse_attention.maskers.quest_config import QuestTopKMaskerConfig
from tests.support.models import CONTEXT, QUESTIONS, dense_adapter

FULL = ["llama", "qwen2", "qwen3", "mistral", "phi3"]


@pytest.mark.parametrize("family", FULL)
def test_a_token_takes_what_the_cache_holds_for_it(family: str) -> None:
    adapter = dense_adapter(family)
    cache = adapter.prefill(CONTEXT)
    shape = kv_shape(adapter.model)
    assert shape.layers == tuple(range(adapter.num_layers))
    assert shape.token_bytes == bytes_a_token(cache.past_key_values)


def test_layers_with_a_window_are_left_out() -> None:
    adapter = dense_adapter("gemma3")
    cache = adapter.prefill(CONTEXT)
    shape = kv_shape(adapter.model)
    sparse = adapter.with_sparse_attention(EfficientAttentionConfig(masker_configs=[TopKMaskerConfig(density=0.5)]))
    assert shape.layers == sparse.answer(cache, QUESTIONS[0], max_new_tokens=2).sparse_layers == (5,)
    layer = cache.past_key_values.layers[5]
    assert shape.token_bytes * cache.length == 2 * layer.keys.numel() * layer.keys.element_size()


@pytest.mark.parametrize(
    "config",
    [
        QuestTopKMaskerConfig(density=0.5, page_size=4),
        DoubleSparsityTopKMaskerConfig(density=0.5, group_factor=4, label_bits=None),
        MagicPigConfig(lsh_l=12, lsh_k=4, min_matches=1),
        MagicPigConfig(lsh_l=6, lsh_k=20, min_matches=1),
        PQCacheConfig(density=0.5, bits=8),
    ],
    ids=["quest", "double_sparsity", "magicpig", "magicpig with wide signatures", "pqcache"],
)
def test_what_is_read_to_choose_is_the_state_of_the_context(config) -> None:
    adapter = dense_adapter().with_sparse_attention(EfficientAttentionConfig(masker_configs=[config]))
    cache = adapter.prefill(CONTEXT)
    shape = kv_shape(adapter.model)
    adapter.answer(cache, QUESTIONS[0], max_new_tokens=2)
    parts = [part for part in cache.context_state.values() if isinstance(part, ContextPart)]
    assert len(parts) == len(shape.layers)
    page = getattr(config, "page_size", 1)
    tokens = parts[0].units.shape[2] * page
    assert tokens > cache.length - page
    held = sum(part.units.nbytes for part in parts)
    each = config.choosing_bytes(shape.head_dim, shape.itemsize)
    assert held == tokens * len(shape.layers) * shape.kv_heads * each


def test_packed_labels_take_fewer_bytes() -> None:
    plain, packed = (QuestTopKMaskerConfig(density=0.5, label_bits=bits) for bits in (None, 4))
    assert packed.choosing_bytes(64, 4) == plain.choosing_bytes(64, 4) / 8


def test_an_oracle_reads_every_key() -> None:
    for config in (TopKMaskerConfig(density=0.1), TopPMaskerConfig()):
        assert config.choosing_bytes(64, 2) == 128
