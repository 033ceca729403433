"""Finding models: names, local folders, the hub cache, and a hub that refuses in every way."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sah import fetching
from sah.adapters import checkpoint, factory, hub
from sah.config.model import ModelConfig
from sah.errors import ConfigError, ModelError

COMMIT = "c" * 40
ANSWERS = {
    "owner/good": (200, None),
    "owner/gated": (401, "GatedRepo"),
    "owner/forbidden": (403, "GatedRepo"),
    "owner/absent": (401, "RepoNotFound"),
    "owner/lost": (404, "RepoNotFound"),
    "owner/no-config": (404, "EntryNotFound"),
    "owner/no-revision": (404, "RevisionNotFound"),
    "owner/denied": (403, None),
    "owner/broken": (503, None),
    "owner/silent": (0, None),
}


class Hub(BaseHTTPRequestHandler):
    """Answers HEAD requests for config.json as the hub does."""

    def do_HEAD(self) -> None:
        status, code = ANSWERS["/".join(self.path.split("/")[1:3])]
        if status == 0:
            time.sleep(20)
            return
        self.send_response(status)
        if code is not None:
            self.send_header("X-Error-Code", code)
        if status == 200:
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", '"abc"')
        self.send_header("Content-Length", "2")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[str, str, float]]]:
    """What `resolve_model` says about every id of the fake hub, asked by one fresh process: kind, text, seconds."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    code = """
import json, sys, time
from sah.adapters import factory
said = {}
for name in sys.argv[1:]:
    started = time.monotonic()
    try:
        kind, text = "ok", repr(factory.resolve_model(name))
    except Exception as error:
        kind, text = type(error).__name__, str(error)
    said[name] = (kind, text, time.monotonic() - started)
said["heavy"] = ("", ",".join({"torch", "transformers"} & set(sys.modules)), 0)
print(json.dumps(said))
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path_factory.mktemp("hf")),
        "NO_PROXY": "127.0.0.1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code, *ANSWERS], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    yield json.loads(done.stdout.splitlines()[-1])
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_reachable_hub_model_keeps_its_id_and_names_its_commit(answers: dict[str, Any]) -> None:
    kind, text, _ = answers["owner/good"]
    assert kind == "ok"
    assert "path_or_id='owner/good'" in text and COMMIT in text and "label='good'" in text


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("owner/gated", ["owner/gated is gated", "hf auth login", "/owner/gated"]),
        ("owner/forbidden", ["owner/forbidden is gated"]),
        ("owner/absent", ["no model owner/absent, or it is private (HTTP 401)", "hf auth login"]),
        ("owner/lost", ["no model owner/lost, or it is private (HTTP 404)"]),
        ("owner/no-config", ["has no config.json"]),
        ("owner/no-revision", ["has no revision", "model.model_kwargs.revision"]),
        ("owner/denied", ["refused access to owner/denied (HTTP 403)"]),
        ("owner/broken", ["could not serve owner/broken (HTTP 503)"]),
        ("owner/silent", ["cannot be reached"]),
    ],
)
def test_refusals_are_one_clear_error(name: str, parts: list[str], answers: dict[str, Any]) -> None:
    kind, text, seconds = answers[name]
    assert kind == "ModelError"
    for part in [*parts, "model.name=/path/to/model", "model=llama"]:
        assert part in text
    assert "\n" not in text
    assert seconds < 15


def test_finding_a_hub_model_imports_no_torch(answers: dict[str, Any]) -> None:
    assert answers["heavy"][1] == ""


def test_slow_name_resolution_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: False)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *a, **k: time.sleep(5))
    monkeypatch.setattr(hub, "TOTAL_SECONDS", 0.1)
    started = time.monotonic()
    with pytest.raises(ModelError, match="cannot be reached .no answer within"):
        factory.resolve_model("owner/dns")
    assert time.monotonic() - started < 3


@pytest.fixture
def hub_cache(tmp_path: Path) -> Path:
    """A hub cache that holds `owner/kept`, complete, at one commit."""
    repo = tmp_path / "models--owner--kept"
    snapshot = repo / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    for name in ("config.json", "tokenizer.json", "model-1.safetensors", "model-2.safetensors"):
        (snapshot / name).write_text("{}")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    return tmp_path


def test_cached_hub_model_needs_no_network(hub_cache: Path) -> None:
    found = factory.resolve_model("owner/kept", {"cache_dir": str(hub_cache)})
    assert found.path_or_id == str(hub_cache / "models--owner--kept" / "snapshots" / COMMIT)
    assert (found.checkpoint_hash, found.label) == (COMMIT, "kept")


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model-2.safetensors"])
def test_half_cached_hub_model_offline(hub_cache: Path, missing: str) -> None:
    (hub_cache / "models--owner--kept" / "snapshots" / COMMIT / missing).unlink()
    with pytest.raises(ModelError, match="owner/kept is not in the local hub cache, and HF_HUB_OFFLINE"):
        factory.resolve_model("owner/kept", {"cache_dir": str(hub_cache)})


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("tiny:nothing", "no model 'tiny:nothing'.*tiny:llama"),
        ("embedded:gpt", "embedded:smollm2-135m-instruct"),
        ("https://huggingface.co/a/b", "a local folder, or a hub id"),
        ("llama", "Write model=llama, or model.name=embedded:smollm2-135m-instruct"),
        ("/no/such/folder", "there is no such folder"),
        ("./nothing", "there is no such folder"),
        ("a/b/c", "there is no such folder"),
        ("bad name!", "neither a local folder nor a hub id"),
        (" ", "model.name is empty"),
    ],
)
def test_bad_names(name: str, match: str) -> None:
    with pytest.raises(ModelError, match=match):
        factory.resolve_model(name)


