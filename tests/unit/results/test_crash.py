"""The store against processes that die, other writers, and disks that refuse."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sah.errors import StateError
from sah.results.rows import PredictionRow
from sah.results.store import PointStore

CHILD = Path(__file__).with_name("append_until_killed.py")
ROOT = Path(__file__).parents[3]


def _start(folder: Path, wait_seconds: float = 0.0) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(CHILD), str(folder), str(wait_seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def _store(folder: Path) -> PointStore:
    return PointStore(folder, {"model": "m"}, "dense")


def _row(number: int, status: str = "ok", **fields: object) -> PredictionRow:
    return PredictionRow(example_key=f"{number:08d}", question_index=0, status=status, **fields)  # type: ignore[arg-type]


def test_sigkill_loses_no_row_that_was_acknowledged(tmp_path: Path) -> None:
    chance = random.Random(20261122)
    acknowledged: set[str] = set()
    for _ in range(12):
        child = _start(tmp_path)
        assert child.stdout is not None
        assert child.stdout.readline().strip() == "ready", child.stderr and child.stderr.read()
        time.sleep(chance.uniform(0.0, 0.08))
        child.kill()
        printed, errors = child.communicate()
        assert child.returncode == -signal.SIGKILL
        assert all("cut short" in line for line in errors.splitlines()), "a torn row of the kill before, nothing else"
        acknowledged |= set(printed.split("\n")[:-1])
        assert acknowledged <= _store(tmp_path).finished()
    with _store(tmp_path).writer() as store:
        rows = store.load()
        lines = (store.folder / "predictions.jsonl").read_bytes().split(b"\n")
    assert len(rows) == len(lines) - 1 > 20, "every line is one row, none written twice"
    assert all(json.loads(line) for line in lines[:-1])


@pytest.mark.parametrize("seed", range(40))
def test_a_file_cut_at_any_byte_keeps_every_whole_row(tmp_path: Path, seed: int) -> None:
    store = _store(tmp_path)
    with store.writer():
        for number in range(4):
            store.append(_row(number, prediction="Ω" * number))
    path = store.folder / "predictions.jsonl"
    data = path.read_bytes()
    cut = random.Random(seed).randrange(len(data) + 1)
    path.write_bytes(data[:cut])
    whole = sum(len(b"\n".join(data.split(b"\n")[: n + 1])) <= cut for n in range(4))
    assert len(store.load()) == whole
    with store.writer():
        assert len(store.finished()) == whole
        store.append(_row(9))
    assert len(store.load()) == whole + 1


def test_a_truncated_last_line_is_warned_of_and_cut(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = _store(tmp_path)
    with store.writer():
        store.append(_row(1))
    path = store.folder / "predictions.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"schema_version": 1, "exam')
    assert len(store.load()) == 1
    assert "cut short" in caplog.text and str(path) in caplog.text
    assert path.read_bytes() != whole, "a reader changes nothing"
    with store.writer():
        assert path.read_bytes() == whole


def test_zero_bytes_left_by_a_power_cut_are_cut(tmp_path: Path) -> None:
    store = _store(tmp_path)
    with store.writer():
        store.append(_row(1))
    with (store.folder / "predictions.jsonl").open("ab") as file:
        file.write(b"\0" * 512)
    with store.writer():
        store.append(_row(2))
    assert len(store.load()) == 2


def test_a_second_writer_is_refused_with_pid_and_host_until_the_first_dies(tmp_path: Path) -> None:
    child = _start(tmp_path)
    assert child.stdout is not None
    assert child.stdout.readline().strip() == "ready"
    try:
        for wait in (0.0, 0.3):
            begin = time.monotonic()
            with pytest.raises(StateError) as caught, _store(tmp_path).writer(wait_seconds=wait):
                pass
            assert wait <= time.monotonic() - begin < wait + 5
            message = str(caught.value)
            assert f"process {child.pid} on {os.uname().nodename}" in message
            assert str(_store(tmp_path).folder) in message
            assert "Wait until it ends or stop it" in message and "output_dir=" in message
        assert _store(tmp_path).load() is not None, "reading needs no lock"
    finally:
        child.kill()
        child.communicate()
    with _store(tmp_path).writer():
        pass


def test_a_writer_may_wait_for_the_other_to_end(tmp_path: Path) -> None:
    first = _start(tmp_path)
    assert first.stdout is not None
    assert first.stdout.readline().strip() == "ready"
    second = _start(tmp_path, wait_seconds=60)
    time.sleep(0.5)
    first.kill()
    first.communicate()
    assert second.stdout is not None
    assert second.stdout.readline().strip() == "ready"
    second.kill()
    second.communicate()


def test_the_same_process_cannot_write_twice_at_once(tmp_path: Path) -> None:
    with _store(tmp_path).writer():
        with pytest.raises(StateError, match="this process"), _store(tmp_path).writer():
            pass
    with _store(tmp_path).writer():
        pass


def test_a_full_disk_takes_back_half_a_row_and_keeps_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = _store(tmp_path)
    real = os.write

    def half(handle: int, data: bytes) -> int:
        if len(data) > 100:
            return real(handle, data[:50])
        raise OSError(errno.ENOSPC, "No space left on device")

    with store.writer():
        store.append(_row(1))
        store.write_metrics({"old": 1})
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", lambda handle, data: half(handle, bytes(data)[:120]))
            with pytest.raises(StateError, match=r"No space left.*All rows before it are safe.*output_dir=") as caught:
                store.append(_row(2))
            assert str(store.folder) in str(caught.value)
            with pytest.raises(StateError, match="untouched"):
                store.write_metrics({"new": 1})
        assert set(store.load()) == {"00000001:0"}
        assert json.loads((store.folder / "metrics.json").read_text()) == {"old": 1}
        store.append(_row(3))
    assert set(store.load()) == {"00000001:0", "00000003:0"}
    assert not list(store.folder.glob(".*.tmp"))


def test_a_real_limit_on_file_size_keeps_every_row_before_it(tmp_path: Path) -> None:
    script = f"""
import resource, sys
from pathlib import Path
from sah.errors import StateError
from sah.results.rows import PredictionRow
from sah.results.store import PointStore
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
store = PointStore(Path({str(tmp_path)!r}), {{"model": "m"}}, "dense")
with store.writer():
    for number in range(1000):
        try:
            store.append(PredictionRow(example_key=f"{{number:08d}}", question_index=0, status="ok"))
        except StateError as error:
            print(number, error)
            sys.exit(3)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 3, done.stderr
    written = int(done.stdout.split()[0])
    assert "File too large" in done.stdout
    assert len(_store(tmp_path).load()) == written > 5
    assert (_store(tmp_path).folder / "predictions.jsonl").read_bytes().endswith(b"}\n")


def test_a_folder_that_cannot_be_created_or_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    with (
        pytest.raises(StateError, match=r"Could not create .*file.*output_dir="),
        _store(tmp_path / "file").writer(),
    ):
        pass

    with _store(tmp_path).writer() as store:
        store.append(_row(1))
    real = os.open

    def read_only(path: object, flags: int, *rest: object, **more: object) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, "Read-only file system")
        return real(path, flags, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(StateError, match="Read-only file system"), _store(tmp_path).writer():
        pass
    assert len(_store(tmp_path).load()) == 1, "reading goes on"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    with _store(tmp_path).writer() as store:
        store.append(_row(1))
    store.folder.chmod(0o555)
    try:
        with pytest.raises(StateError, match="Permission denied"), _store(tmp_path).writer():
            pass
        assert len(_store(tmp_path).load()) == 1
    finally:
        store.folder.chmod(0o755)
