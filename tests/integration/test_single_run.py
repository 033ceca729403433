"""What one run prints, and what it leaves on disk and with the tracker."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from sah.metrics.fidelity import mean_output_error
from tests.fakes.wandb_files import media, read_run
from tests.integration.conftest import Work
from tests.integration.running import ROOT, dense_of, jobs, run, sparse_of, stored, write_rows

POINT_FILES = {"point.json", "predictions.jsonl", "scores.jsonl", "metrics.json", "provenance.json"}
COLUMNS = (
    ("setting",),
    ("sparse", "in"),
    ("dense",),
    ("sparse",),
    ("difference",),
    ("verdict",),
    ("density", "requested"),
    ("density", "measured"),
    ("prefill", "s"),
    ("attention", "ms", "an", "answer"),
)


def test_the_table_names_and_shows_every_figure(work: Work) -> None:
    done = run("masker=topk", "density=0.2", "fidelity=true")
    assert done.code == 0, done.text
    words = done.out.split()
    for column in COLUMNS:
        assert set(column) <= set(words)
    (line,) = (line for line in done.out.splitlines() if line.split()[:1] == ["topk"])
    # The difference's interval and its verdict, both of several words, stand between the numbers.
    found = re.fullmatch(r"(.*) \[([+-]\S+), ([+-]\S+)\] +(not enough data) (.*)", line)
    assert found is not None
    cells = [*found[1].split(), *found[5].split()]
    metrics = sparse_of().metrics
    assert metrics is not None
    scores = metrics["comparison"]["scores"]["string_match_all"]
    assert cells[1:3] == ["question+decode", "2"]
    assert [float(cell) for cell in cells[3:6]] == pytest.approx(
        [scores["dense"], scores["sparse"], scores["difference"]], abs=5e-4
    )
    assert [float(found[2]), float(found[3])] == pytest.approx([scores["low"], scores["high"]], abs=5e-3)
    assert (scores["verdict"], scores["contexts"], scores["margin"]) == ("not enough data", 2, 0.05)
    assert metrics["dense"]["scores"]["string_match_all"].keys() == {"mean", "count", "low", "high"}
    assert float(cells[6]) == 0.2
    assert float(cells[7]) == pytest.approx(0.2, abs=0.01)
    assert float(cells[8]) == pytest.approx(mean_output_error(metrics["sparse"]["attention_by_head"]), abs=6e-5)
    assert float(cells[9]) == pytest.approx(metrics["dense"]["prefill"]["seconds"], abs=0.006)
    measures = [metrics[arm]["measures"] for arm in ("dense", "sparse")]
    attention = [1000 * (arm["attention_seconds"] + arm["selection_seconds"]) for arm in measures]
    assert [float(cells[10]), float(cells[12])] == pytest.approx(attention, abs=0.6)
    assert float(cells[13].strip("()")) == pytest.approx(1000 * measures[1]["selection_seconds"], abs=0.6)
    assert "timing=true takes times a token" in done.out
    assert work.counts == (2, 2, 2)


def test_the_job_folder_points_to_the_results() -> None:
    done = run("masker=topk")
    assert done.code == 0, done.text
    assert [path.name for path in Path().iterdir()] == ["outputs"]
    (folder,) = (path.parent for path in Path("outputs/runs").rglob("job.json"))
    assert {"config.json", "job.json", "sah.log"} == {path.name for path in folder.iterdir()}
    (record,) = jobs()
    point = sparse_of()
    assert record["status"] == "ok"
    assert record["point"] == point.id
    assert Path(record["folder"]) == point.folder.resolve()
    assert "masker=topk" in record["overrides"]
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["density"] == 0.1
    assert config["model"]["name"] == "tiny:llama"
    assert config["dataset"]["length"] == 512
    assert str(point.folder.resolve()) in done.out


@pytest.mark.parametrize("label", ["dense", "topk"])
def test_each_point_leaves_its_files(label: str) -> None:
    assert run("masker=topk").code == 0
    (point,) = (point for point in stored().values() if point.label == label)
    assert {path.name for path in point.folder.iterdir()} >= POINT_FILES
    assert len(point.predictions) == len(point.scores) == 2


def test_a_run_of_the_baseline_itself(work: Work) -> None:
    done = run("masker=dense")
    assert done.code == 0, done.text
    (point,) = stored().values()
    assert point.label == "dense"
    assert {path.name for path in point.folder.iterdir()} >= POINT_FILES
    assert work.counts == (2, 2, 0)
    assert run("masker=topk").code == 0
    assert work.counts[1:] == (2, 2)


def test_provenance_says_what_was_run() -> None:
    assert run("masker=topk", "seed=3").code == 0
    provenance = sparse_of().provenance
    text = json.dumps(provenance)
    for expected in ("masker=topk", "torch", "transformers", "git", "cpu", "threads", "seed", "tiny:llama"):
        assert expected in text, expected
    assert provenance is not None
    (first,) = provenance["runs"]
    assert first["seed"] == 3


def test_provenance_lists_the_runs_that_added_rows() -> None:
    for examples in (1, 3, 3):
        assert run("masker=topk", f"dataset.num_examples={examples}").code == 0
    for point in (dense_of(), sparse_of()):
        assert point.provenance is not None
        overrides = [entry["overrides"] for entry in point.provenance["runs"]]
        assert ["dataset.num_examples=1" in given for given in overrides] == [True, False]


def test_rows_say_what_was_measured() -> None:
    assert run("masker=topk", "density=0.25").code == 0
    dense, sparse = dense_of(), sparse_of()
    assert list(dense.predictions) == list(sparse.predictions)
    for key, row in sparse.predictions.items():
        twin = dense.predictions[key]
        assert row.status == twin.status == "ok"
        assert row.answers == twin.answers
        assert row.kv_len == twin.kv_len
        assert row.num_question_tokens == twin.num_question_tokens
        assert row.density_requested == 0.25
        assert row.density_measured == pytest.approx(0.25, abs=0.01)
        assert set(row.density_by_phase) == {"question", "decode"}
        assert twin.density_requested is None
        assert twin.attention_calls == 0
        assert (row.state_seconds, twin.state_seconds) == (0, None), "the recipe derives no state"
        # The question's call and one for each further token, in each of three layers.
        assert row.decode_steps is not None
        assert row.attention_calls == 3 * (1 + row.decode_steps)
        assert row.num_answer_tokens == len(row.token_ids) <= 4
        for arm in (row, twin):
            for time in (arm.prefill_seconds, arm.attention_seconds):
                assert time is not None
                assert time > 0
            assert arm.prefill_cpu_seconds is not None
            shared = (arm.question_seconds, arm.question_cpu_seconds, arm.decode_seconds, arm.decode_cpu_seconds)
            assert shared == (None,) * 4, "model calls were shared with other answers"
        assert row.selection_seconds is not None and row.selection_seconds > 0
        assert twin.selection_seconds == 0


def test_rows_of_a_sparse_answer_over_a_dense_prompt() -> None:
    done = run("masker=topk", "density=0.25", "phases=[decode]")
    assert done.code == 0, done.text
    (line,) = (line.split() for line in done.out.splitlines() if line.split()[:1] == ["topk"])
    assert line[1] == "decode"
    dense, sparse = dense_of(), sparse_of()
    assert "phases" not in dense.identity and sparse.identity["phases"] == ["decode"]
    for key, row in sparse.predictions.items():
        assert row.token_ids[0] == dense.predictions[key].token_ids[0], "the prompt ran dense"
        assert row.decode_steps is not None
        assert (row.attention_calls, row.sparse_layers) == (3 * row.decode_steps, 3)
        assert row.density_by_phase == {"question": None, "decode": row.density_measured}
        assert row.density_measured == pytest.approx(0.25, abs=0.01)


def test_rows_of_a_point_with_dense_layers() -> None:
    done = run("masker=topk", "density=0.25", "dense_layers=[0,1]")
    assert done.code == 0, done.text
    assert "question+decode (0-1" in done.text
    assert "keep the attention window" not in done.text
    for row in sparse_of().predictions.values():
        assert row.decode_steps is not None
        assert (row.attention_calls, row.sparse_layers) == (1 + row.decode_steps, 1)
        assert row.density_measured == pytest.approx((1 + 1 + 0.25) / 3, abs=0.01)


def test_it_is_told_which_layers_of_a_model_with_windows_run_sparse() -> None:
    done = run("model.name=tiny:gemma3", "masker=topk", "dense_layers=[0,2]")
    assert done.code == 0, done.text
    told = "Sparse attention runs in 1 of 6 layers; 2 are dense as dense_layers says. 3 keep the attention window"
    assert done.text.count(told) == 1
    other = run("model.name=tiny:gemma3", "masker=topk")
    assert other.text.count("Sparse attention runs in 1 of 6 layers; 5 keep the attention window") == 1


def test_scores_and_aggregates_follow_from_the_predictions() -> None:
    text = "Some words that stand here."
    questions = ["What?", "Which ones?", "Why?"]
    # The first run tells what the model says, so that the second file can hold right and wrong answers.
    write_rows(Path("a.jsonl"), {"context": text, "questions": questions, "answers": ["x", "y", "z"]})
    assert run("dataset=jsonl", "dataset.path=a.jsonl", "output_dir=first").code == 0
    said = [row.prediction.strip() for row in dense_of(Path("first")).predictions.values()]
    assert all(said)
    answers = [said[0], "no such text", said[2]]
    write_rows(Path("b.jsonl"), {"context": text, "questions": questions, "answers": answers})
    assert run("dataset=jsonl", "dataset.path=b.jsonl", "masker=sink", "masker.sink.sink_size=1").code == 0
    dense, sparse = dense_of(), sparse_of()
    assert [score.scores["exact_match"] for score in dense.scores.values()] == [1.0, 0.0, 1.0]
    metrics = sparse.metrics
    assert metrics is not None
    for metric in ("string_match_any", "token_f1", "exact_match"):
        pairs = [(dense.scores[key].scores[metric], sparse.scores[key].scores[metric]) for key in sparse.scores]
        compared = metrics["comparison"]["scores"][metric]
        assert compared["pairs"] == 3
        assert compared["dense"] == pytest.approx(sum(a for a, _ in pairs) / 3)
        assert compared["sparse"] == pytest.approx(sum(b for _, b in pairs) / 3)
        assert compared["difference"] == pytest.approx(sum(b - a for a, b in pairs) / 3)


def test_another_margin_gives_another_verdict_and_computes_nothing(work: Work) -> None:
    for margin, verdict in (("0.9", "tied"), ("0.05", "not enough data"), ("1", "tied")):
        done = run("masker=topk", f"margin={margin}")
        assert done.code == 0, done.text
        compared = (sparse_of().metrics or {})["comparison"]["scores"]["string_match_all"]
        assert (compared["margin"], compared["verdict"]) == (float(margin), verdict)
        assert verdict in done.text
    assert work.counts == (2, 2, 2)


def test_a_recipe_is_named_and_ordered() -> None:
    done = run("masker=[sink,local,topk]", "masker.topk.heavy_size=16")
    assert done.code == 0, done.text
    point = sparse_of()
    assert point.label == "sink+local+topk"
    assert [masker["masker"] for masker in point.identity["recipe"]] == ["sink", "local", "topk"]
    assert "sink+local+topk" in done.out
    for row in point.predictions.values():
        assert row.density_requested is None
        assert row.density_measured is not None
        assert row.kv_len and row.num_question_tokens and row.decode_steps
        allowed = range(row.kv_len + 1, row.kv_len + row.num_question_tokens + row.decode_steps + 1)
        assert row.density_measured == pytest.approx(sum(84 / keys for keys in allowed) / len(allowed), abs=0.002)


def test_both_executions_say_the_same() -> None:
    for execution in ("research", "efficient"):
        assert run("masker=topk", f"execution={execution}", f"output_dir={execution}").code == 0
    research, efficient = sparse_of(Path("research")), sparse_of(Path("efficient"))
    assert research.id != efficient.id
    assert [row.token_ids for row in research.predictions.values()] == [
        row.token_ids for row in efficient.predictions.values()
    ]
    assert dense_of(Path("research")).id == dense_of(Path("efficient")).id


def test_the_sample_file_of_questions_runs() -> None:
    done = run("dataset=jsonl", f"dataset.path={ROOT / 'tests/data/qa.jsonl'}", "masker=streaming_llm")
    assert done.code == 0, done.text
    assert len(sparse_of().predictions) == len(dense_of().predictions) == 4


def test_an_offline_wandb_run_holds_the_point() -> None:
    pytest.importorskip("wandb")
    done = run("-m", "masker=topk,dense", "tracker=wandb")
    assert done.code == 0, done.text
    (sweep,) = (path.parent for path in Path("outputs/sweeps").rglob("multirun.yaml"))
    runs = [read_run(sweep / number) for number in "01"]
    sparse, dense = sparse_of(), dense_of()
    assert [tracked.id for tracked in runs] == [sparse.id, dense.id]
    assert runs[0].group and runs[0].group == runs[1].group
    assert [tracked.job_type for tracked in runs] == ["sparse", "dense"]
    assert {"tiny-llama", "niah", "topk"} <= set(runs[0].tags)
    assert runs[0].config["density"] == 0.1
    assert runs[0].config["phases"] == ["question", "decode"]
    assert runs[0].config["dataset"]["length"] == 512
    assert runs[0].config["identity"]["recipe"][0]["masker"] == "topk"
    assert runs[0].exit_code == 0
    summary = runs[0].summary
    assert summary["dense"] == 0.0 and summary["difference"] == 0.0
    assert summary["density_requested"] == 0.1
    assert summary["sparse_in"] == "question+decode"
    assert summary["density_measured"] == pytest.approx(0.1, abs=0.01)
    assert summary["score"] == 0.0 and summary["verdict"] and summary["detail"]["comparison"]["contexts"] == 2
    assert runs[0].axes["score"] == "density_measured" and runs[1].summary["density_measured"] == 1.0
    content = media(sweep / "0", runs[0], "predictions")
    row = dict(zip(content["columns"], content["data"][0], strict=True))
    key = f"{row['example']}:{row['question']}"
    assert len(content["data"]) == 2
    assert row["setting"] == "topk 0.1"
    assert row["sparse answer"] == sparse.predictions[key].prediction
    assert row["dense answer"] == dense.predictions[key].prediction
    assert row["sparse score"] == row["dense score"] == 0.0
    assert [[name for name in tracked.artifacts if name.startswith("results")] for tracked in runs] == [[], []]
    assert not Path("wandb").exists()
    _check_the_run_of_the_sweep(sweep, {arm.id: arm.folder for arm in (sparse, dense)}, runs[0].group)


def _check_the_run_of_the_sweep(sweep: Path, folders: dict[str, Path], group: str) -> None:
    run = read_run(sweep)
    assert (run.job_type, run.group, run.name) == ("sweep", group, f"{group} sweep")
    assert {"sweep", "niah"} <= set(run.tags) and run.config["dataset"]["length"] == 512
    assert (run.summary["finished"], run.summary["failed"], run.exit_code) == (2, 0, 0)
    table = media(sweep, run, "points")
    rows = [dict(zip(table["columns"], cells, strict=True)) for cells in table["data"]]
    assert [row["setting"] for row in rows] == ["topk 0.1", "dense"]
    assert {row["point"] for row in rows} == set(folders)
    assert rows[0]["bytes"] > 0 and rows[0]["density"] == pytest.approx(0.1, abs=0.01)
    assert {"verdict", "difference_low", "difference_high", "kl", "decode_ms"} <= set(rows[0])
    for name in ("density", "pareto-density", "pareto-bytes"):
        figure = media(sweep, run, name)
        assert "topk" in [trace["name"] for trace in figure["data"]]
        assert figure["layout"]["xaxis"]["title"]["text"]
    (results,) = [name for name, kind in run.artifact_types.items() if kind == "results"]
    kept = run.artifacts[results]
    for point, folder in folders.items():
        for path in ("predictions.jsonl", "scores.jsonl", "metrics.json", "point.json", "provenance.json"):
            assert kept[f"points/{point}/{path}"].read_bytes() == (folder / path).read_bytes()
    assert {"sweep/table.md", "sweep/0/job.json", "sweep/1/config.json"} <= set(kept)
    assert not [path for path in kept if path.endswith((".lock", ".yaml"))]
    note = json.loads((sweep / "tracking.json").read_text(encoding="utf-8"))
    assert (note["tracker"], note["group"], note["run"]) == ("wandb", group, run.id)
    assert note["settings"]["project"] == "sah" and "wandb sync" in note["location"]


def test_an_answer_of_one_token_has_no_decode_time() -> None:
    done = run("masker=topk", "generation.max_new_tokens=1")
    assert done.code == 0, done.text
    (line,) = (line.split() for line in done.out.splitlines() if line.split()[:1] == ["topk"])
    assert "-" not in line[-4:], "attention has its time all the same"


def test_a_point_that_ran_wholly_dense_is_a_failed_one() -> None:
    done = run("masker=topk", "generation.max_new_tokens=1", "phases=[decode]", "fidelity=true")
    assert done.code == 1
    assert "No answer of this point ran sparse" in done.text and "phases=[question,decode]" in done.text
    point = sparse_of()
    for row in point.predictions.values():
        assert (row.status, row.attention_calls, row.density_measured) == ("ok", 0, None)
    assert point.metrics is not None
    assert point.metrics["comparison"]["scores"] == {}, "no verdict, no difference of zero"
    fidelity = point.metrics["sparse"]["fidelity"]
    assert (fidelity["questions"], fidelity["without_sparse_calls"], fidelity["kl"]["mean"]) == (0, 2, None)


def test_equal_lines_of_a_file_are_one_example() -> None:
    row = {"context": "Some text.", "question": "What?", "answers": "x"}
    write_rows(Path("twice.jsonl"), row, row, row | {"question": "Why?"})
    done = run("dataset=jsonl", "dataset.path=twice.jsonl", "masker=sink")
    assert done.code == 0, done.text
    for point in (dense_of(), sparse_of()):
        assert len((point.folder / "predictions.jsonl").read_bytes().splitlines()) == 2


@pytest.mark.parametrize("tracker", ["none", "wandb"])
def test_a_token_is_written_nowhere(tracker: str) -> None:
    done = run("masker=topk", "+model.model_kwargs.token=hf_verysecret", f"tracker={tracker}")
    assert done.code == 0, done.text
    found = [str(path) for path in Path().rglob("*") if path.is_file() and b"hf_verysecret" in path.read_bytes()]
    # Hydra's own record of the command line is Hydra's.
    assert [path for path in found if "/.hydra/" not in path] == []
    assert "hf_verysecret" not in done.text