def test_local_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no config\.json"):
        factory.resolve_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="is a file"):
        factory.resolve_model(str(tmp_path / "config.json"))


def test_local_folder_is_identified_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_HASHED_WHOLE", 1000)
    weights = bytes(range(256)) * (300 << 10 >> 8) * 64
    folders = []
    for name in ("one", "two", "three"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(weights if name != "three" else weights[::-1])
        folders.append(factory.resolve_model(str(folder)))
    assert folders[0].checkpoint_hash == folders[1].checkpoint_hash != folders[2].checkpoint_hash
    assert folders[0].label == "one"
    (tmp_path / "one" / "config.json").write_text('{"a": 1}')
    changed = factory.resolve_model(str(tmp_path / "one"))
    assert changed.checkpoint_hash != folders[0].checkpoint_hash


@pytest.fixture
def tiny_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(fetching.CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(factory, "_loaded", {})
    yield


def test_create_adapter_defaults_to_float32_on_the_cpu(tiny_cache: None) -> None:
    import torch

    adapter = factory.create_adapter("tiny:llama")
    assert adapter.model.dtype == torch.float32
    assert adapter.sparse_attention is None
    other = factory.create_adapter(ModelConfig("tiny:llama", model_kwargs={"dtype": "bfloat16"}))
    assert other.model.dtype == torch.bfloat16


def test_one_adapter_a_model_config_and_one_in_the_process(tiny_cache: None) -> None:
    adapter = factory.load_adapter_cached(ModelConfig("tiny:llama"))
    assert factory.load_adapter_cached(ModelConfig("tiny:llama", label="other")) is adapter
    other = factory.load_adapter_cached(ModelConfig("tiny:llama", model_kwargs={"dtype": "bfloat16"}))
    assert other is not adapter
    forgotten = weakref.ref(adapter)
    del adapter
    gc.collect()
    assert forgotten() is None
    assert factory.load_adapter_cached(ModelConfig("tiny:llama")) is not other


def test_own_models_load_without_a_progress_bar(tiny_cache: None, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    factory.resolve_model("tiny:llama")
    capfd.readouterr()
    factory.create_adapter("tiny:llama")
    assert capfd.readouterr() == ("", "")
    assert logging.is_progress_bar_enabled()


class Recorder:
    """Stands in for ModelAdapterHF and keeps what it was given."""

    def __init__(self, *given: Any) -> None:
        self.given = given


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch, tiny_cache: None) -> None:
    monkeypatch.setattr("sah.adapters.huggingface.ModelAdapterHF", Recorder)


def test_users_arguments_win_and_stay_untouched(recorded: None) -> None:
    given = {"device_map": {"": "cpu"}, "trust_remote_code": True, "dtype": "float16"}
    config = ModelConfig("tiny:llama", {"padding_side": "left"}, dict(given))
    _, path, for_tokenizer, for_model = factory.create_adapter(config, tokenizer_kwargs={"use_fast": True}).given
    assert Path(path).is_dir()
    assert for_model == given
    assert for_tokenizer == {"padding_side": "left", "use_fast": True, "trust_remote_code": False}
    assert config.model_kwargs == given and config.tokenizer_kwargs == {"padding_side": "left"}


@pytest.mark.parametrize(("cuda", "mps", "device"), [(True, True, "cuda"), (False, True, "mps"), (False, False, None)])
def test_default_device(
    cuda: bool, mps: bool, device: str | None, recorded: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    for_model = factory.create_adapter("tiny:llama").given[3]
    assert for_model.get("device_map") == device
    assert ("dtype" in for_model) == (device is None)
    assert for_model["trust_remote_code"] is False


def test_tokenizer_follows_the_models_revision(recorded: None, hub_cache: Path) -> None:
    options = {"cache_dir": str(hub_cache), "revision": COMMIT}
    _, path, for_tokenizer, _ = factory.create_adapter("owner/kept", model_kwargs=options).given
    assert path.endswith(COMMIT)
    assert for_tokenizer["revision"] == COMMIT
    config = ModelConfig("owner/kept", {"revision": "other"}, options)
    assert factory.create_adapter(config).given[1] == "owner/kept"


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"name": ""}, "model.name"),
        ({"name": 3}, "model.name"),
        ({"name": "a", "model_kwargs": ["x"]}, r"model\.model_kwargs.*\+model\.model_kwargs\.dtype"),
        ({"name": "a", "tokenizer_kwargs": {1: 2}}, "model.tokenizer_kwargs"),
        ({"name": "a", "label": " "}, "model.label"),
    ],
)
def test_model_config_is_validated(values: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        ModelConfig(**values)
