"""The benchmarks run and report what they say they report; how fast anything is, is not looked at."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from benchmarks import attention, attention_arms, attention_cell, attention_report
from benchmarks.attention_arms import ARMS, DENSE, HEAD_DIM, HEADS, KV_HEADS, Stream
from benchmarks.attention_run import SparseRun, rows_of_mask
from benchmarks.profiling import largest_allocations, peak_of_allocations, slowest_operations
from benchmarks.timing import interleaved
from sah.sparse_attention import Mask
from sah.sparse_attention.key_lists import KeyLists

pytestmark = pytest.mark.slow

SHORT, LONG = 256, 512


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Sizes that run in seconds, targets that hold at them, and an equality test that passes at once."""
    monkeypatch.setattr(attention_cell, "READ_BYTES", 1 << 20)
    monkeypatch.setattr(attention_cell, "FLUSH_BYTES", 1 << 20)
    monkeypatch.setattr(attention_cell, "PROFILED_CALLS", 1)
    for module in (attention_cell, attention_report):
        monkeypatch.setattr(module, "TIME_KV_LEN", SHORT)
        monkeypatch.setattr(module, "TEMPORARIES_KV_LEN", LONG)
    for module in (attention_arms, attention_report):
        monkeypatch.setattr(module, "KEPT_KEYS", 32)
    green = tmp_path / "test_green.py"
    green.write_text("def test_green() -> None:\n    assert True\n")
    monkeypatch.setattr(attention, "EQUALITY_TESTS", [str(green)])
    return tmp_path


