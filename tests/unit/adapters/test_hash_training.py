"""HashAttention's networks: how a layer's are fitted, and how a model's are trained, resumed, stored and handed out."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sah import train_hash
from sah.adapters import hash_training
from sah.adapters.hash_fit import FitOptions, fit_layer
from sah.adapters.hash_training import TrainingOptions, train_model
from sah.adapters.learned import give_learned, hash_weights, weights_file, weights_metadata
from sah.adapters.recording import record_states
from sah.errors import ConfigError
from sah.fetching import CACHE_VARIABLE
from sah.sparse_attention.base import SparseAttention
from sah.sparse_attention.config import AutoAttentionConfig
from sah.sparse_attention.hash_weights import mapped
from sah.sparse_attention.maskers.hash_attention_config import HashAttentionTopKMaskerConfig
from tests.support.models import dense_adapter, folder

STEPS, BITS = 3, 16
OPTIONS = TrainingOptions(BITS, STEPS)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Short texts, and a cache of one's own."""
    for family in ("llama", "gemma3"):
        folder(family)
    monkeypatch.setattr(hash_training, "TEXT_TOKENS", 192)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "hash"


def attention(weights: Path | None = None) -> Any:
    masker = HashAttentionTopKMaskerConfig(bits=BITS, weights=None if weights is None else str(weights), heavy_size=8)
    return SparseAttention.create_from_config(AutoAttentionConfig(masker_configs=[masker]))


