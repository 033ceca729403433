"""What workers in other processes tell, what is done with it, and what a killed run leaves. Processes of their own have
the tests of Ray and submitit; here the job's side runs in this process."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import logging
import os
import pickle
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

import sah.results.files as files
from sah.adapters.factory import resolve_model
from sah.adapters.huggingface import ModelAdapterHF
from sah.config.launcher import LauncherOptions, RayOptions, SlurmOptions
from sah.errors import ConfigError, DataError, SahError, StateError, WorkerError
from sah.results.fidelity import FidelityRow
from sah.results.lock import WriterLock
from sah.results.rows import PredictionRow
from sah.runners.group import Group, RowSink, run_group
from sah.runners.point import prepare_point
from sah.runners.session import Session
from sah.runners.tasks import ContextWork, GroupSpec
from sah.runners.work import GroupWorker
from sah.runners.workers.base import Sink
from sah.runners.workers.create import create_workers
from sah.runners.workers.losses import Losses
from sah.runners.workers.messages import (
    Answered,
    Begun,
    Broken,
    Ended,
    LogRelay,
    Message,
    Started,
    Told,
    decode,
    encode,
    work_through,
)
from sah.runners.workers.ray import RayWorkers
from sah.runners.workers.shard import ShardReader, ShardStopped, make_file, run_shard
from sah.runners.workers.slurm import SlurmWorkers
from tests.integration.conftest import Work
from tests.integration.groups import SETTINGS, experiments, run_settings
from tests.integration.running import files_under, lines, stored
from tests.integration.same_rows import check_same_rows

LOCAL = SlurmOptions(cluster="local")
READ = tuple((*setting, "fidelity=true") for setting in SETTINGS)
"""The settings, each of which also reads the dense answers."""

TWO = READ[:2]


def group_of(*settings: tuple[str, ...], folder: str = "outputs") -> Group:
    """Prepare the points of some settings."""
    session = Session()
    return Group(tuple(prepare_point(one, session) for one in experiments(*settings, folder=folder)))


@contextmanager
def sink_of(group: Group) -> Iterator[RowSink]:
    """The writer of a group's rows."""
    with ExitStack() as stack:
        yield RowSink(group, Session(), lambda point: {}, stack)


def rows_of(messages: list[Message]) -> list[tuple[int, PredictionRow | FidelityRow]]:
    """The rows among messages, with the numbers of their settings."""
    return [
        (message.setting, message.outcome)
        for message in messages
        if isinstance(message, Answered) and isinstance(message.outcome, PredictionRow | FidelityRow)
    ]


def test_messages_arrive_as_they_were_sent() -> None:
    group = group_of(*READ)
    (work, *_) = group.works()
    sent = list(work_through(GroupWorker(group.spec(), Session()), [work]))
    assert rows_of(sent)
    assert sum(isinstance(message, Answered) and isinstance(message.outcome, FidelityRow) for message in sent) == 4
    sent += [Told("sah.x", logging.WARNING, "two\nlines, and ü"), Broken("the disk is full")]
    encoded = [encode(message) for message in sent]
    assert all(line.count(b"\n") == 1 and line.endswith(b"\n") and line.isascii() for line in encoded)
    assert [decode(json.loads(line)) for line in encoded] == sent
    for error in (ConfigError("a"), DataError("b"), StateError("c")):
        (got,) = [decode(json.loads(encode(Answered(3, error))))]
        assert isinstance(got, Answered) and got.setting == 3
        assert type(got.outcome) is type(error) and str(got.outcome) == str(error)


@pytest.mark.parametrize("line", [{}, {"message": "Nothing"}, {"message": "Begun"}, [], {"message": "Answered"}])
def test_what_is_no_message_is_refused(line: Any) -> None:
    with pytest.raises(StateError, match="message"):
        decode(line)


def test_the_log_of_workers_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    relay = LogRelay()
    with caplog.at_level(logging.INFO, "sah"):
        for text in ("same", "same", "other"):
            relay.tell(Told("sah.runners.work", logging.INFO, text))
    assert caplog.messages == ["same", "other"]


