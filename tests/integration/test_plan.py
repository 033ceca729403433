"""`python -m sah.plan`: what a sweep would do, without weights, without work and without a trace."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from sah.adapters import factory
from sah.adapters.sources.tiny import FAMILIES
from sah.config.experiment import Experiment
from sah.runners.jobs import Job
from sah.runners.plan import make_plan
from sah.runners.session import Session
from tests.integration.conftest import Work
from tests.integration.groups import experiments
from tests.integration.running import files_under, jobs, plan, run, stored
from tests.unit.config.conftest import build, composed

SWEEP = ("masker=topk,random", "density=0.05,0.1")

__all__ = ["build", "composed"]


def shown_points(text: str) -> list[list[str]]:
    """Read the lines of the table of points, as words: job, setting, answers, [done,] id, overrides."""
    return [line.split() for line in text.splitlines() if re.match(r"\s+\d+\s+\S+\s+(\d+/\d+|-)\s", line)]


def shown_groups(text: str) -> list[list[int]]:
    """Read the figures of the groups: points, complete, contexts, to prefill, tokens, answers there, to compute."""
    found = re.findall(r"^\s+tiny-\S+\s+niah((?:\s+[\d,]+){7})\s", text, flags=re.MULTILINE)
    return [[int(number.replace(",", "")) for number in numbers.split()] for numbers in found]


@pytest.mark.slow
def test_a_plan_before_and_after_the_run(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(factory, "_loaded", {})
        patched.setattr(factory, "_outlines", {})
        patched.setattr(factory, "create_adapter", None)  # what loads weights
        before = plan(*SWEEP)
        assert before.code == 0, before.text
        (outline,) = factory._outlines.values()
        assert {parameter.device.type for parameter in outline.model.parameters()} == {"meta"}
    assert list(Path().iterdir()) == [], "a plan leaves nothing behind"
    assert work.counts == (0, 0, 0)
    ((*counts, tokens, there, missing),) = shown_groups(before.out)
    assert (counts, there, missing) == ([4, 0, 2, 2], 0, 2 * 5)
    assert "Rough estimate" in before.out and "matrix products timed on this machine" in before.out

    assert run("-m", *SWEEP).code == 0
    rows = [row for point in stored().values() for row in point.predictions.values()]
    lengths = {row.example_key: row.kv_len or 0 for row in rows}
    assert tokens == pytest.approx(sum(lengths.values()), rel=0.05)
    kept = files_under(Path())
    work.clear()
    after = plan(*SWEEP)
    assert [words[:4] for words in shown_points(after.out)] == [
        [str(number), record["label"], "4/4", "done"] for number, record in enumerate(jobs())
    ]
    assert [words[4] for words in shown_points(after.out)] == [record["point"] for record in jobs()]
    assert [words[3] for words in shown_points(before.out)] == [record["point"] for record in jobs()]
    assert "Complete: 4 of 4" in after.out and "Nothing is left to compute" in after.out
    assert files_under(Path()) == kept and work.counts == (0, 0, 0)

    more = plan("masker=topk,random", "density=0.05,0.1,0.2")
    (figures,) = shown_groups(more.out)
    assert figures[:4] == [6, 4, 2, 2] and figures[5:] == [10, 4], "dense answers are not computed again"
    assert "the prefill times of rows that are there" in more.out


def test_a_plan_leaves_the_records_of_an_earlier_sweep() -> None:
    record = Path("outputs/mine/0/job.json")
    record.parent.mkdir(parents=True)
    record.write_text("{}", encoding="utf-8")
    assert plan("masker=topk", "hydra.sweep.dir=outputs/mine").code == 0
    assert list(files_under(Path())) == [str(record)]


def test_a_plan_takes_what_a_run_takes() -> None:
    done = plan("-m", "+experiment=density_curve", "density=0.1,0.2", "hydra/launcher=basic")
    assert done.code == 0, done.text
    assert [words[1] for words in shown_points(done.out)] == [
        name for name in ("topk", "quest", "double_sparsity", "streaming_llm", "random") for _ in range(2)
    ]
    assert "All points: +experiment=density_curve" in done.out
    assert "[sah" not in done.out and list(Path().iterdir()) == []


def test_a_single_point_has_a_plan() -> None:
    done = plan("masker=topk")
    assert "1 point. Complete: 0 of 1." in done.out
    assert len(shown_points(done.out)) == 1


def test_readings_of_dense_answers_are_planned_too() -> None:
    done = plan("masker=topk,random", "fidelity=true")
    (figures,) = shown_groups(done.out)
    assert figures[5:] == [0, 2 * 3 + 2 * 2]
    assert [words[2] for words in shown_points(done.out)] == ["0/6", "0/6"]


def test_equal_points_are_named() -> None:
    done = plan("masker=topp", "density=0.1,0.2", "seed=0")
    assert "2 points, 1 of them equal to another one and run once" in done.out
    assert "(equal to job 0)" in done.out
    ((points, *_),) = shown_groups(done.out)
    assert points == 1


def test_what_cannot_be_planned_is_named() -> None:
    done = plan("masker=topk", "model.name=tiny:llama,./nowhere")
    assert done.code == 0
    assert [words[2] for words in shown_points(done.out)] == ["0/4", "-"]
    assert "there is no such folder" in done.out and "Traceback" not in done.text


def test_mistakes_are_told_as_in_a_run() -> None:
    done = plan("masker=topk", "density=0.1,2")
    assert done.code == 1
    assert "1 of 2 points cannot be run" in done.err


def test_what_is_known_only_while_it_runs_is_refused() -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    search = ("hydra/sweeper=optuna", "hydra.sweeper.direction=maximize", "hydra.sweeper.n_trials=2")
    shown = plan(*search, "density=choice(0.1,0.2)")
    assert shown.code == 0 and len(shown_points(shown.out)) == 2, shown.text
    refused = plan(*search, "density=choice(0.1,0.2)", "hydra/launcher=basic")
    assert refused.code == 1
    assert "There is no plan of this sweep" in refused.text
    assert not Path("outputs/points").exists()


def test_a_plan_of_a_search_says_what_it_leaves_out() -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    shown = plan("+experiment=search_density", "hydra.sweeper.n_jobs=2")
    assert shown.code == 0 and len(shown_points(shown.out)) == 2, shown.text
    assert "trials 0 to 1 of up to 20, counted from 0. Later batches are chosen from results" in shown.text


@pytest.mark.slow
def test_a_plan_of_a_search_begins_no_trial_in_its_storage() -> None:
    optuna = pytest.importorskip("optuna")
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    storage = f"sqlite:///{Path('study.db').absolute()}"
    kept = (f"hydra.sweeper.storage={storage}", "hydra.sweeper.study_name=mine", "hydra.sweeper.n_jobs=2")
    shown = plan("+experiment=search_density", *kept)
    assert shown.code == 0 and len(shown_points(shown.out)) == 2, shown.text
    assert "hydra.sweeper.storage is left alone" in shown.out
    assert list(Path().iterdir()) == []
    refused = run("+experiment=search_density", *kept, "dataset.length=1")
    assert refused.code == 1 and "dataset.length" in refused.err
    trials = optuna.load_study(study_name="mine", storage=storage).trials
    assert [trial.state.name for trial in trials] == ["RUNNING"] * 2
    assert "stay in the study of hydra.sweeper.storage" in refused.err, "what cannot be taken back is told"
    assert "hydra.sweeper.storage" not in run("+experiment=search_density", "dataset.length=1").err


def test_workers_without_a_context_shorten_no_estimate() -> None:
    first = experiments(("masker=topk",))[0]
    jobs_of_sweep = [Job(0, ("masker=topk",), first, {})]
    for workers in (1, 2, 8):
        (group,) = make_plan(jobs_of_sweep, Session(), workers).summary.groups
        assert group.busy_workers == min(workers, 2), "there are two contexts"


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_contexts_on_disk_are_counted_without_weights(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ("masker=topk", f"model.name=tiny:{family}", "context_folder=contexts")
    with monkeypatch.context() as patched:
        patched.setattr(factory, "_loaded", {})
        patched.setattr(factory, "_outlines", {})
        before = plan(*given)
        assert run(*given, "output_dir=one").code == 0
        for name in ("_loaded", "_outlines"):
            patched.setattr(factory, name, {})
        patched.setattr(factory, "create_adapter", None)  # what loads weights
        Path("contexts/other.safetensors").write_bytes(b"\x02" + bytes(7) + b"{}")
        Path("contexts/torn.safetensors").write_bytes(b"torn")
        after = plan(*given)
        more = plan(*given, "dataset.num_examples=3")
        other = plan(*given, "+model.tokenizer_kwargs.padding_side=left", "dataset.seed=7")
    kept = sum(path.stat().st_size for path in Path("contexts").iterdir())
    (number, unit) = re.findall(r" on disk, ([\d.,]+) ([KM]B) more in context_folder", before.text)[0]
    assert float(number) * {"KB": 1e3, "MB": 1e6}[unit] == pytest.approx(kept, rel=0.1)
    assert "read from context_folder" not in before.text
    assert "Prefills: 0; 2 contexts more are read from context_folder." in after.text
    assert "more in context_folder." not in after.text
    assert shown_groups(after.out)[0][3:5] == [0, 0]
    assert "Prefills: 1; 2 contexts more are read from context_folder." in more.text
    assert "read from context_folder" not in other.text and shown_groups(other.out)[0][3] == 2


@pytest.mark.slow
def test_a_full_context_folder_does_not_grow() -> None:
    given = ("masker=topk", "context_folder=contexts")
    assert run(*given, "context_folder_gib=0.0005").code == 0
    held = sum(path.stat().st_size for path in Path("contexts").iterdir())
    assert held
    for capacity, grows in ((held, False), (held + 100_000, True), (1000, False)):
        shown = plan(*given, f"context_folder_gib={capacity / 2**30}", "dataset.seed=7")
        assert ("100 KB more in context_folder" in shown.text) == grows, shown.text


@pytest.mark.parametrize("family", FAMILIES)
def test_points_come_out_the_same_without_weights(family: str, build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for given in ("", "+model.model_kwargs.dtype=bfloat16", "+model.model_kwargs.dtype=auto"):
        monkeypatch.setattr(factory, "_loaded", {})
        monkeypatch.setattr(factory, "_outlines", {})
        experiment: Experiment = build("model=tiny", f"model.name=tiny:{family}", *filter(None, [given]))
        light = Session(weights=False).model(experiment)
        assert not factory._loaded
        whole = Session().model(experiment)
        assert light.identity == whole.identity
        assert (light.label, light.checkpoint_hash) == (whole.label, whole.checkpoint_hash)
        assert light.adapter.num_layers == whole.adapter.num_layers
        assert light.adapter.window == whole.adapter.window
        assert light.adapter.count_prompt_tokens("a b", "c") == whole.adapter.count_prompt_tokens("a b", "c")
        assert whole.adapter.model.device == torch.device("cpu")


def test_a_loaded_model_serves_a_plan_as_it_is(build: Any) -> None:
    experiment = build("model=tiny")
    session = Session()
    whole = session.model(experiment)
    assert session.without_weights().model(experiment).adapter is whole.adapter
