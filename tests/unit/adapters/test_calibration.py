"""Double Sparsity's channels: found by importance, kept in the cache, handed to the maskers that need them."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sah.adapters import attention_switch as switch
from sah.adapters import calibration
from sah.adapters.channel_files import UnfitFile, load_channel_file, read_channels, write_channels
from sah.adapters.checkpoint import loaded_checkpoint_identity
from sah.adapters.huggingface import ModelAdapterHF
from sah.errors import ConfigError
from sah.fetching import CACHE_VARIABLE
from sah.sparse_attention import CausalMaskerConfig
from sah.sparse_attention.auto import AutoAttention
from sah.sparse_attention.channels import calibration_text, channels_identity
from sah.sparse_attention.config import ResearchAttentionConfig
from sah.sparse_attention.maskers.causal import CausalMasker
from tests.support.models import CONTEXT, QUESTIONS, adapter, dense_adapter, folder

TOKENS = 200
LLAMA_SHAPES = {0: (2, 16), 1: (2, 16), 2: (2, 16)}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A calibration on few tokens, and a cache of one's own: the folder of channel files."""
    folder("llama")
    monkeypatch.setattr(calibration, "CALIBRATION_TOKENS", TOKENS)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "channels"


@pytest.fixture
def calibrated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of tokens at every calibration."""
    counted: list[int] = []
    real = calibration.calibrate

    def counting(own: ModelAdapterHF, ids: torch.Tensor) -> Any:
        counted.append(len(ids))
        return real(own, ids)

    monkeypatch.setattr(calibration, "calibrate", counting)
    return counted


def same(left: dict[int, torch.Tensor], right: dict[int, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[layer], right[layer]) for layer in left)


def channels_of(shapes: dict[int, tuple[int, int]] = LLAMA_SHAPES, step: int = 1) -> dict[int, torch.Tensor]:
    """An order that starts with the last channel."""
    return {layer: torch.arange(dim).flip(0).roll(step).repeat(heads, 1) for layer, (heads, dim) in shapes.items()}


def all_pairs_importance(own: ModelAdapterHF, ids: torch.Tensor) -> dict[int, torch.Tensor]:
    """The mean of |q_d k_d| over all pairs, summed over the group, from one call with the model's own attention."""
    found: dict[int, torch.Tensor] = {}
    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def look(module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> Any:
        keys = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        pairs = (query[:, :, :, None] * keys[:, :, None]).abs().mean(dim=(0, 2, 3))
        found[module.layer_idx] = pairs.view(key.shape[1], -1, key.shape[-1]).sum(1)
        return sdpa(module, query, key, value, mask, **kwargs)

    switch.register("sah_test_look", look)
    try:
        with torch.no_grad(), switch.switched(switch.implementations(own.model), "sah_test_look"):
            own.model(input_ids=ids[None])
    finally:
        switch.unregister("sah_test_look")
    return found


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_channels_are_ordered_by_their_mean_product_over_all_pairs(family: str) -> None:
    own = dense_adapter(family)
    order = calibration.channel_order(own)
    ids = torch.tensor(own.tokenizer(calibration_text())["input_ids"][:TOKENS])
    expected = all_pairs_importance(own, ids)
    assert order.keys() == expected.keys()
    for layer, channels in order.items():
        assert channels.dtype == torch.int64
        importance = expected[layer].gather(-1, channels)
        assert (importance.diff(dim=-1) <= 1e-5 * importance.max()).all()
        assert importance[:, 0].max() > 1.5 * importance[:, -1].min()


def test_a_dominant_channel_comes_first_in_its_head_alone() -> None:
    own, ids = ModelAdapterHF(None, folder("llama")), torch.arange(5, 205)
    before = calibration.calibrate(own, ids)
    attention = own.model.model.layers[1].self_attn
    with torch.no_grad():
        # Rows of (heads, head_dim); channels 3 and 11 are turned into each other by the rotary embedding.
        attention.k_proj.weight.view(2, 16, -1)[0, [3, 11]] *= 100
        attention.q_proj.weight.view(4, 16, -1)[3, [6, 14]] *= 100
    order = calibration.calibrate(own, ids)
    assert set(order[1][0, :2].tolist()) == {3, 11}
    assert set(order[1][1, :2].tolist()) == {6, 14}
    assert not same(order, before)
    assert torch.equal(order[0], before[0])


def test_the_cache_is_used_the_second_time(cache: Path, calibrated: list[int], caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    first = calibration.channel_order(adapter())
    again = calibration.channel_order(adapter())
    assert calibrated == [TOKENS]
    assert same(first, again)
    (path,) = cache.iterdir()
    assert path.name.endswith("-float32-v1.safetensors")
    assert str(path) in caplog.text and f"on {TOKENS} tokens" in caplog.text
    assert same(load_channel_file(path), first), "a file of the cache is a file that one can give"


def test_the_bar_goes_to_stderr_and_counts_tokens(capfd: pytest.CaptureFixture[str]) -> None:
    calibration.channel_order(adapter())
    out, err = capfd.readouterr()
    assert out == ""
    assert f"{TOKENS}/{TOKENS} tokens" in " ".join(err.split())


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def rewritten(order: dict[int, torch.Tensor] | None = None, **metadata: str) -> Callable[[Path], None]:
    def rewrite(path: Path) -> None:
        kept, said = read_channels(path)
        write_channels(path, kept if order is None else order, said | metadata)

    return rewrite


def repeat_a_channel(path: Path) -> None:
    tensors = load_file(path)
    tensors["layer.0"][0, 0] = tensors["layer.0"][0, 1]
    save_file(tensors, path, read_channels(path)[1])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut, "no safetensors file"),
        (lambda path: path.write_text("{}"), "no safetensors file"),
        (rewritten(text_sha256="0"), "another calibration"),
        (rewritten(tokens="100"), "another calibration"),
        (rewritten(model="other"), "another calibration"),
        (rewritten(channels_of({0: (2, 16), 1: (2, 16)})), "lacks the full-attention layers 2 "),
        (rewritten(channels_of({0: (2, 16), 1: (2, 8), 2: (2, 16)})), r"layer.1 has shape (2, 8)"),
        (rewritten(channels_of({0: (4, 16), 1: (2, 16), 2: (2, 16)})), r"layer.0 has shape (4, 16)"),
        (repeat_a_channel, "each channel from 0 to 15 once"),
    ],
)
def test_a_broken_cache_is_made_again(
    damage: Callable[[Path], None], said: str, cache: Path, calibrated: list[int], caplog: Any
) -> None:
    first = calibration.channel_order(adapter())
    (path,) = cache.iterdir()
    _, metadata = read_channels(path)
    damage(path)
    assert same(calibration.channel_order(adapter()), first)
    assert len(calibrated) == 2
    assert said in caplog.text and str(path) in caplog.text
    assert read_channels(path)[1] == metadata
    assert same(load_channel_file(path), first)


