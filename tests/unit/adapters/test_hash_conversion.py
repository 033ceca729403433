"""Converting the authors' checkpoints of HashAttention: what comes out, and what is refused without being run."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sah.adapters.base import Request
from sah.adapters.hash_conversion import read_checkpoint
from sah.adapters.hash_files import LayerShape, fitting_weights, read_weights
from sah.adapters.huggingface import ModelAdapterHF
from sah.convert_hash import main
from sah.errors import ConfigError, DataError
from sah.sparse_attention import (
    EfficientAttentionConfig,
    HashAttentionConfig,
    HashAttentionTopKMaskerConfig,
    ResearchAttentionConfig,
)
from sah.sparse_attention.hash_weights import mapped
from tests.support.models import folder

HEADS, HEAD_DIM, HIDDEN = 4, 6, 5


class PublishedLayer(nn.Module):
    """The modules of one layer as the authors name them."""

    def __init__(self, linears: int, bits: int, heads: int = HEADS, head_dim: int = HEAD_DIM) -> None:
        super().__init__()
        for side in "kq":
            networks = nn.ModuleList([network(linears, bits, head_dim) for _ in range(heads)])
            self.add_module(f"learning_to_hash_transformation_{side}", networks)


def network(linears: int, bits: int, head_dim: int) -> nn.Sequential:
    sizes = [head_dim, *[HIDDEN] * (linears - 1), bits]
    parts: list[nn.Module] = []
    for place in range(linears):
        parts += [*([nn.SiLU()] if place else []), nn.Linear(sizes[place], sizes[place + 1])]
    return nn.Sequential(*parts)


def published(layers: int = 2, linears: int = 3, bits: int = 16) -> nn.ModuleList:
    torch.manual_seed(5)
    return nn.ModuleList([PublishedLayer(linears, bits) for _ in range(layers)])


@pytest.mark.parametrize(
    ("linears", "bits", "dtype"), [(3, 16, torch.float32), (1, 32, torch.bfloat16), (2, 64, torch.bfloat16)]
)
def test_the_networks_give_the_same_numbers(
    linears: int, bits: int, dtype: torch.dtype, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    modules = published(12, linears, bits).to(dtype)
    torch.save(modules.state_dict(), tmp_path / "published.pt")
    out = tmp_path / "folder" / "hash.safetensors"
    assert main([str(tmp_path / "published.pt"), str(out)]) == 0
    assert f"masker.hash_attention.bits={bits} masker.hash_attention.weights={out}" in capsys.readouterr().out
    layers, metadata = read_weights(out)
    assert metadata["converted_from"] == "published.pt"
    shape = LayerShape(heads=HEADS, kv_heads=2, head_dim=HEAD_DIM)
    layers = fitting_weights(layers, dict.fromkeys(range(12), shape), bits)
    states = torch.randn(2, HEADS, 7, HEAD_DIM)
    modules = modules.float()
    for number in (0, 1, 11):
        for side, maps in (("q", layers[number].query), ("k", layers[number].key)):
            given = getattr(modules[number], f"learning_to_hash_transformation_{side}")
            wanted = torch.stack([given[head](states[:, head]) for head in range(HEADS)], dim=1)
            torch.testing.assert_close(mapped(states, maps), wanted)


def test_a_converted_file_is_used_by_an_adapter(tmp_path: Path) -> None:
    torch.manual_seed(6)
    modules = nn.ModuleList([PublishedLayer(3, 16, heads=4, head_dim=16) for _ in range(3)])
    torch.save(modules.state_dict(), tmp_path / "published.pt")
    out = tmp_path / "hash.safetensors"
    assert main([str(tmp_path / "published.pt"), str(out)]) == 0
    answers = []
    for attention in (ResearchAttentionConfig, EfficientAttentionConfig):
        recipe = [HashAttentionTopKMaskerConfig(density=0.2, bits=16, weights=str(out))]
        adapter = ModelAdapterHF(attention(masker_configs=recipe), folder("llama"))
        answers.append(adapter.process_request(Request("a b c d e f " * 20, " which one?", max_new_tokens=4)))
    assert answers[0] == answers[1]
    adapter = ModelAdapterHF(HashAttentionConfig(density=0.2, bits=32, weights=str(out)), folder("llama"))
    with pytest.raises(ConfigError, match="gives 16 bits"):
        adapter.process_request(Request("a b c", " which one?"))


class Harmful:
    """Pickles to a call that makes a folder when it is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("as_torch", [True, False])
