"""What tests of adapters share."""

from __future__ import annotations

import pytest

from sah.adapters import learned
from sah.adapters.hash_files import LayerShape
from sah.adapters.huggingface import ModelAdapterHF
from sah.sparse_attention.hash_weights import HashLayer
from tests.support.attention import hash_layer


@pytest.fixture
def random_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let hash_attention find networks for any model, random ones, instead of those that were trained for it."""

    def give(adapter: ModelAdapterHF, shapes: dict[int, LayerShape], bits: int) -> dict[int, HashLayer]:
        return {
            layer: hash_layer(shape.heads, shape.kv_heads, shape.head_dim, bits, seed=layer)
            for layer, shape in shapes.items()
        }

    monkeypatch.setattr(learned, "_trained", give)