def text(length: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys with a large common part; queries, of every second position, look for a few of their directions."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(16, 16, generator=torch.Generator().manual_seed(99)) * torch.linspace(0.1, 2, 16)
    keys = torch.randn(2, length, 16, generator=generator) @ mixing + 8
    queries = torch.randn(4, -(-length // 2), 16, generator=generator)
    queries[..., 2:] *= 0.05
    return queries, keys


def found(layer: Any, queries: torch.Tensor, keys: torch.Tensor, count: int) -> float:
    """Share of the best keys among those whose signatures agree most, all keys allowed."""
    exact = queries.unflatten(0, (2, -1)) @ keys[:, None].mT
    signs = [
        torch.where(mapped(x[None], side)[0] > 0, 1.0, -1.0) for x, side in ((queries, layer.query), (keys, layer.key))
    ]
    close = signs[0].unflatten(0, (2, -1)) @ signs[1][:, None].mT
    best = torch.zeros_like(exact).scatter_(-1, exact.topk(count).indices, 1.0)
    return float(best.gather(-1, close.topk(count).indices).mean())


def test_networks_begin_as_planes_through_the_mean_key_and_learn_from_there() -> None:
    texts = [text(257, seed) for seed in (0, 1)]
    start = fit_layer(texts, 0, FitOptions(BITS, 0, hidden=0, every=2))
    queries, keys = text(301, 5)
    for side, x in ((start.query, queries), (start.key, keys)):
        zero, one, other = (mapped(part[None], side) for part in (0 * x, x, x.flip(1)))
        torch.testing.assert_close(mapped((x + x.flip(1))[None], side), one + other - zero, rtol=1e-4, atol=1e-3)
    mean = torch.cat([keys for _, keys in texts], 1).mean(1, keepdim=True)
    torch.testing.assert_close(mapped(mean[None], start.key), torch.zeros(1, 2, 1, BITS), rtol=0, atol=1e-3)
    trained = fit_layer(texts, 0, FitOptions(BITS, 150, hidden=64, every=2, least_share=0.05))
    assert found(trained, queries, keys, 15) > found(start, queries, keys, 15) + 0.1


def test_a_layer_depends_on_its_seed_and_number_alone() -> None:
    texts = [text(65, 0)]
    same = [
        fit_layer(texts, layer, FitOptions(8, 2, seed, every=2)) for layer, seed in ((1, 0), (1, 0), (2, 0), (1, 1))
    ]
    weights = [layer.key[0].weight for layer in same]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[3])


def test_states_are_those_that_the_models_own_attention_sees() -> None:
    own = dense_adapter("llama")
    ids = torch.arange(300) % 90 + 5
    with torch.no_grad():
        past = own.model(input_ids=ids[None], use_cache=True).past_key_values
    whole, some = record_states(own, ids), record_states(own, ids, every=2)
    for layer, (queries, keys) in whole.items():
        torch.testing.assert_close(keys, past.layers[layer].keys[0], rtol=1e-4, atol=1e-4)
        assert queries.shape[1] == 300
        assert torch.equal(some[layer][0], queries[:, ::2])
        assert torch.equal(some[layer][1], keys)


def test_a_stopped_training_goes_on_and_ends_with_the_same_networks(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = dense_adapter("llama")
    unbroken = train_model(own, TrainingOptions(BITS, STEPS, output=tmp_path / "unbroken.safetensors"))
    fitted: list[int] = []
    real = hash_training.fit_layer

    def stopping(texts: Any, layer: int, *rest: Any) -> Any:
        if layer == 1 and not fitted[1:]:
            fitted.append(-1)
            raise KeyboardInterrupt
        fitted.append(layer)
        return real(texts, layer, *rest)

    monkeypatch.setattr(hash_training, "fit_layer", stopping)
    with pytest.raises(KeyboardInterrupt):
        train_model(own, OPTIONS)
    assert not list(cache.glob("*.safetensors"))
    path = train_model(own, OPTIONS)
    assert fitted == [0, -1, 1, 2]
    assert list(cache.iterdir()) == [path]
    one, other = load_file(path), load_file(unbroken)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)

    train_model(own, OPTIONS)
    assert fitted == [0, -1, 1, 2]
    train_model(own, TrainingOptions(BITS, STEPS, seed=1))
    assert fitted == [0, -1, 1, 2, 0, 1, 2]
    assert not torch.equal(load_file(path)["layer.0.key.0.weight"], one["layer.0.key.0.weight"])


def test_damaged_layers_of_a_stopped_training_are_trained_again(cache: Path) -> None:
    own = dense_adapter("llama")
    expected = load_file(train_model(own, OPTIONS))
    (path,) = cache.iterdir()
    path.unlink()
    parts = cache / f"{path.name}.layers"
    parts.mkdir()
    (parts / "layer.0.safetensors").write_bytes(b"half a file")
    again = load_file(train_model(own, OPTIONS))
    assert all(torch.equal(again[name], expected[name]) for name in expected)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_without_networks_the_error_gives_the_command_that_trains_them(
    family: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cache: Path
) -> None:
    own = dense_adapter(family)
    with pytest.raises(ConfigError, match=r"^masker\.hash_attention\.weights=null: .*no networks of 16 bits") as raised:
        give_learned(own, attention())
    command = re.search(r"python -m sah\.train_hash .*? bits=16", str(raised.value))
    assert command is not None
    argv = shlex.split(command[0])[2:]
    monkeypatch.setitem(train_hash._NUMBERS, "steps", (1, 1, "300"))
    monkeypatch.setattr(sys, "argv", argv)
    train_hash.main()
    path = weights_file(weights_metadata(own, BITS))
    assert str(path) in capsys.readouterr().out
    given = attention()
    give_learned(own, given)
    layers = hash_weights(own, None, BITS)
    assert len(layers) == len(record_states(own, torch.zeros(1, dtype=torch.long)))
    with pytest.raises(ConfigError, match="no networks of 8 bits"):
        hash_weights(own, None, 8)


def test_a_file_that_is_named_is_taken_and_checked(tmp_path: Path) -> None:
    own = dense_adapter("llama")
    path = train_model(own, TrainingOptions(BITS, 1, output=tmp_path / "own.safetensors"))
    give_learned(own, attention(path))
    with pytest.raises(ConfigError, match=r"masker\.hash_attention\.weights=.*own\.safetensors.*lacks|for .* heads"):
        hash_weights(dense_adapter("gemma3"), str(path), BITS)
    with pytest.raises(ConfigError, match=r"it gives 16 bits, but masker\.hash_attention\.bits is 32"):
        hash_weights(own, str(path), 32)
    with pytest.raises(ConfigError, match=r"masker\.hash_attention\.weights='/none.* there is no such file"):
        hash_weights(own, "/none", BITS)


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("bits=0", "bits='0' is not allowed"),
        ("bits=20", "bits='20' is not allowed"),
        ("bit=32", "Did you mean: bits="),
        ("steps=many", "steps='many' is not allowed"),
        ("output=here.pt", "ends in .safetensors"),
        ("seed=1", "seed=1 trains other networks than those that masker=hash_attention finds by itself"),
        ("model=lama", "lama"),
    ],
)
def test_mistakes_are_told(
    argument: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train_hash", argument])
    with pytest.raises(SystemExit) as ended:
        train_hash.main()
    assert ended.value.code == 1
    assert words in capsys.readouterr().err
