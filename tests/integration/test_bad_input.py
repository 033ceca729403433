"""Mistakes on the command line, in files and in the results folder: what is said, and that nothing is touched."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sah.adapters.huggingface import ModelAdapterHF
from tests.integration.conftest import Work
from tests.integration.running import ROOT, Outcome, files_under, lines, run, sparse_of, stored

SHARE = "a number above 0 and at most 1"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with a finished point."""
    folder = tmp_path_factory.mktemp("template")
    before = os.getcwd()
    os.chdir(folder)
    try:
        done = run("masker=topk")
    finally:
        os.chdir(before)
    assert done.code == 0, done.text
    return folder / "outputs"


@pytest.fixture
def computed(template: Path) -> Iterator[Path]:
    """A finished point in the output folder, which the test must leave as it is."""
    shutil.copytree(template, "outputs")
    before = files_under(Path("outputs/points"))
    yield Path("outputs")
    after = files_under(Path("outputs/points"))
    assert {name: after.get(name) for name in before} == before, "what was computed before is untouched"


def refused(done: Outcome, *expected: str) -> None:
    """Check that a command ended with a message and without a traceback."""
    assert done.code == 1, done.text
    assert "Traceback" not in done.text
    for text in expected:
        assert text in done.text, done.text


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["masker=nosuch"], ["masker='nosuch' is not allowed", "streaming_llm", "random", "topk"]),
        (["masker=[sink,nosuch]"], ["masker='nosuch' is not allowed", "streaming_llm", "'masker=[sink,"]),
        (["model=nosuch"], ["model='nosuch' is not allowed", "llama", "qwen3_0_6b", "tiny"]),
        (["dataset=nosuch"], ["dataset='nosuch' is not allowed", "jsonl", "niah_multikey"]),
        (["tracker=nosuch"], ["tracker='nosuch' is not allowed", "wandb", "none"]),
        (["model.name=tiny:nosuch"], ["tiny:nosuch", "tiny:llama", "tiny:gemma3"]),
        (["model.name=./no/such/folder"], ["no/such/folder"]),
        (["density=0"], ["density=0 is not allowed", SHARE, "density=0.1"]),
        (["density=-1"], ["density=-1 is not allowed", SHARE]),
        (["density=2"], ["density=2 is not allowed", SHARE]),
        (["density=nan"], ["density=nan is not allowed", SHARE]),
        (["density=abc"], ["density='abc' is not allowed", SHARE]),
        (["density=null"], ["density=None is not allowed", SHARE]),
        (["masker.topk.density=0"], ["masker.topk.density=0", SHARE]),
        (
            ["masker.topk.density=0.1", "masker.topk.heavy_size=64"],
            ["masker.topk.density=0.1", "masker.topk.heavy_size=64", "both given"],
        ),
        (["masker=[topk,random]"], ["topk and random both read the top-level density"]),
        (["masker=[topk,random]", "masker.topk.density=0.1"], ["density"]),
        (["~masker.topk"], ["left without a masker", "masker=dense", "masker=topk"]),
        (["masker=[]"], ["left without a masker"]),
        (["masker=[dense,topk]"], ["dense cannot be combined with topk", "masker=dense", "'masker=topk'"]),
        (["dense_layers=[0,3]"], ["dense_layers=[0, 3]", "the 3 layers of the model, 0 to 2", "'dense_layers=[2]'"]),
        (["dense_layers=0-"], ["dense_layers='0-'", "all 3 layers", "masker=dense"]),
        (["masker.topk.layers=5-"], ["masker.topk.layers='5-'", "0 to 2"]),
        (["masker.topk.layers=2"], ["No masker works in layer 0-1", "'dense_layers=\"0-1\"'"]),
        (["masker=[sink,topk]", "masker.sink.layers=0", "dense_layers=0"], ["leaves sink no layer to work in"]),
        (["dense_layers=some"], ["dense_layers='some' is not allowed"]),
        (["phases=[question]"], ["phases=['question'] is not allowed", "'phases=[decode]'"]),
        (["execution=fast"], ["execution='fast' is not allowed", "auto, research, efficient"]),
        (["generation.max_new_tokens=0"], ["generation.max_new_tokens=0"]),
        (["dataset.metrics=[nosuch]"], ["nosuch", "string_match_all", "token_f1"]),
        (["nosuch=1"], ["nosuch is not a key of the config", "masker", "threads"]),
        (["dataset.nosuch=1"], ["dataset.nosuch is not a key of dataset", "length"]),
        (["tracker=none", "wandb.mode=offline"], ["wandb.mode", "tracker is 'none'", "tracker=wandb"]),
        (["output_dir=''"], ["output_dir"]),
        (["+model.model_kwargs.dtype=float99"], ["float99"]),
        (["+model.model_kwargs.nosuch=1"], ["nosuch"]),
        (["+model.model_kwargs.attn_implementation=nosuch"], ["nosuch"]),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else None,
)
def test_a_mistaken_setting(computed: Path, work: Work, given: list[str], expected: list[str]) -> None:
    refused(run(*given), *expected)
    assert work.counts == (0, 0, 0), "a mistake is told before anything is computed"