def test_another_model_or_type_has_a_file_of_its_own(cache: Path) -> None:
    own = ModelAdapterHF(None, folder("llama"), model_kwargs={"dtype": torch.bfloat16})
    for each in (dense_adapter(), dense_adapter("mistral"), own):
        calibration.channel_order(each)
    assert len(list(cache.iterdir())) == 3
    assert sum("bfloat16" in path.name for path in cache.iterdir()) == 1


def test_identity_is_that_of_the_weights(tmp_path: Path) -> None:
    model, name = dense_adapter().model, folder("llama")
    identity = loaded_checkpoint_identity(model, name)
    copied = shutil.copytree(name, tmp_path / "copy")
    assert loaded_checkpoint_identity(model, str(copied)) == identity
    assert loaded_checkpoint_identity(ModelAdapterHF(None, str(copied)).model, str(copied)) == identity
    (copied / "config.json").write_text("{}")
    others = [
        loaded_checkpoint_identity(model, str(copied)),
        loaded_checkpoint_identity(model, "owner/name"),
        loaded_checkpoint_identity(dense_adapter("mistral").model, "owner/name"),
    ]
    changed = ModelAdapterHF(None, name)
    changed.model.config._commit_hash = "c" * 40
    others.append(loaded_checkpoint_identity(changed.model, "owner/name"))
    with torch.no_grad():
        changed.model.model.layers[2].self_attn.q_proj.weight += 0.01
    others.append(loaded_checkpoint_identity(changed.model, "owner/name"))
    assert len({identity, *others}) == 6


