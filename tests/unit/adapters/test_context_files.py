"""Prefilled contexts on disk: they come back bit by bit, or not at all, and no file is ever an error."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from transformers import DynamicCache

from sah.adapters import context_files
from sah.adapters.context_cache import ContextCache, ContextStore
from sah.adapters.context_files import ContextFiles
from sah.adapters.context_format import layer_forms, write_context
from sah.adapters.huggingface import ModelAdapterHF
from sah.adapters.kv_cache import new_cache
from sah.adapters.prefill import run_context
from sah.errors import DataError
from tests.support.models import (
    CONTEXT,
    FAMILIES,
    QUESTIONS,
    adapter,
    config_of,
    dense_adapter,
    fixed_logits,
    folder,
    recorded_calls,
    same_cache,
    snapshot,
    stored_lengths,
)

GIB = 1 << 30
IDENTITY = {"checkpoint": "c", "model_kwargs": {}, "prompt_version": 1}
SHORT = "Ash sleeps on the wheel."
LONG = CONTEXT * 3
CONTEXTS = [f"{CONTEXT} Variation {i} of them." for i in range(4)]


def opened(path: Path, own: ModelAdapterHF | None = None, capacity: int = GIB, **identity: Any) -> ContextFiles:
    """The folder as another process would see it, for one model."""
    files = ContextFiles(path, capacity)
    files.identify(own or dense_adapter(), {**IDENTITY, **identity})
    return files


def written(path: Path, context: str = CONTEXT, own: ModelAdapterHF | None = None) -> tuple[ContextCache, Path]:
    """A context and its file."""
    own = own or dense_adapter()
    before = set(path.glob("*"))
    cache = own.prefill(context)
    opened(path, own).save(cache, own.prefill)
    (file,) = set(path.glob("*")) - before
    return cache, file


def load(path: Path, context: str = CONTEXT, own: ModelAdapterHF | None = None, **identity: Any) -> ContextCache | None:
    own = own or dense_adapter()
    return opened(path, own, **identity).load(context, own.prefill)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def answered(own: ModelAdapterHF, cache: ContextCache, question: str) -> tuple[list[int], list[torch.Tensor], Any]:
    """Ids, the logits of every step, and the measured density."""
    seen: list[torch.Tensor] = []

    def keep(logits: torch.Tensor) -> torch.Tensor:
        seen.append(logits.clone())
        return logits

    with fixed_logits(own.model, keep):
        answer = own.answer(cache, question, max_new_tokens=6)
    return answer.token_ids, seen, answer.density


def assert_same(restored: ContextCache | None, cache: ContextCache) -> None:
    """Everything is as it was after the prefill."""
    assert restored is not None
    assert (restored.model_name, restored.prompt) == (cache.model_name, cache.prompt)
    assert restored.prefill_seconds == cache.prefill_seconds > 0
    assert restored.prefill_cpu_seconds == cache.prefill_cpu_seconds
    assert restored.context_state == {}
    assert same_cache(snapshot(restored.past_key_values), snapshot(cache.past_key_values))
    assert stored_lengths(restored.past_key_values) == stored_lengths(cache.past_key_values)
    for mine, other in zip(restored.past_key_values.layers, cache.past_key_values.layers, strict=True):
        assert type(mine) is type(other)
        assert mine.get_mask_sizes(3) == other.get_mask_sizes(3)
        for name in ("record_past", "sliding_window", "cumulative_length", "dtype", "device"):
            assert getattr(mine, name, None) == getattr(other, name, None), name
        ours, theirs = getattr(mine, "_buffers", None), getattr(other, "_buffers", None)
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            assert [buffer.shape for buffer in ours] == [buffer.shape for buffer in theirs]


# --- what comes back ---


@pytest.mark.parametrize("context", [SHORT, LONG], ids=["short", "long"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_context_comes_back_as_it_was(tmp_path: Path, family: str, context: str) -> None:
    own = dense_adapter(family)
    cache, _ = written(tmp_path, context, own)
    restored = load(tmp_path, context, own)
    assert_same(restored, cache)


@pytest.mark.parametrize("recipe", [None, "sink+local+topk", "quest-hard", "random-easy", "magicpig-hard"])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_it_answers_bit_by_bit_as_the_one_that_was_written(tmp_path: Path, family: str, recipe: str | None) -> None:
    """Several questions, each cut back again. Gemma-3 has sliding-window layers, whose window the context exceeds."""
    own = adapter(family, recipe, "efficient")
    cache, _ = written(tmp_path, LONG, own)
    restored = load(tmp_path, LONG, own)
    assert restored is not None
    for question in [*QUESTIONS, QUESTIONS[0]]:
        ids, logits, density = answered(own, cache, question)
        again, same_logits, same_density = answered(own, restored, question)
        assert again == ids and same_density == density
        assert len(logits) == len(same_logits) > 0
        assert all(torch.equal(a, b) for a, b in zip(logits, same_logits, strict=True))
        assert same_cache(snapshot(restored.past_key_values), snapshot(cache.past_key_values))


def test_room_behind_the_context_is_there_again(tmp_path: Path) -> None:
    written(tmp_path)
    restored = load(tmp_path)
    assert restored is not None
    where = [layer.keys.data_ptr() for layer in restored.past_key_values.layers]
    adapter().answer(restored, QUESTIONS[0], max_new_tokens=5)
    assert [layer.keys.data_ptr() for layer in restored.past_key_values.layers] == where


def test_half_precision(tmp_path: Path) -> None:
    own = ModelAdapterHF(None, folder("llama"), model_kwargs={"dtype": torch.bfloat16})
    cache, file = written(tmp_path, own=own)
    assert cache.past_key_values.layers[0].keys.dtype is torch.bfloat16
    assert_same(load(tmp_path, own=own), cache)
    assert load(tmp_path) is None, "float32 is another model"
    assert file.exists()


def test_the_library_reads_the_file(tmp_path: Path) -> None:
    cache, file = written(tmp_path)
    with safe_open(file, framework="pt") as content:
        metadata = content.metadata()
        tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 - it is no mapping
    key = json.loads(metadata["key"])
    assert key["identity"] == IDENTITY
    assert (key["torch"], key["transformers"]) == (torch.__version__, transformers.__version__)
    assert (key["dtype"], key["attention"], key["prefill"], key["devices"]) == ("float32", ["sdpa"], "dense", ["cpu"])
    assert tensors["ids"].tolist() == cache.prompt.ids
    assert len(tensors) == 1 + 2 * len(cache.past_key_values.layers)
    for number, layer in enumerate(cache.past_key_values.layers):
        assert torch.equal(tensors[f"layer.{number}.keys"], layer.keys)
        assert torch.equal(tensors[f"layer.{number}.values"], layer.values)


# --- the store ---


def test_the_store_looks_in_memory_then_on_disk_then_prefills(tmp_path: Path) -> None:
    own = dense_adapter()

    def get(store: ContextStore) -> tuple[bool, list[int]]:
        with recorded_calls(own.model) as calls:
            _, found = store.get("g", CONTEXT, own.prefill)
        return found, [call["tokens"] for call in calls]

    length = own.prefill(CONTEXT).length
    store = ContextStore(GIB)
    store.files = opened(tmp_path)
    assert get(store) == (False, [length])
    assert get(store) == (True, [])
    shutil.rmtree(tmp_path)
    assert get(store) == (True, []), "memory needs no file"
    written(tmp_path)

    other = ContextStore(GIB)
    other.files = opened(tmp_path)
    assert get(other) == (True, [1]), "one token shows what the model's layers look like"
    assert get(other) == (True, [])
    forgetful = ContextStore(0)
    forgetful.files = other.files
    assert get(forgetful) == get(forgetful) == (True, [])


def test_adapters_of_a_model_share_its_files(tmp_path: Path) -> None:
    written(tmp_path)
    sparse = dense_adapter().with_sparse_attention(config_of("quest-hard"))
    assert opened(tmp_path).load(CONTEXT, sparse.prefill) is not None


def test_only_an_adapter_s_own_prefill_is_kept(tmp_path: Path) -> None:
    """A wrapper may do something else, such as a sparse prefill."""
    files = opened(tmp_path)

    def prefill(context: str) -> ContextCache:
        return dense_adapter().prefill(context)

    files.save(prefill(CONTEXT), prefill)
    assert not list(tmp_path.iterdir())
    written(tmp_path)
    for other in (prefill, MethodType(lambda own, context: prefill(context), dense_adapter())):
        assert files.load(CONTEXT, other) is None
    assert files.load(CONTEXT, dense_adapter().prefill) is not None


def test_a_model_that_was_not_identified_is_not_kept(tmp_path: Path) -> None:
    files, own = ContextFiles(tmp_path, GIB), dense_adapter("qwen2")
    files.identify(dense_adapter("llama"), IDENTITY)
    files.save(own.prefill(CONTEXT), own.prefill)
    assert not list(tmp_path.iterdir())
    assert files.load(CONTEXT, own.prefill) is None


def test_what_cannot_be_a_context_is_refused_as_ever(tmp_path: Path) -> None:
    store = ContextStore(GIB)
    store.files = opened(tmp_path)
    with pytest.raises(DataError):
        store.get("g", "", dense_adapter().prefill)


def test_a_forgotten_model_is_not_kept_alive(tmp_path: Path) -> None:
    own = ModelAdapterHF(None, folder("llama"))
    files = opened(tmp_path, own)
    assert len(files._models) == 1
    del own
    assert len(files._models) == 0


# --- the key ---


def test_everything_that_keys_depend_on_is_part_of_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, file = written(tmp_path)
    assert load(tmp_path, CONTEXT + " More.") is None
    assert load(tmp_path, prompt_version=2) is None
    assert load(tmp_path, checkpoint="d") is None
    assert load(tmp_path, model_kwargs={"rope_theta": 1.0}) is None
    eager = ModelAdapterHF(None, folder("llama"), model_kwargs={"attn_implementation": "eager"})
    assert load(tmp_path, own=eager) is None
    changed = ModelAdapterHF(None, folder("llama"))
    assert load(tmp_path, own=changed) is not None
    with torch.no_grad():
        changed.model.get_input_embeddings().weight.mul_(1.5)
    assert load(tmp_path, own=changed) is None
    for module, name in ((torch, "__version__"), (transformers, "__version__"), (context_files, "FORMAT_VERSION")):
        with monkeypatch.context() as patched:
            patched.setattr(module, name, "999")
            assert load(tmp_path) is None, name
    assert load(tmp_path) is not None
    assert file.exists()


def test_a_model_identified_anew_has_other_files(tmp_path: Path) -> None:
    written(tmp_path)
    files = opened(tmp_path)
    assert files.load(CONTEXT, dense_adapter().prefill) is not None
    files.identify(dense_adapter(), {**IDENTITY, "checkpoint": "d"})
    assert files.load(CONTEXT, dense_adapter().prefill) is None


def test_the_key_is_the_same_inside_sparse_mode(tmp_path: Path) -> None:
    own = adapter()
    with own.enable_sparse_mode():
        files = opened(tmp_path, own)
    files.save(own.prefill(CONTEXT), own.prefill)
    assert load(tmp_path) is not None


# --- files that cannot be used ---


def check_replaced(path: Path, file: Path, cache: ContextCache, caplog: pytest.LogCaptureFixture, said: str) -> None:
    """One warning, the file is gone, and after the prefill there is a good one."""
    caplog.clear()
    assert load(path) is None
    (warning,) = warnings(caplog)
    assert str(file) in warning and said in warning and "prefilled again" in warning
    assert not file.exists()
    store = ContextStore(0)
    store.files = opened(path)
    fresh, found = store.get("g", CONTEXT, dense_adapter().prefill)
    assert not found
    assert same_cache(snapshot(fresh.past_key_values), snapshot(cache.past_key_values))
    assert_same(load(path), fresh)
    assert len(warnings(caplog)) == 1


def damages() -> dict[str, Callable[[bytes], bytes]]:
    """Ways to damage a file, by name."""
    deep = b"[" * 100_000
    ways: dict[str, Callable[[bytes], bytes]] = {
        "empty": lambda data: b"",
        "no safetensors": lambda data: b"something else altogether",
        "a header longer than the file": lambda data: (1 << 62).to_bytes(8, "little") + data[8:],
        "a header that nests deeply": lambda data: len(deep).to_bytes(8, "little") + deep,
        "a header that is no table": lambda data: (2).to_bytes(8, "little") + b"[]" + data[8:],
        "a longer tail": lambda data: data + b"\0",
    }
    for share in (0.001, 0.01, 0.3, 0.9):
        ways[f"cut at {share}"] = lambda data, share=share: data[: int(len(data) * share)]  # type: ignore[misc]
    ways["cut by one byte"] = lambda data: data[:-1]
    return ways


@pytest.mark.parametrize("damage", damages())
def test_a_damaged_file_is_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str) -> None:
    cache, file = written(tmp_path)
    file.write_bytes(damages()[damage](file.read_bytes()))
    check_replaced(tmp_path, file, cache, caplog, "")


def test_no_flipped_bit_goes_unseen(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Bits of the whole file: every byte of the header's start and of the times, and some everywhere else."""
    cache, file = written(tmp_path, SHORT)
    data = file.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    seconds = data.index(b"prefill_seconds")
    places = {*range(0, header, 7), *range(seconds, seconds + 50), *range(header, len(data), len(data) // 150)}
    files, prefill = opened(tmp_path), dense_adapter().prefill
    for place in [*places, header - 1, len(data) - 1]:
        for bit in (0, 5):
            file.write_bytes(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :])
            caplog.clear()
            assert files.load(SHORT, prefill) is None, f"bit {bit} of byte {place} of {len(data)}"
            assert len(warnings(caplog)) == 1
            assert not file.exists()
    file.write_bytes(data)
    assert_same(files.load(SHORT, prefill), cache)


def test_a_file_under_another_s_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache, file = written(tmp_path)
    _, other = written(tmp_path, CONTEXTS[0])
    os.replace(other, file)
    check_replaced(tmp_path, file, cache, caplog, "another context")


@pytest.mark.parametrize("wrong", ["ids", "shape", "type", "layers"])
def test_a_file_whose_digest_holds_but_whose_content_is_another_model_s(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, wrong: str
) -> None:
    cache, file = written(tmp_path)
    with safe_open(file, framework="pt") as content:
        key = content.metadata()["key"]
    if wrong == "ids":
        cache.prompt.ids[3] += 1
        forged = cache
    elif wrong == "shape":
        forged = dense_adapter().prefill(CONTEXTS[0])
    elif wrong == "type":
        forged = ModelAdapterHF(None, folder("llama"), model_kwargs={"dtype": torch.bfloat16}).prefill(CONTEXT)
    else:
        forged = dense_adapter("qwen2").prefill(CONTEXT)
        assert forged.length == cache.length
    write_context(file, key, forged, layer_forms(forged.past_key_values, forged.length))
    cache = dense_adapter().prefill(CONTEXT)
    check_replaced(tmp_path, file, cache, caplog, "other token ids" if wrong == "ids" else "shapes")


def test_a_file_that_vanishes_while_it_is_looked_at(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The model's layers are looked at between finding the file and opening it; another process clears up just then."""
    _, file = written(tmp_path)
    own = dense_adapter()
    files = opened(tmp_path)
    hook = own.model.register_forward_hook(lambda *_: file.unlink())
    try:
        assert files.load(CONTEXT, own.prefill) is None
    finally:
        hook.remove()
    assert warnings(caplog) == []


# --- folders and disks that fail ---


@contextmanager
def without_rights(path: Path, mode: int) -> Iterator[None]:
    """Give a folder a mode and run as somebody whom it binds."""
    root = os.geteuid() == 0
    path.chmod(mode)
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        path.chmod(0o755)


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that everybody can reach."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def get_all(files: ContextFiles) -> list[bool]:
    store = ContextStore(0)
    store.files = files
    return [store.get("g", context, dense_adapter().prefill)[1] for context in CONTEXTS]


def test_a_folder_that_cannot_be_read(public: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, file = written(public, CONTEXTS[1])
    files = opened(public)
    with without_rights(public, 0o000):
        assert get_all(files) == [False] * 4
    (warning,) = warnings(caplog)
    assert f"context_folder={public}" in warning and "Permission denied" in warning
    assert [path.name for path in public.iterdir()] == [file.name]


def test_a_folder_that_can_only_be_read(public: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, file = written(public, CONTEXTS[1])
    files = opened(public)
    with without_rights(public, 0o555):
        assert get_all(files) == [False, True, False, False]
    (warning,) = warnings(caplog)
    assert f"context_folder={public}" in warning and "cannot be written" in warning
    assert list(public.iterdir()) == [file]


def test_a_file_in_the_folder_s_place(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "taken").write_text("mine")
    assert get_all(opened(tmp_path / "taken")) == [False] * 4
    (warning,) = warnings(caplog)
    assert "taken" in warning and "File exists" in warning
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_folder_in_the_file_s_place(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, file = written(tmp_path)
    file.unlink()
    (file / "inside").mkdir(parents=True)
    store = ContextStore(0)
    store.files = opened(tmp_path)
    assert not store.get("g", CONTEXT, dense_adapter().prefill)[1]
    assert len(warnings(caplog)) == 1
    assert [path.name for path in tmp_path.iterdir()] == [file.name], "nothing of the attempt is left"


def test_a_full_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A real limit on the size of files: the system takes a part of the bytes and refuses the rest."""
    _, file = written(tmp_path, CONTEXTS[0])
    size, files = file.stat().st_size, opened(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, before[1]))
    try:
        assert get_all(files) == [True, False, False, False]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    files.save(dense_adapter().prefill(CONTEXTS[1]), dense_adapter().prefill)
    (warning,) = warnings(caplog)
    assert f"context_folder={tmp_path}" in warning and "File too large" in warning
    assert list(tmp_path.iterdir()) == [file], "nothing of the attempt is left, and there was no other"


# --- the size ---


def used(file: Path, ago: float) -> None:
    """Say when a file was used last."""
    os.utime(file, (time.time() - ago,) * 2)


def test_the_files_not_used_for_longest_make_room(tmp_path: Path) -> None:
    own = dense_adapter()
    first, second, third = (written(tmp_path, context)[1] for context in CONTEXTS[:3])
    for file, ago in ((first, 300.0), (second, 200.0), (third, 100.0)):
        used(file, ago)
    mine = [tmp_path / "model.safetensors", tmp_path / "notes.txt", tmp_path / ".hidden.tmp"]
    for other in mine:
        other.write_bytes(b"0" * 100_000)
        used(other, 10_000)
    sizes = sum(file.stat().st_size for file in (first, second, third))
    # The times of a prefill are longer or shorter numbers.
    files = opened(tmp_path, capacity=sizes + 100)
    assert files.load(CONTEXTS[0], own.prefill) is not None, "it is the one used last now"
    files.save(own.prefill(CONTEXTS[3]), own.prefill)
    (fourth,) = set(tmp_path.iterdir()) - {first, second, third, *mine}
    assert set(tmp_path.iterdir()) == {first, third, fourth, *mine}
    assert [files.load(context, own.prefill) is not None for context in CONTEXTS] == [True, False, True, True]

    used(fourth, 5)
    narrow = opened(tmp_path, capacity=int(1.5 * fourth.stat().st_size))
    narrow.save(own.prefill(CONTEXTS[1]), own.prefill)
    assert set(tmp_path.iterdir()) == {second, *mine}, "an older, larger folder shrinks"


def test_a_context_larger_than_the_folder_drives_nobody_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    own = dense_adapter()
    cache, file = written(tmp_path, SHORT)
    caplog.set_level(logging.INFO)
    size = file.stat().st_size
    opened(tmp_path, capacity=size).save(own.prefill(LONG), own.prefill)
    assert list(tmp_path.iterdir()) == [file]
    assert "context_folder_gib" in caplog.text
    for capacity, kept in ((size, [file]), (size - 1, []), (0, [])):
        file.unlink(missing_ok=True)
        opened(tmp_path, capacity=capacity).save(cache, own.prefill)
        assert list(tmp_path.iterdir()) == kept


def test_what_a_killed_process_left_is_removed_in_time(tmp_path: Path) -> None:
    _, file = written(tmp_path, CONTEXTS[0])
    size = file.stat().st_size
    old, young = (tmp_path / f".{file.name}.{letter * 32}.tmp" for letter in "ab")
    for partial in (old, young):
        partial.write_bytes(b"0" * size)
    used(old, 7200)
    opened(tmp_path, capacity=3 * size + 100).save(dense_adapter().prefill(CONTEXTS[1]), dense_adapter().prefill)
    assert not old.exists()
    assert young.exists() and file.exists(), "it may be at work"
    opened(tmp_path, capacity=3 * size + 100).save(dense_adapter().prefill(CONTEXTS[2]), dense_adapter().prefill)
    assert young.exists()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 3 * size + 100, "its bytes count"


# --- several processes ---


def _work(path: Path, capacity: int, seed: int, rounds: int, prefilled: list[ContextCache]) -> None:
    """Read and write contexts in an order of one's own; leaves with code 1 if one is wrong or anything is raised."""
    files, prefill = opened(path, capacity=capacity), dense_adapter().prefill
    order = torch.randint(len(CONTEXTS), (rounds,), generator=torch.Generator().manual_seed(seed)).tolist()
    loaded = 0
    for number in order:
        cache = files.load(CONTEXTS[number], prefill)
        if cache is None:
            files.save(prefilled[number], prefill)
            continue
        loaded += 1
        if not same_cache(snapshot(cache.past_key_values), snapshot(prefilled[number].past_key_values)):
            sys.exit(1)
    sys.exit(0 if loaded and files._writable and not files._told else 1)


def test_processes_share_a_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It holds two of four contexts, so that each process removes what the others are about to read."""
    prefilled = [dense_adapter().prefill(context) for context in CONTEXTS]
    _, file = written(tmp_path, CONTEXTS[0])
    capacity = int(2.5 * file.stat().st_size)
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=_work, args=(tmp_path, capacity, seed, 150, prefilled)) for seed in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert not list(tmp_path.glob(".*"))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= capacity
    for context, cache in zip(CONTEXTS, prefilled, strict=True):
        restored = load(tmp_path, context)
        assert restored is None or same_cache(snapshot(restored.past_key_values), snapshot(cache.past_key_values))
    assert warnings(caplog) == []


def test_what_another_process_writes_meanwhile_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prefill = dense_adapter().prefill
    first, second = prefill(CONTEXTS[0]), prefill(CONTEXTS[1])
    _, file = written(tmp_path, CONTEXTS[2])
    capacity = int(1.5 * file.stat().st_size)
    file.unlink()

    def slow(*given: Any) -> None:
        with monkeypatch.context() as back:
            back.setattr(context_files, "write_context", write_context)
            opened(tmp_path, capacity=capacity).save(first, prefill)
        (other,) = tmp_path.iterdir()
        used(other, 10)
        write_context(*given)

    monkeypatch.setattr(context_files, "write_context", slow)
    opened(tmp_path, capacity=capacity).save(second, prefill)
    assert [load(tmp_path, context) is not None for context in CONTEXTS[:2]] == [False, True]


def _write_for_ever(path: Path, cache: ContextCache) -> None:
    files = opened(path)
    while True:
        files.save(cache, dense_adapter().prefill)


def test_a_process_killed_while_it_writes_leaves_no_broken_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = dense_adapter().prefill(LONG)
    fork = multiprocessing.get_context("fork")
    for number in range(6):
        process = fork.Process(target=_write_for_ever, args=(tmp_path, cache))
        process.start()
        while not list(tmp_path.glob("*.safetensors")):
            time.sleep(0.002)
        time.sleep(0.003 * number)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        restored = load(tmp_path, LONG)
        assert restored is not None
        assert same_cache(snapshot(restored.past_key_values), snapshot(cache.past_key_values))
    assert warnings(caplog) == []


# --- layers of other kinds ---


def test_layers_of_another_kind_are_not_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The library's own growing layer: whatever it may hold besides keys and values is not known here."""
    own = dense_adapter()
    cache = own.prefill(CONTEXT)
    plain = DynamicCache(config=own.model.config)
    run_context(own, cache.prompt.ids, plain)
    caplog.set_level(logging.INFO)
    files = opened(tmp_path)
    for _ in range(2):
        files.save(ContextCache(own.model_name, cache.prompt, plain), own.prefill)
    (record,) = caplog.records
    assert record.levelno == logging.INFO and "DynamicLayer" in record.getMessage()
    assert not list(tmp_path.iterdir())
    assert files.load(CONTEXT, own.prefill) is None


def test_a_model_with_convolutions(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = transformers.Lfm2Config(
        vocab_size=261, hidden_size=32, intermediate_size=32, num_attention_heads=4, num_key_value_heads=2,
        num_hidden_layers=2, layer_types=["conv", "full_attention"], eos_token_id=2, bos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    for file in Path(folder("llama")).glob("*token*"):
        shutil.copy(file, tmp_path / "model")
    own = ModelAdapterHF(None, str(tmp_path / "model"))
    caplog.set_level(logging.INFO)
    past = new_cache(own.model.config)
    ids = own.prompts.context_prompt(CONTEXT)
    own.model(input_ids=torch.tensor([ids.ids]), past_key_values=past, use_cache=True)
    files = opened(tmp_path / "contexts", own)
    files.save(ContextCache(own.model_name, ids, past), own.prefill)
    assert [record.levelno for record in caplog.records if record.name == context_files.__name__] == [logging.INFO]
    assert not (tmp_path / "contexts").exists()