def test_many_mistakes_are_told_together(computed: Path) -> None:
    mistakes = {
        "density": "inf",
        "execution": "fast",
        "seed": "-1",
        "threads": "0",
        "context_cache_gib": "-1",
        "generation.max_new_tokens": "0",
        "masker.topk.heavy_size": "1.5",
        "dataset.length": "0",
    }
    done = run(*(f"{key}={value}" for key, value in mistakes.items()))
    refused(done, f"{len(mistakes)} mistakes", *mistakes)


def jsonl(text: str, *settings: str, name: str = "own.jsonl") -> Outcome:
    """Run over a file with a text."""
    Path(name).write_text(text, encoding="utf-8")
    return run("dataset=jsonl", f"dataset.path={name}", *settings)


ROW = '{"context": "Some text.", "question": "What?", "answers": "x"}\n'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (ROW + '{"context": "Some te\n' + ROW, ["own.jsonl, line 2"]),
        (ROW + ROW + "[1, 2]\n", ["own.jsonl, line 3"]),
        (ROW + '{"context": "Some text.", "answers": "x"}\n', ["own.jsonl, line 2", "'question'", "context"]),
        ('{"question": "What?", "answers": "x"}\n', ["own.jsonl, line 1", "'context'"]),
        (ROW + "\n" + '{"context": "Some text.", "question": "What?"}\n', ["own.jsonl, line 3", "'answers'"]),
        (ROW.replace("Some text.", "  "), ["own.jsonl, line 1", "'context' is empty"]),
        (ROW.replace("What?", ""), ["own.jsonl, line 1", "'question' is empty"]),
        (ROW.replace('"x"', "[]"), ["own.jsonl, line 1", "'answers'"]),
        (ROW.replace('"x"', "7"), ["own.jsonl, line 1", "'answers'", "quotes"]),
        ("\n\n", ["own.jsonl", "no rows"]),
    ],
    ids=[
        "broken line",
        "no object",
        "no question",
        "no context",
        "no answers",
        "empty context",
        "empty question",
        "empty answers",
        "number",
        "empty file",
    ],
)
def test_a_broken_file(computed: Path, work: Work, text: str, expected: list[str]) -> None:
    refused(jsonl(text), *expected)
    assert work.counts == (0, 0, 0)


def test_a_missing_file(computed: Path) -> None:
    refused(run("dataset=jsonl", "dataset.path=nowhere.jsonl"), "dataset.path=nowhere.jsonl does not exist")
    refused(run("dataset=jsonl"), "dataset.path=None is not allowed", "dataset.path=qa.jsonl")
    refused(jsonl("a,b\n", name="own.csv"), "own.csv", ".jsonl")


