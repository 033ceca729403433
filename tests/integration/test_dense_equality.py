"""A budget that keeps everything gives exactly the dense answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from sah.adapters.factory import create_adapter
from sah.adapters.hash_training import TrainingOptions, train_model
from sah.results.store import read_point
from sah.sparse_attention.discovery import masker_configs
from tests.integration.running import dense_of, run, sparse_of, stored

WHOLE = {
    "adaptive": ["masker.adaptive.base_rate=1.0"],
    "causal": [],
    "sink": ["masker.sink.sink_size=1.0"],
    "local": ["masker.local.window_size=1.0"],
    "topp": ["masker.topp.top_p=1.0"],
}
"""What makes the maskers that read no density keep every key."""
RECIPES = {
    "[sink,local,random]": ["density=1"],
    "topk": ["masker.topk.heavy_size=1.0"],
    "random": ["masker.random.sampling_rate=100000"],
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One output folder, so that dense is computed once."""
    return tmp_path_factory.mktemp("whole")


def check(shared: Path, *settings: str) -> None:
    """Run a point in both executions and compare it with dense."""
    seen = {path.name for path in shared.glob("points/*")}
    done = run("-m", f"output_dir={shared}", "execution=research,efficient", *settings)
    assert done.code == 0, done.text
    dense = dense_of(shared)
    new = [read_point(path) for path in shared.glob("points/*") if path.name not in seen | {dense.id}]
    assert {point.identity["execution"] for point in new} == {"research", "efficient"}
    for sparse in new:
        assert len(sparse.predictions) == 2
        for key, row in sparse.predictions.items():
            twin = dense.predictions[key]
            assert row.token_ids == twin.token_ids
            assert (row.prediction, row.stop_reason) == (twin.prediction, twin.stop_reason)
            assert row.density_measured == 1.0
            assert row.attention_calls


# magicpig samples by angles and has no setting that keeps every key.
@pytest.mark.parametrize("masker", [name for name in masker_configs() if name != "magicpig"])
def test_every_masker(shared: Path, masker: str) -> None:
    settings = WHOLE.get(masker, ["density=1.0"])
    if masker == "hash_attention":
        networks = train_model(create_adapter("tiny:llama"), TrainingOptions(steps=1, output=shared / "h.safetensors"))
        settings = [*settings, f"masker.hash_attention.weights={networks}"]
    check(shared, f"masker={masker}", *settings)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_and_sizes(shared: Path, recipe: str) -> None:
    check(shared, f"masker={recipe}", *RECIPES[recipe])


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3", "phi3", "gemma3"])
def test_every_architecture(family: str) -> None:
    done = run("-m", f"model.name=tiny:{family}", "masker=topk", "density=0.1,1.0")
    assert done.code == 0, done.text
    points = {point.predictions[key].density_requested: point for point in stored().values() for key in point.scores}
    assert points.keys() == {None, 0.1, 1.0}
    tokens = {density: [row.token_ids for row in point.predictions.values()] for density, point in points.items()}
    assert tokens[1.0] == tokens[None] != tokens[0.1]
    assert [row.density_measured for row in points[0.1].predictions.values()] == pytest.approx([0.1, 0.1], abs=0.01)


def test_the_answers_of_the_tiny_model_tell_settings_apart() -> None:
    """Without this the equalities above would prove nothing."""
    assert run("masker=sink", "masker.sink.sink_size=1").code == 0
    assert [row.token_ids for row in sparse_of().predictions.values()] != [
        row.token_ids for row in dense_of().predictions.values()
    ]