def test_a_short_window_is_calibrated_on_less(calibrated: list[int], caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    own = ModelAdapterHF(None, folder("llama"))
    own.model.config.max_position_embeddings = 50
    calibration.channel_order(own)
    assert calibrated == [50]
    assert f"less than {TOKENS} tokens" in caplog.text


def test_only_layers_that_see_the_whole_sequence_have_channels() -> None:
    own = dense_adapter("gemma3")
    order = calibration.channel_order(own)
    assert {layer: tuple(channels.shape) for layer, channels in order.items()} == {5: (2, 16)}


def test_a_cache_that_cannot_be_written_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    expected = calibration.channel_order(adapter())
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file"))
    assert same(calibration.channel_order(adapter()), expected)
    assert "cannot be kept" in caplog.text


def registered() -> list[str]:
    return sorted([*AttentionInterface._global_mapping, *AttentionMaskInterface._global_mapping])


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_stays_as_it_was(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    own, other = adapter("gemma3"), adapter("gemma3", "causal")
    ids = torch.arange(5, 65)[None]
    weights = {name: weight.clone() for name, weight in own.model.state_dict().items()}
    with torch.no_grad():
        logits = own.model(input_ids=ids).logits
    if fails:
        monkeypatch.setattr("sah.adapters.reading.masked_attention", lambda *_, **__: 1 / 0)
    with other.enable_sparse_mode():
        names = registered()
        implementations = switch.implementations(own.model)
        try:
            calibration.channel_order(own)
        except ZeroDivisionError:
            assert fails
        else:
            assert not fails
        assert switch.implementations(own.model) == implementations
        assert registered() == names
    with torch.no_grad():
        assert torch.equal(own.model(input_ids=ids).logits, logits)
    assert all(torch.equal(weight, weights[name]) for name, weight in own.model.state_dict().items())
    assert all(weight.grad is None for weight in own.model.parameters())
    other.close()


@dataclass
class ChannelMaskerConfig(CausalMaskerConfig):
    channels: str | None = None


class ChannelMasker(CausalMasker):
    """Keeps everything, and notes the channels that it is given and the calls that it gets."""

    needs_channels = True

    def __init__(self, channels: str | None) -> None:
        super().__init__(ChannelMaskerConfig(channels=channels))
        self.events: list[Any] = []

    def use_channels(self, order: dict[int, torch.Tensor]) -> None:
        self.events.append(order)

    def add_mask(self, *args: Any, **kwargs: Any) -> Any:
        self.events.append("call")
        return super().add_mask(*args, **kwargs)


def with_masker(channels: str | None = None, family: str = "llama") -> tuple[ModelAdapterHF, ChannelMasker]:
    """An adapter whose one masker wants channels."""
    own, masker = adapter(family, "causal"), ChannelMasker(channels)
    own.sparse_attention.maskers[:] = [masker]
    return own, masker


def test_maskers_get_the_channels_once_before_the_first_call(calibrated: list[int]) -> None:
    own, masker = with_masker()
    cache = own.prefill(CONTEXT)
    assert calibrated == []
    for question in QUESTIONS[:2]:
        own.answer(cache, question, max_new_tokens=2)
    assert same(masker.events[0], calibration.channel_order(own))
    assert masker.events[1:] == ["call"] * len(masker.events[1:]) != []
    assert calibrated == [TOKENS]
    clone = own.with_sparse_attention(ResearchAttentionConfig(masker_configs=[CausalMaskerConfig()]))
    clone.sparse_attention.maskers[:] = [ChannelMasker(None)]
    with clone.enable_sparse_mode():
        clone.generate("The miller", max_new_tokens=2)
    assert same(clone.sparse_attention.maskers[0].events[0], masker.events[0])
    assert calibrated == [TOKENS]


def test_both_executions_of_auto_get_the_channels(calibrated: list[int]) -> None:
    attention = AutoAttention(ResearchAttentionConfig(masker_configs=[CausalMaskerConfig()]))
    maskers = [ChannelMasker(None), ChannelMasker(None)]
    attention.research.maskers[:], attention.efficient.maskers[:] = maskers[:1], maskers[1:]
    calibration.give_channels(dense_adapter(), attention)
    assert [len(masker.events) for masker in maskers] == [1, 1]
    assert calibrated == [TOKENS]


def test_a_given_file_is_used_as_it_is(tmp_path: Path, cache: Path, calibrated: list[int]) -> None:
    path = tmp_path / "own.safetensors"
    order = channels_of() | {7: torch.arange(4)[None]}
    save_file({f"layer.{layer}": channels.to(torch.int32) for layer, channels in order.items()}, path)
    own, masker = with_masker(str(path))
    own.answer(own.prefill(CONTEXT), QUESTIONS[0], max_new_tokens=2)
    assert same(masker.events[0], channels_of()), "layers that the model has not are left out"
    assert {channels.dtype for channels in masker.events[0].values()} == {torch.int64}
    assert calibrated == [] and not cache.exists()


def saved(**tensors: torch.Tensor) -> Callable[[Path], None]:
    named = {name.replace("_", "."): tensor.clone() for name, tensor in tensors.items()}
    return lambda path: save_file(named, path)


ORDER = channels_of()[0]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "there is no such file"),
        (Path.mkdir, "no safetensors file"),
        (lambda path: torch.save({"layer.0": ORDER}, path), "no safetensors file"),
        (saved(), "holds no layer"),
        (saved(layer_0=ORDER, layer_1=ORDER), "lacks the full-attention layers 2 of the model"),
        (saved(layer_x=ORDER), "'layer.x', which names no layer"),
        (saved(weight=ORDER), "'weight', which names no layer"),
        (saved(layer_0=ORDER, layer_1=ORDER, layer_2=ORDER[:1]), r"layer.2 has shape (1, 16), but (kv_heads"),
        (saved(layer_0=ORDER, layer_1=ORDER, layer_2=ORDER[0]), "not integers in two dimensions"),
        (saved(layer_0=ORDER.float()), "layer.0 is torch.float32 of shape (2, 16), not integers"),
        (saved(layer_0=ORDER + 1), "layer.0 does not hold each channel from 0 to 15 once"),
        (saved(layer_0=ORDER * 0), "layer.0 does not hold each channel"),
    ],
)
def test_a_bad_file_is_a_clear_error(make: Callable[[Path], None], said: str, tmp_path: Path) -> None:
    path = tmp_path / "given.safetensors"
    make(path)
    own, masker = with_masker(str(path))
    with pytest.raises(ConfigError) as caught, own.enable_sparse_mode():
        pass
    message = str(caught.value)
    for part in (
        "masker.double_sparsity.channels=",
        str(path),
        said,
        "Allowed:",
        "masker.double_sparsity.channels=null",
    ):
        assert part in message
    assert masker.events == []