def test_a_missing_extra(computed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused(jsonl(ROW), "dataset=jsonl needs the package 'datasets'", "pip install 'sah[data]'")


def test_a_needle_that_does_not_fit(computed: Path, work: Work) -> None:
    refused(run("dataset.length=60"), "dataset.length")
    assert work.counts == (0, 0, 0)


def test_a_length_above_the_window(computed: Path, work: Work) -> None:
    refused(run("dataset.length=9000"), "9000", "8192", "window")
    assert work.counts == (0, 0, 0)


@pytest.mark.parametrize("model", ["qwen3_0_6b", "llama3_2_1b"])
def test_a_hub_model_without_a_network(computed: Path, model: str) -> None:
    started = time.perf_counter()
    done = run(f"model={model}")
    assert time.perf_counter() - started < 5
    refused(done, "not in the local hub cache", "HF_HUB_OFFLINE", "model=llama", "model.name=/path/to/model")
    assert done.err.count("not in the local hub cache") == 1


def test_results_of_another_configuration(computed: Path, work: Work) -> None:
    point = sparse_of().folder
    stored_point = json.loads((point / "point.json").read_text(encoding="utf-8"))
    stored_point["identity"]["dataset"]["length"] = 4096
    stored_point["identity"]["seed"] = 99
    original = (point / "point.json").read_bytes()
    (point / "point.json").write_text(json.dumps(stored_point), encoding="utf-8")
    before = files_under(computed / "points")
    refused(
        run("masker=topk"), str(point), "another configuration", "dataset.length", "4096", "512", "seed", "output_dir="
    )
    assert files_under(computed / "points") == before
    assert work.counts == (0, 0, 0)
    (point / "point.json").write_bytes(original)


def test_results_without_their_description(computed: Path) -> None:
    point = sparse_of().folder
    original = (point / "point.json").read_bytes()
    (point / "point.json").unlink()
    before = files_under(computed / "points")
    refused(run("masker=topk", "dataset.num_examples=3"), "point.json", "output_dir=")
    after = files_under(computed / "points")
    assert {name: after[name] for name in before if str(point.name) in name} == {
        name: before[name] for name in before if str(point.name) in name
    }
    (point / "point.json").write_bytes(original)


def test_a_broken_line_in_the_middle_of_results(computed: Path, work: Work) -> None:
    path = sparse_of().folder / "predictions.jsonl"
    original = path.read_bytes()
    first, second = original.splitlines(keepends=True)
    path.write_bytes(first[:50] + b"\n" + second)
    refused(run("masker=topk"), "predictions.jsonl, line 1", "output_dir=")
    assert path.read_bytes() == first[:50] + b"\n" + second
    assert work.counts == (0, 0, 0)
    path.write_bytes(original)


HOLDER = """
import sys, time
from pathlib import Path
from sah.results.store import PointStore, read_point
point = read_point(Path(sys.argv[1]))
with PointStore(Path(sys.argv[1]).parents[1], point.identity, point.label).writer():
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def hold(point: Path, seconds: float) -> subprocess.Popen[str]:
    """Hold a point's lock in another process; returns when it has it."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(point), str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


@pytest.mark.slow
def test_a_second_writer_is_refused_and_a_killed_one_leaves_no_lock(template: Path, work: Work) -> None:
    shutil.copytree(template, "outputs")
    point = sparse_of().folder
    holder = hold(point, 120)
    before = files_under(Path("outputs/points"))
    try:
        done = run("masker=topk", "dataset.num_examples=3")
        assert files_under(Path("outputs/points")) == before
        refused(done, str(point), f"process {holder.pid}", "Only one writer", "output_dir=")
        assert work.counts[2] == 0
        # Another recipe on the same examples is another point and is not held up.
        assert run("masker=sink").code == 0
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    work.clear()
    assert run("masker=topk").code == 0
    assert work.counts == (0, 0, 0)


def test_a_run_waits_for_the_dense_rows_that_another_one_computes(template: Path) -> None:
    shutil.copytree(template, "outputs")
    dense = next(point.folder for point in stored().values() if point.label == "dense")
    holder = hold(dense, 2.0)
    started = time.perf_counter()
    done = run("masker=topk", "dataset.num_examples=3")
    assert done.code == 0, done.text
    assert time.perf_counter() - started > 1.0
    assert holder.wait() == 0
    assert len(lines(sparse_of())) == 3


def test_waiting_for_dense_rows_has_an_end(template: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(template, "outputs")
    monkeypatch.setattr("sah.runners.group.DENSE_WAIT_SECONDS", 0.3)
    dense = next(point.folder for point in stored().values() if point.label == "dense")
    holder = hold(dense, 120)
    try:
        refused(
            run("masker=topk", "dataset.num_examples=3"), str(dense), f"process {holder.pid}", "after waiting 0.3 s"
        )
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert run("masker=topk", "dataset.num_examples=3").code == 0


@pytest.mark.parametrize("flags", [[], ["-m"]], ids=["single", "sweep"])
def test_a_file_where_the_output_folder_should_be(computed: Path, work: Work, flags: list[str]) -> None:
    Path("taken").write_text("mine", encoding="utf-8")
    done = run(*flags, "output_dir=taken/here")
    refused(done, "taken/here", "output_dir", "Not a directory", "output_dir=outputs")
    assert Path("taken").read_text(encoding="utf-8") == "mine"
    assert work.counts == (0, 0, 0)


def test_a_file_where_the_points_should_be() -> None:
    Path("outputs").mkdir()
    Path("outputs/points").write_text("mine", encoding="utf-8")
    refused(run("masker=topk"), "outputs/points", "output_dir=")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(computed: Path, work: Work) -> None:
    Path("locked").mkdir(mode=0o555)
    refused(run("output_dir=locked"), "Permission denied", "locked", "output_dir")
    assert work.counts == (0, 0, 0)


def forbid(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Make folders below one of a name impossible to create, for root too."""
    original = Path.mkdir

    def mkdir(self: Path, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        if name in self.absolute().parts:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        original(self, mode, parents, exist_ok)

    monkeypatch.setattr(Path, "mkdir", mkdir)


@pytest.mark.parametrize("flags", [[], ["-m"]], ids=["single", "sweep"])
def test_an_output_folder_that_cannot_be_created(
    computed: Path, work: Work, monkeypatch: pytest.MonkeyPatch, flags: list[str]
) -> None:
    forbid(monkeypatch, "locked")
    refused(run(*flags, "output_dir=locked"), "Permission denied", "locked", "output_dir")
    assert work.counts == (0, 0, 0)


def test_a_points_folder_that_cannot_be_written(computed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid(monkeypatch, "points")
    refused(run("masker=topk", "density=0.3"), "Permission denied", "points", "output_dir=")


def test_the_model_is_not_loaded_for_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*given: object, **options: object) -> None:
        raise RuntimeError("the model was loaded")

    monkeypatch.setattr(ModelAdapterHF, "__init__", never)
    monkeypatch.setattr("sah.adapters.factory._loaded", {})
    for mistake in ("density=2", "dataset.length=0"):
        refused(run(mistake), mistake)