def test_a_file_that_would_run_code_is_refused_and_runs_nothing(
    as_torch: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, made = tmp_path / "harmful.pt", tmp_path / "made"
    content = {**published().state_dict(), "9.more": Harmful(made)}
    if as_torch:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    assert main([str(path), str(tmp_path / "out.safetensors")]) == 1
    assert "restricted reader refuses it" in capsys.readouterr().err
    assert not made.exists() and not (tmp_path / "out.safetensors").exists()
    # The file is harmful: an unrestricted reader does run it.
    torch.load(path, weights_only=False) if as_torch else pickle.loads(path.read_bytes())
    assert made.exists()


def _without(state: dict[str, Any], part: str) -> dict[str, Any]:
    return {name: value for name, value in state.items() if part not in name}


FIRST = "0.learning_to_hash_transformation_k.0.0"
DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "another tensor": (lambda s: {**s, "0.more": torch.ones(2)}, "'0.more', which is no part"),
    "a number": (lambda s: {**s, "epoch": 3}, "'epoch' is int"),
    "a list": (lambda s: [s], "holds list"),
    "nothing": (lambda s: {}, "holds dict"),
    "a head less": (lambda s: _without(s, "_q.3."), "different heads"),
    "a head between": (lambda s: _without(s, "0.learning_to_hash_transformation_q.1."), "lacks networks"),
    "no bias": (lambda s: _without(s, f"{FIRST}.bias"), "has no bias"),
    "no queries": (lambda s: _without(s, "_q."), "lacks networks"),
    "a layer between": (lambda s: {n.replace("1.l", "4.l", 1): v for n, v in s.items()}, "[0, 4]"),
    "not finite": (lambda s: {**s, f"{FIRST}.bias": torch.full((HIDDEN,), float("nan"))}, "not finite"),
    "integers": (lambda s: {**s, f"{FIRST}.bias": torch.ones(HIDDEN, dtype=torch.int64)}, "torch.int64"),
    "other sizes": (lambda s: {**s, f"{FIRST}.weight": torch.ones(HIDDEN, 9)}, "do not fit together"),
    "in the place of SiLU": (lambda s: {n.replace(".0.0.", ".0.1."): v for n, v in s.items()}, "where SiLU should"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_anything_else_in_the_file_is_an_error(damage: str, tmp_path: Path) -> None:
    change, told = DAMAGES[damage]
    path = tmp_path / "published.pt"
    torch.save(change(dict(published().state_dict())), path)
    with pytest.raises(DataError) as caught:
        read_checkpoint(path)
    assert told in str(caught.value) and str(path) in str(caught.value)


def test_bits_that_do_not_fill_bytes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "published.pt"
    torch.save(published(bits=12).state_dict(), path)
    with pytest.raises(DataError, match="12 bits; allowed is a multiple of 8"):
        read_checkpoint(path)


def test_files_that_cannot_be_read_or_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, cut, text = (tmp_path / name for name in ("whole.pt", "cut.pt", "text.pt"))
    torch.save(published().state_dict(), whole)
    cut.write_bytes(whole.read_bytes()[:2000])
    text.write_text("words")
    out = tmp_path / "out.safetensors"
    for path in (tmp_path / "none.pt", tmp_path, cut, text, tmp_path / "empty"):
        (tmp_path / "empty").touch()
        assert main([str(path), str(out)]) == 1
        assert f"{str(path)!r} cannot be converted" in capsys.readouterr().err.replace("\n", " ")
    text.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0ff1\nsize 157096174\n")
    assert main([str(text), str(out)]) == 1
    assert "git lfs pull" in capsys.readouterr().err
    assert main([str(whole), str(tmp_path / "out.pt")]) == 1
    assert "no safetensors file" in capsys.readouterr().err
    assert main([str(whole), str(text / "out.safetensors")]) == 1
    assert "cannot be written" in capsys.readouterr().err
    assert not out.exists()
