"""Jobs are validated as they will run, and all mistakes are told at once."""

from __future__ import annotations

import pickle

import pytest
from hydra.core.hydra_config import HydraConfig

from sah.config.compose import SweepComposer
from sah.errors import ConfigError
from sah.runners.jobs import Job, common_overrides, compose_jobs, refusal
from tests.unit.config.conftest import Sweep, sweep

__all__ = ["sweep"]


def jobs_of(sweep: Sweep, *batch: list[str]) -> list[Job]:
    hydra, master = sweep()
    return compose_jobs(SweepComposer(hydra.config_loader, master), dict(enumerate(batch, start=3)))


def test_a_job_holds_its_experiment_and_its_config(sweep: Sweep) -> None:
    first, second = jobs_of(sweep, ["masker=topk", "density=0.2"], ["masker=dense", "tracker=none"])
    assert (first.number, second.number) == (3, 4)
    assert (first.experiment.label, first.experiment.density) == ("topk", 0.2)
    assert first.config["density"] == 0.2 and first.config["masker"]["topk"]["heavy_size"] is None
    assert "hydra" not in first.config and second.experiment.is_dense
    assert first.text() == "masker=topk density=0.2" and first.text(["masker=topk"]) == "density=0.2"


@pytest.mark.slow
def test_values_see_what_a_job_sees_of_hydra(sweep: Sweep) -> None:
    before = HydraConfig.instance().cfg
    given = ["output_dir='/a/${hydra:job.num}'", "model.label='${hydra:job.name}'", "hydra.sweep.dir=/s"]
    (job,) = jobs_of(sweep, [*given, "context_folder='${hydra:runtime.output_dir}'"])
    assert str(job.experiment.output_dir) == "/a/3" and job.experiment.model.label == "sah"
    assert str(job.experiment.context_folder) == "/s/3"
    assert HydraConfig.instance().cfg is before
    with pytest.raises(ConfigError, match="hydra.job.name' not found"):
        jobs_of(sweep, ["model.label='${hydra.job.name}'"])  # not there either when the job runs
    assert HydraConfig.instance().cfg is before


def test_mistakes_of_every_kind_are_told_together(sweep: Sweep) -> None:
    with pytest.raises(ConfigError) as refused:
        jobs_of(
            sweep,
            ["masker=nosuch"],
            ["masker=[topk,topk]"],
            ["masker=topk", "density=2", "seed=-1"],
            ["masker=topk", "density=2"],
            ["nosuch=1"],
            ["masker=topk"],
        )
    text = str(refused.value)
    assert text.startswith("5 of 6 points cannot be run, so none was started:")
    assert text.count("density=2 is not allowed") == 1
    assert "In 2 points: 5 (masker=topk density=2 seed=-1), 6 (masker=topk density=2)." in text
    for message, place in (
        ("masker='nosuch' is not allowed", "In point 3 (masker=nosuch)."),
        ("topk stands more than once", "In point 4 (masker=[topk,topk])."),
        ("seed=-1 is not allowed", "In point 5 (masker=topk density=2 seed=-1)."),
        ("nosuch is not a key of the config", "In point 7 (nosuch=1)."),
    ):
        assert message in text and place in text
    assert len(refused.value.mistakes) == 5
    again = pickle.loads(pickle.dumps(refused.value))
    assert (str(again), again.mistakes) == (text, refused.value.mistakes)


def test_the_mistake_of_a_single_job_stands_alone(sweep: Sweep) -> None:
    with pytest.raises(ConfigError) as refused:
        jobs_of(sweep, ["density=2"])
    assert str(refused.value).startswith("density=2 is not allowed")


def test_many_jobs_are_counted_and_secrets_hidden() -> None:
    batch = {number: [f"seed={number}", "model.model_kwargs.token=abc", "masker=topk"] for number in range(9)}
    error = refusal({number: ["wrong"] for number in range(7)}, batch)
    assert "In 7 points: 0 (seed=0), 1 (seed=1), 2 (seed=2) and 4 more." in str(error)
    batch[8] = ["seed=8"]
    assert "token=abc" not in str(refusal({0: ["wrong"]}, batch)) and "token=***" in str(refusal({0: ["wrong"]}, batch))


def test_what_jobs_share() -> None:
    assert common_overrides([["a=1", "b=2", "c=3"], ["c=3", "b=2"]]) == ["b=2", "c=3"]
    assert common_overrides([["a=1"]]) == [] and common_overrides([]) == []