def test_a_worker_tells_its_log(caplog: pytest.LogCaptureFixture) -> None:
    """An answer that has no room in the model's window is warned of."""
    group = group_of(("masker=topk", "generation.max_new_tokens=9000"))
    messages = list(work_through(GroupWorker(group.spec(), Session()), group.works()))
    told = [message for message in messages if isinstance(message, Told)]
    assert any("window is 8192" in message.text and message.level == logging.WARNING for message in told)
    assert {row.status for _, row in rows_of(messages)} == {"invalid_input"}


def test_a_shard_tells_the_rows_that_local_work_gives(tmp_path: Path) -> None:
    group = group_of(*READ)
    make_file(tmp_path / "0.jsonl", group.spec())
    run_shard(group.spec(), group.works(), tmp_path / "0.jsonl")
    reader = ShardReader(tmp_path / "0.jsonl")
    messages = reader.read()
    assert reader.points == [arm.store.id for arm in group.arms]
    assert messages[0] == Started()
    contexts = [work.example.key for work in group.works()]
    assert [message.context for message in messages if isinstance(message, Begun)] == contexts
    assert [message.context for message in messages if isinstance(message, Ended)] == contexts
    with sink_of(group) as sink:
        for work in group.works():
            sink.begin(work)
        for setting, row in rows_of(messages):
            sink.add(setting, row)
    run_settings(*READ, folder="local")
    check_same_rows(Path("local"), Path("outputs"))


def test_a_preempted_shard_goes_on_where_it_stopped(tmp_path: Path, work: Work) -> None:
    group = group_of(("masker=topk",), ("masker=random",))
    path = tmp_path / "0.jsonl"
    make_file(path, group.spec())
    run_shard(group.spec(), group.works(), path)
    told = path.read_bytes().splitlines(keepends=True)
    places = [number for number, line in enumerate(told) if b'"row"' in line]
    assert len(places) == 6
    path.write_bytes(b"".join(told[: places[3]]) + told[places[3]][:50])
    reader = ShardReader(path)
    before = rows_of(reader.read())
    assert len(before) == 3, "a line that is still being written is left for later"
    work.clear()
    run_shard(group.spec(), group.works(), path)
    after = rows_of(reader.read())
    assert len(work.prefills) == 1, "the first context had ended"
    keys = [(setting, row.key) for setting, row in before + after]
    assert len(keys) == len(set(keys)) == 6