def test_identity_of_channels_is_their_content(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_channels(tmp_path / name, channels_of(step=1 if name == "c" else 2), {})
    identities = [channels_identity(str(tmp_path / name)) for name in ("a", "b", "c")]
    assert identities[0] == identities[1] != identities[2]
    assert channels_identity(None).startswith("calibrated:v1:2048:")
    with pytest.raises(ConfigError, match=r"masker\.double_sparsity\.channels=.*No such file"):
        channels_identity(str(tmp_path / "none"))


def test_readers_never_meet_a_half_written_file(tmp_path: Path) -> None:
    path = tmp_path / "channels.safetensors"
    orders = [channels_of(step=step) for step in range(4)]
    write_channels(path, orders[0], {})
    writers = [
        threading.Thread(target=lambda own=order: [write_channels(path, own, {}) for _ in range(25)])
        for order in orders
    ]
    for writer in writers:
        writer.start()
    try:
        while any(writer.is_alive() for writer in writers):
            found, _ = read_channels(path)
            assert any(same(found, order) for order in orders)
    finally:
        for writer in writers:
            writer.join()
    assert [entry.name for entry in tmp_path.iterdir() if entry.is_file()] == [path.name]


def test_reading_a_channel_file_by_itself_needs_no_model(tmp_path: Path) -> None:
    path = tmp_path / "channels.safetensors"
    write_channels(path, channels_of(), {"any": "thing"})
    assert same(load_channel_file(path), channels_of())
    with pytest.raises(UnfitFile, match="no such file"):
        read_channels(tmp_path / "none")