def test_every_arm_is_reported(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = small / "figures.json"
    attention.main(["--kv-len", str(SHORT), str(LONG), "--dtype", "float32", "--repeats", "1", "--json", str(file)])
    text = capsys.readouterr().out
    cells = json.loads(file.read_text())["cells"]
    assert [(cell["dtype"], cell["kv_len"]) for cell in cells] == [("float32", SHORT), ("float32", LONG)]
    for cell in cells:
        rows = {row["arm"]: row for row in (*cell["dense"], *cell["sparse"])}
        assert list(rows) == [*DENSE, *ARMS]
        best = min(DENSE, key=lambda name: rows[name]["ms"])
        assert cell["best_dense"] == best
        assert f"{cell['dtype']}, kv_len {cell['kv_len']}: KV cache" in text
        assert f"best is {best}" in text
        for name, row in rows.items():
            assert f"\n{name} " in text
            assert row["temporaries"] > 0
            assert row["share_of_dense_time"] == pytest.approx(row["ms"] / rows[best]["ms"])
            read = sum(row["bytes_read"].values())
            assert row["share_of_bandwidth"] == pytest.approx(read / (row["ms"] / 1e3) / cell["bandwidth"])
        for name, arm in ARMS.items():
            assert rows[name]["selection_ms"] > 0, name
            assert 0 < rows[name]["density"] <= 1, name
            # What a method that evicts holds is no state of all keys, and is read as keys and values.
            holds = arm.reads == "state" or arm.most_of_streaming is not None
            assert (rows[name]["state_bytes"] > 0) == holds, name
            of = {target["of"]: target for target in rows[name]["targets"]}
            limits = {"time": arm.most_time, "evicting": arm.most_of_streaming}
            timed = {what for what, limit in limits.items() if cell["kv_len"] == SHORT and limit is not None}
            assert set(of) == timed | ({"temporaries"} if cell["kv_len"] == LONG else set())
            for target in of.values():
                assert target["met"] == (target["measured"] <= target["allowed"])
                assert bool(target.get("profile")) == (not target["met"]), "a missed target comes with a profile"
    assert "at least 10x faster" in text and "at most 1.3x as long" in text
    assert "CPU ms at 32 kept keys" in text and "exponents" in text


def test_bytes_follow_from_the_method_and_the_kept_keys(small: Path) -> None:
    file = small / "figures.json"
    names = ["streaming_llm", "quest-group", "topk-head", "topk-group", "random", "double_sparsity-group"]
    names += ["hash_attention-group", "hash_attention-head"]
    options = ["--kv-len", str(LONG), "--repeats", "1", "--dtype", "bfloat16", "--arms", *names]
    attention.main([*options, "--json", str(file)])
    (cell,) = json.loads(file.read_text())["cells"]
    # A round to warm up and one that is timed follow the context.
    length, row_bytes = LONG + 2, 2 * HEAD_DIM
    kept, key_bytes = round(0.05 * length), length * KV_HEADS * row_bytes
    assert cell["kv_bytes"] == 2 * key_bytes
    signatures = length * KV_HEADS * 4
    pages = length // 16 * KV_HEADS * 2 * row_bytes
    expected = {
        "streaming_llm": (0, 2 * kept * KV_HEADS, 0),
        "quest-group": (pages, 2 * kept * KV_HEADS, pages),
        "topk-head": (key_bytes, kept * HEADS, 0),
        "topk-group": (key_bytes, 2 * kept * KV_HEADS, 0),
        "random": (0, 2 * kept * HEADS, 0),
        "double_sparsity-group": (key_bytes // 8, 2 * kept * KV_HEADS, key_bytes // 8),
        "hash_attention-group": (signatures, 2 * kept * KV_HEADS, signatures),
        "hash_attention-head": (signatures, 2 * kept * HEADS, signatures),
    }
    for row in cell["sparse"]:
        selection, rows, state = expected[row["arm"]]
        assert row["bytes_read"] == {"selection": selection, "attention": rows * row_bytes}, row["arm"]
        assert row["state_bytes"] == state
        assert row["density"] == pytest.approx(0.05, abs=0.5 / LONG)


def test_nothing_is_measured_while_the_executions_differ(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    red = small / "test_red.py"
    red.write_text("def test_red() -> None:\n    assert False\n")
    monkeypatch.setattr(attention, "EQUALITY_TESTS", [str(red)])
    with pytest.raises(SystemExit, match="no times are reported") as stopped:
        attention.main(["--kv-len", str(SHORT), "--repeats", "1", "--json", str(small / "none.json")])
    assert stopped.value.code not in (0, None)
    assert capsys.readouterr().out == ""
    assert not (small / "none.json").exists()


def test_the_equality_tests_exist() -> None:
    for test in attention.EQUALITY_TESTS:
        path, _, name = test.partition("::")
        assert f"\ndef {name}" in (attention.ROOT / path).read_text(encoding="utf-8")


def test_wrong_dense_forms_stop_the_measurement(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = dict(DENSE, wrong=lambda stream: DENSE["dense-matmul"](stream) + 0.1)
    monkeypatch.setattr(attention_cell, "DENSE", wrong)
    with pytest.raises(SystemExit, match="wrong has a relative error"):
        attention.main(["--kv-len", str(SHORT), "--repeats", "1"])


@pytest.mark.parametrize("name", ["quest-group", "random", "adaptive"])
def test_a_run_is_one_question_decoded_step_by_step(name: str) -> None:
    stream = Stream(SHORT, 20, torch.float32)
    run = SparseRun(ARMS[name], stream)
    lengths, outputs = [], []
    for _ in range(20):
        stream.advance()
        lengths.append(stream.keys.shape[2])
        outputs.append(run.step())
    assert lengths == list(range(SHORT + 1, SHORT + 21))
    assert all(output.shape == (1, 1, HEADS, HEAD_DIM) for output in outputs)
    assert not torch.equal(outputs[0], outputs[1])
    if name == "quest-group":
        assert run.state_bytes() == (SHORT + 20) // 16 * KV_HEADS * 2 * HEAD_DIM * 4


def test_few_keys_hold_most_of_the_mass() -> None:
    assert Stream(4096, 1, torch.float32).mass_of_best(0.05) > 0.5


def test_rows_are_counted_once_for_each_head_that_reads_them() -> None:
    shape = (1, HEADS, 1, 100)
    assert rows_of_mask(Mask.full(shape)) == 2 * KV_HEADS * 100
    assert rows_of_mask(Mask.from_spans(shape, ((0, 4), (90, 100)))) == 2 * KV_HEADS * 14
    shared, by_group, by_head = (torch.arange(5).expand(1, lists, 1, 5) for lists in (1, KV_HEADS, HEADS))
    empty = Mask.empty(shape)
    assert rows_of_mask(empty.extend(KeyLists(shared))) == 2 * KV_HEADS * 5
    assert rows_of_mask(empty.extend(KeyLists(by_group, run=16))) == 2 * KV_HEADS * 5 * 16
    unused = torch.tensor([1.0, 0.5, 0.0, 0.0, 1.0]).expand(1, HEADS, 1, 5)
    assert rows_of_mask(empty.extend(KeyLists(by_head, unused))) == 2 * HEADS * 3
    assert rows_of_mask(empty.extend(KeyLists(by_head, logits=torch.zeros(1, HEADS, 1, 5)))) == HEADS * 5
    dense = Mask.from_dense(shape, (torch.arange(100) < 7).view(1, 1, 1, 100))
    assert rows_of_mask(dense) == 2 * KV_HEADS * 7


def test_the_peak_counts_what_is_alive_at_once() -> None:
    megabyte = torch.ones(1 << 18)

    def run() -> torch.Tensor:
        doubled = megabyte * 2
        more = doubled + 1
        del doubled
        return (more * 3).sum()

    assert peak_of_allocations(run) == pytest.approx(2 << 20, abs=1000)
    assert max(entry["bytes"] for entry in largest_allocations(run)) >= 1 << 20


def test_the_slowest_operation_comes_first() -> None:
    big = torch.ones(300, 300)
    operations = slowest_operations(lambda: (big @ big, big + 1), lambda: None, 3)
    names = [entry["op"] for entry in operations]
    assert names.index("aten::mm") < names.index("aten::add")
    assert [entry["ms"] for entry in operations] == sorted((entry["ms"] for entry in operations), reverse=True)
    assert operations[names.index("aten::mm")]["calls"] == 1


def test_rounds_and_calls_are_prepared_outside_of_the_measured_time() -> None:
    log: list[str] = []

    def burn() -> None:
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass

    def before_call() -> None:
        log.append("call")
        burn()

    arms = {"a": lambda: log.append("a"), "b": lambda: log.append("b")}
    seconds = interleaved(arms, 2, before_round=lambda: log.append("round"), before_call=before_call)
    assert log == ["round", "call", "a", "call", "b"] * 3
    assert all(value < 0.04 for value in seconds.values())
