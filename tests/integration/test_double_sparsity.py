"""Double Sparsity from the command line: calibrated on first use, kept in the cache, or read from a given file."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sah.fetching import CACHE_VARIABLE
from tests.integration.running import run, sparse_of, stored

KEY = "masker.double_sparsity.channels"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of one's own."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "channels"


def channel_file(path: Path, layers: int = 3, roll: int = 0) -> Path:
    """Write a channel file for the tiny Llama."""
    save_file({f"layer.{layer}": torch.arange(16).roll(roll).repeat(2, 1) for layer in range(layers)}, path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("execution", ["efficient", "research"])
def test_a_model_is_calibrated_once(execution: str, cache: Path) -> None:
    first = run("masker=double_sparsity", "density=0.2", f"execution={execution}")
    assert first.code == 0, first.text
    (path,) = cache.iterdir()
    assert "on 2048 tokens" in first.text and path.name in first.text.replace(" ", "")
    for row in sparse_of().predictions.values():
        assert row.status == "ok"
        assert row.density_measured == pytest.approx(0.2, abs=0.01)
    second = run("masker=double_sparsity", "density=0.3", f"execution={execution}")
    assert second.code == 0, second.text
    assert "alibrating" not in second.text


@pytest.mark.slow
def test_both_executions_read_the_same_channels() -> None:
    for execution in ("efficient", "research"):
        assert run("masker=double_sparsity", "density=0.2", f"execution={execution}").code == 0
    answers = [
        {key: row.token_ids for key, row in point.predictions.items()}
        for point in stored().values()
        if point.label != "dense"
    ]
    assert len(answers) == 2 and answers[0] == answers[1]


@pytest.mark.slow
def test_a_given_file_is_used_and_known_by_its_content(cache: Path) -> None:
    one = channel_file(Path("one.safetensors"))
    done = run("masker=double_sparsity", f"{KEY}={one}")
    assert done.code == 0, done.text
    assert not cache.exists()
    shutil.copy(one, "copy.safetensors")
    again = run("masker=double_sparsity", f"{KEY}=copy.safetensors")
    assert again.code == 0, again.text
    assert len(stored()) == 2, "dense and one sparse point"
    other = channel_file(Path("other.safetensors"), roll=5)
    assert run("masker=double_sparsity", f"{KEY}={other}").code == 0
    assert run("masker=double_sparsity").code == 0
    assert len(stored()) == 4


def test_files_that_cannot_be_used() -> None:
    short = channel_file(Path("short.safetensors"), layers=2)
    Path("text.safetensors").write_text("channels", encoding="utf-8")
    for path, said in [
        ("none.safetensors", "No such file"),
        (str(short), "lacks the full-attention layers 2 of the model"),
        ("text.safetensors", "no safetensors file"),
    ]:
        done = run("masker=double_sparsity", f"{KEY}={path}")
        assert done.code != 0
        for part in (f"{KEY}='{path}'", said, f"{KEY}=null"):
            assert part in done.text
        assert "Traceback" not in done.text