def test_a_shard_that_nobody_waits_for_stops(tmp_path: Path, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    group = group_of(("masker=topk",))
    path = tmp_path / "0.jsonl"
    run_shard(group.spec(), group.works(), path)
    assert not path.exists() and work.prefills == []
    make_file(path, group.spec())
    prefill = ModelAdapterHF.prefill

    def taken_away(self: ModelAdapterHF, context: str) -> Any:
        if path.exists():
            path.rename(tmp_path / "0.jsonl.taken")
        return prefill(self, context)

    monkeypatch.setattr(ModelAdapterHF, "prefill", taken_away)
    run_shard(group.spec(), group.works(), path)
    assert not path.exists()
    assert len(work.prefills) == 1
    assert rows_of(ShardReader(tmp_path / "0.jsonl.taken").read()) == []


def test_a_shard_whose_time_is_up_makes_no_failed_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = group_of(("masker=topk",))
    path = tmp_path / "0.jsonl"
    make_file(path, group.spec())
    prefill, calls = ModelAdapterHF.prefill, itertools.count(1)

    def announced(self: ModelAdapterHF, context: str) -> Any:
        if next(calls) == 2:
            os.kill(os.getpid(), signal.SIGUSR2)
        return prefill(self, context)

    monkeypatch.setattr(ModelAdapterHF, "prefill", announced)
    before = signal.getsignal(signal.SIGUSR2)
    with pytest.raises(ShardStopped):
        run_shard(group.spec(), group.works(), path)
    assert signal.getsignal(signal.SIGUSR2) is before
    messages = ShardReader(path).read()
    assert [row.status for _, row in rows_of(messages)] == ["ok", "ok"]
    assert messages[-1] == Begun(group.works()[1].example.key)


@pytest.mark.parametrize("retries", [0, 2])
def test_a_context_is_given_up_after_so_many_deaths(retries: int, caplog: pytest.LogCaptureFixture) -> None:
    group = group_of(("masker=topk",))
    with sink_of(group) as sink:
        losses = Losses(group.spec(), sink, retries, "test worker")
        work, other = group.works()
        for begun in (work, other):
            assert sink.begin(begun) is not None
        for _ in range(retries):
            assert losses.died(work, "It was killed.") == work
        assert losses.died(work, "It was killed.") is None
        assert sink.remaining(work) is None, "its rows tell of it"
        assert sink.remaining(other) == other
    rows = [row for point in stored().values() for row in point.predictions.values()]
    assert [row.status for row in rows] == ["model_failed"] * 2
    assert {row.example_key for row in rows} == {work.example.key}
    assert all(row.answers and "It was killed." in (row.error or "") for row in rows)
    assert f"hydra.launcher.retries={retries}" in (rows[0].error or "")
    assert "given up" in caplog.text


def test_a_death_after_the_last_row_costs_nothing() -> None:
    group = group_of(("masker=topk",))
    with sink_of(group) as sink:
        losses = Losses(group.spec(), sink, 0, "test worker")
        (work, *_) = group.works()
        sink.begin(work)
        for setting, outcome in GroupWorker(group.spec(), Session()).answer(work):
            sink.add(setting, outcome)
        assert losses.died(work, "It was killed.") is None
    assert all(row.status == "ok" for point in stored().values() for row in point.predictions.values())


def test_workers_that_never_begin_end_the_group() -> None:
    group = group_of(("masker=topk",))
    with sink_of(group) as sink:
        losses = Losses(group.spec(), sink, 1, "test worker")
        losses.start_failed("no module sah")
        losses.started()
        losses.start_failed("no module sah")
        with pytest.raises(WorkerError, match="no module sah"):
            losses.start_failed("no module sah")


@pytest.mark.parametrize(
    ("backend", "package", "extra"), [("ray", "ray", "sah[ray]"), ("slurm", "submitit", "sah[slurm]")]
)
def test_a_backend_that_is_not_installed_names_its_extra(
    backend: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError) as refused:
        create_workers(LauncherOptions(backend=backend))
    assert f"pip install '{extra}'" in str(refused.value) and f"hydra.launcher.backend={backend}" in str(refused.value)


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:10001"])
def test_an_address_without_a_cluster_is_told_at_once(address: str) -> None:
    with pytest.raises(WorkerError) as refused:
        run_settings(("masker=topk",), workers=RayWorkers(1, 0, RayOptions(address=address)))
    assert f"hydra.launcher.ray.address={address!r}" in str(refused.value) and "auto" in str(refused.value)


def test_backends_by_name() -> None:
    assert create_workers(LauncherOptions()) is None
    assert isinstance(create_workers(LauncherOptions(backend="ray", ray=RayOptions())), RayWorkers)
    assert isinstance(create_workers(LauncherOptions(backend="slurm", slurm=LOCAL)), SlurmWorkers)


@pytest.fixture
def left_behind(tmp_path: Path) -> Path:
    """The folder of a run that was killed when its job had written all rows, and none had been read."""
    group = group_of(*TWO, folder="outputs")
    folder = tmp_path / "outputs/slurm/rows/killed"
    folder.mkdir(parents=True)
    path = folder / "0.jsonl"
    make_file(path, group.spec())
    run_shard(group.spec(), group.works(), path)
    return folder


def test_rows_that_a_killed_run_has_not_read_are_taken_over(left_behind: Path, work: Work) -> None:
    work.clear()
    run_settings(*TWO, workers=SlurmWorkers(2, 0, LOCAL))
    assert work.prefills == []
    assert not list(left_behind.parent.parent.glob("jobs/*")), "no job was sent"
    assert not left_behind.exists()
    run_settings(*TWO, folder="local")
    check_same_rows(Path("local"), Path("outputs"))


def test_rows_of_other_points_stay_for_their_own_run(left_behind: Path, work: Work) -> None:
    work.clear()
    run_settings(TWO[0], workers=SlurmWorkers(1, 0, LOCAL))
    (path,) = left_behind.glob("*.jsonl*")
    assert path.name == "0.jsonl.taken", "its job would stop"
    run_settings(*TWO, workers=SlurmWorkers(1, 0, LOCAL))
    assert work.prefills == []
    assert not left_behind.exists()
    run_settings(*TWO, folder="local")
    check_same_rows(Path("local"), Path("outputs"))


def test_rows_that_could_not_be_written_wait_for_the_next_run(
    left_behind: Path, monkeypatch: pytest.MonkeyPatch, work: Work
) -> None:
    original, appended = files.write_all, itertools.count(1)

    def full(handle: int, data: bytes) -> None:
        if b'"prediction"' in data and next(appended) > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(handle, data)

    with monkeypatch.context() as patched:
        patched.setattr(files, "write_all", full)
        with pytest.raises(StateError, match="No space left"):
            run_settings(*TWO, workers=SlurmWorkers(1, 0, LOCAL))
    assert sum(len(lines(point)) for point in stored().values()) == 2
    work.clear()
    run_settings(*TWO, workers=SlurmWorkers(1, 0, LOCAL))
    assert work.prefills == []
    assert not left_behind.exists()
    run_settings(*TWO, folder="local")
    check_same_rows(Path("local"), Path("outputs"))


def test_rows_of_contexts_that_are_not_asked_for_stay_for_a_run_that_does(left_behind: Path, work: Work) -> None:
    work.clear()
    run_settings(*[(*setting, "dataset.num_examples=1") for setting in TWO], workers=SlurmWorkers(1, 0, LOCAL))
    assert [len(lines(point)) for point in stored().values()] == [1, 1, 1]
    assert left_behind.exists(), "it holds the rows of the second context"
    run_settings(*TWO, workers=SlurmWorkers(1, 0, LOCAL))
    assert work.prefills == [] and not list(left_behind.parent.parent.glob("jobs/*")), "nothing was computed"
    assert not left_behind.exists()
    run_settings(*TWO, folder="local")
    check_same_rows(Path("local"), Path("outputs"))


def test_what_a_living_run_writes_is_left_alone(left_behind: Path) -> None:
    lock = WriterLock(left_behind)
    lock.acquire()
    before = {path.name: path.read_bytes() for path in left_behind.iterdir()}
    try:
        with pytest.raises(WorkerError, match="hydra.launcher.slurm.cluster='slurm'"):
            run_settings(*TWO, workers=SlurmWorkers(1, 0, SlurmOptions(cluster="slurm")))
        assert {path.name: path.read_bytes() for path in left_behind.iterdir()} == before
    finally:
        lock.release()
    assert all(not point.predictions for point in stored().values())
    run_settings(*TWO, workers=SlurmWorkers(1, 0, SlurmOptions(cluster="slurm")))
    assert all(len(point.predictions) == 2 for point in stored().values()), "now its run is dead"


def test_what_others_have_left_is_left_alone(left_behind: Path) -> None:
    before = files_under(left_behind)
    refusing = SlurmWorkers(1, 0, SlurmOptions(cluster="slurm"))
    with pytest.raises(WorkerError):
        run_settings(("masker=topk", "dataset.seed=5"), workers=refusing)
    assert files_under(left_behind).items() >= before.items(), "its job may still be at work"


def test_a_file_that_cannot_be_read_stays(left_behind: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = left_behind / "0.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"schema_version": 1', b'"schema_version": 99'))
    refusing = SlurmWorkers(1, 0, SlurmOptions(cluster="slurm"))
    with pytest.raises(WorkerError):
        run_settings(*TWO, workers=refusing)
    assert "schema_version 99" in caplog.text and "computed again" in caplog.text
    assert list(left_behind.glob("0.jsonl*"))


def test_options_that_submitit_refuses_are_named() -> None:
    options = SlurmOptions(cluster="local", additional={"slurm_nonsense": 1})
    with pytest.raises(WorkerError) as refused:
        run_settings(("masker=topk",), workers=SlurmWorkers(1, 0, options))
    assert "hydra.launcher.slurm.additional" in str(refused.value) and "nonsense" in str(refused.value)
    assert all(not point.predictions for point in stored().values())


def test_a_fault_in_one_method_leaves_the_others_their_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    check_fits = ModelAdapterHF.check_fits

    def defective(self: ModelAdapterHF, *given: Any) -> None:
        if "Random" in repr(self.sparse_attention_config):
            raise KeyError("a defect")
        check_fits(self, *given)

    monkeypatch.setattr(ModelAdapterHF, "check_fits", defective)
    session = Session()
    with pytest.raises(SahError, match="a defect"):
        run_settings(*((f"masker={name}", "fidelity=true") for name in ("topk", "random", "quest")), session=session)
    rows = {point.label: [row.status for row in point.predictions.values()] for point in stored().values()}
    read = {point.label: [row.status for row in point.fidelity.values()] for point in stored().values()}
    assert read == {"dense": [], "topk": ["ok"] * 2, "random": [], "quest": ["ok"] * 2}
    assert rows == {"dense": ["ok"] * 2, "topk": ["ok"] * 2, "random": [], "quest": ["ok"] * 2}
    assert len(session.errors) == 1


def test_a_shard_tries_a_setting_with_a_fault_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody takes it out of a shard's contexts, as the sink does for a worker that gets them one by one."""
    check_fits, faults = ModelAdapterHF.check_fits, itertools.count()

    def defective(self: ModelAdapterHF, *given: Any) -> None:
        if "Random" in repr(self.sparse_attention_config):
            next(faults)
            raise KeyError("a defect")
        check_fits(self, *given)

    monkeypatch.setattr(ModelAdapterHF, "check_fits", defective)
    group = group_of(("masker=topk", "dataset.num_examples=4"), ("masker=random", "dataset.num_examples=4"))
    messages = list(work_through(GroupWorker(group.spec(), Session()), group.works()))
    errors = [
        message for message in messages if isinstance(message, Answered) and isinstance(message.outcome, SahError)
    ]
    assert len(errors) == 1 and "a defect" in str(errors[0].outcome)
    assert next(faults) == 2, "with the other settings, and alone"
    assert [row.status for _, row in rows_of(messages)] == ["ok"] * 8


def test_a_prefill_that_finds_no_memory_gives_failed_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    prefill, calls = ModelAdapterHF.prefill, itertools.count(1)

    def short(self: ModelAdapterHF, context: str) -> Any:
        if next(calls) == 1:
            raise MemoryError("no room for 3 GiB")
        return prefill(self, context)

    monkeypatch.setattr(ModelAdapterHF, "prefill", short)
    run_settings(*TWO)
    rows = [[(row.status, row.error) for row in point.predictions.values()] for point in stored().values()]
    assert rows == [[("model_failed", "MemoryError: no room for 3 GiB"), ("ok", None)]] * 3


def test_a_worker_keeps_the_context_at_work_alone() -> None:
    """Each context comes once, so that others would only fill the memory of every worker."""
    group, session = group_of(("masker=topk", "dataset.num_examples=3")), Session()
    kept = []
    for message in work_through(GroupWorker(group.spec(), session), group.works()):
        if isinstance(message, (Answered, Ended)):
            held = [session.contexts.holds(group.spec().context_group, w.example.context) for w in group.works()]
            kept.append((type(message), sum(held)))
    assert kept == [(Answered, 1), (Answered, 1), (Ended, 0)] * 3


def test_a_worker_that_finds_another_model_than_the_planned_one_stops(tmp_path: Path, work: Work) -> None:
    """Here the folder that holds the model is changed between the plan and the worker's start."""
    shutil.copytree(resolve_model("tiny:llama").path_or_id, tmp_path / "model")
    group = group_of(("masker=topk", "model.name=model"))
    spec = pickle.loads(pickle.dumps(group.spec()))
    assert any(isinstance(m, Answered) for m in work_through(GroupWorker(spec, Session()), group.works()))
    config = tmp_path / "model/config.json"
    config.write_bytes(config.read_bytes() + b"\n")
    work.clear()
    make_file(tmp_path / "0.jsonl", spec)
    run_shard(spec, group.works(), tmp_path / "0.jsonl")
    messages = ShardReader(tmp_path / "0.jsonl").read()
    assert [type(message) for message in messages] == [Started, Begun, Broken] and work.prefills == []
    (text,) = [message.text for message in messages if isinstance(message, Broken)]
    found = Session().model(group.points[0].experiment).identity["checkpoint"]
    assert f"checkpoint: planned {group.points[0].model.identity['checkpoint']}, here {found}" in text
    assert "model.name='model'" in text and "dtype:" not in text


def test_a_worker_with_another_type_of_weights_names_the_planned_one() -> None:
    group = group_of(("masker=topk",))
    spec = dataclasses.replace(group.spec(), model={**group.spec().model, "dtype": "bfloat16"})
    with pytest.raises(WorkerError) as refused:
        list(GroupWorker(spec, Session()).answer(group.works()[0]))
    assert "dtype: planned bfloat16, here float32" in str(refused.value)
    assert "++model.model_kwargs.dtype=bfloat16" in str(refused.value)


def test_the_dense_stores_of_several_contexts_at_work_are_taken_together() -> None:
    """Whoever takes them context by context may wait for a run that waits for the first ones."""
    few = ("masker=topk", "dataset.num_examples=1")
    more = ("masker=topk", "generation.max_new_tokens=5")
    group = group_of(few, more)
    folders = [point.dense.store.folder for point in group.points]
    held: list[list[bool]] = []

    class OneAfterAnother:
        """Answers here, and looks which dense stores others could take."""

        def run(self, spec: GroupSpec, works: Sequence[ContextWork], sink: Sink) -> None:
            worker = GroupWorker(spec, Session())
            for given in reversed(works):
                rest = sink.begin(given)
                if rest is not None:
                    held.append([_is_held(folder) for folder in folders])
                    for number, outcome in worker.answer(rest):
                        sink.add(number, outcome)
                    sink.end(rest)
            held.append([_is_held(folder) for folder in folders])

    run_group(group, Session(), lambda point: {}, OneAfterAnother())
    assert held == [[True, True]] * 3, "the second context, which comes first, needs one of them"
    assert [_is_held(folder) for folder in folders] == [False, False]
    assert sorted(len(lines(point)) for point in stored().values()) == [1, 1, 2, 2]


def test_this_process_takes_dense_stores_for_the_context_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    group = group_of(("masker=topk", "dataset.num_examples=1"), ("masker=topk", "generation.max_new_tokens=5"))
    folders = [point.dense.store.folder for point in group.points]
    prefill, held = ModelAdapterHF.prefill, []

    def looking(self: ModelAdapterHF, context: str) -> Any:
        held.append([_is_held(folder) for folder in folders])
        return prefill(self, context)

    monkeypatch.setattr(ModelAdapterHF, "prefill", looking)
    run_group(group, Session(), lambda point: {})
    assert held == [[True, True], [False, True]]


def _is_held(folder: Path) -> bool:
    lock = WriterLock(folder)
    try:
        lock.acquire()
    except StateError:
        return True
    lock.release()
    return False


def test_points_with_other_numbers_of_examples_share_an_arm(work: Work) -> None:
    few, more = ("masker=topk", "dataset.num_examples=1"), ("masker=topk", "dataset.num_examples=3")
    run_settings(few)
    work.clear()
    run_settings(few, more)
    assert len(work.prefills) == 2, "the third context was done"
    assert [len(lines(point)) for point in stored().values()] == [3, 3]


def test_a_density_added_to_a_finished_sweep_computes_its_lanes_alone(work: Work) -> None:
    sweep = [("masker=topk", f"density={density}") for density in (0.1, 0.2)]
    sweep += [("masker=random", f"density={density}") for density in (0.1, 0.2)]
    run_settings(*sweep)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in Path().rglob("predictions.jsonl")}
    assert len(before) == 5
    work.clear()
    run_settings(*sweep)
    assert work.prefills == []
    added = [("masker=topk", "density=0.3"), ("masker=random", "density=0.3")]
    run_settings(*sweep, *added)
    assert len(work.prefills) == 2
    after = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in Path().rglob("predictions.jsonl")}
    assert {path: after[path] for path in before} == before, "neither dense nor another old point was touched"
    new = [stored()[path.parent.name] for path in after.keys() - before.keys()]
    assert sorted(point.label for point in new) == ["random", "topk"]
    assert all(len(lines(point)) == 2 for point in new)
