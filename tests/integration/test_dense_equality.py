"""A budget that keeps everything gives exactly the dense answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from sah.sparse_attention.discovery import masker_configs
from tests.integration.running import dense_of, run, sparse_of

WHOLE = {
    "causal": [],
    "sink": ["masker.sink.sink_size=1.0"],
    "local": ["masker.local.window_size=1.0"],
    "topp": ["masker.topp.top_p=1.0"],
}
"""What makes the maskers that read no density keep every key."""
RECIPES = {
    "[sink,topk]": ["density=1.0"],
    "[sink,local,random]": ["density=1"],
    "topk": ["masker.topk.heavy_size=1.0"],
    "random": ["masker.random.sampling_rate=100000"],
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One output folder, so that dense is computed once."""
    return tmp_path_factory.mktemp("whole")


def check(shared: Path, execution: str, *settings: str) -> None:
    """Run a point and compare it with dense."""
    seen = {path.name for path in shared.glob("points/*")}
    done = run(f"output_dir={shared}", f"execution={execution}", *settings)
    assert done.code == 0, done.text
    dense = dense_of(shared)
    (new,) = (path for path in shared.glob("points/*") if path.name not in seen | {dense.id})
    from sah.results.store import read_point

    sparse = read_point(new)
    assert len(sparse.predictions) == 2
    for key, row in sparse.predictions.items():
        twin = dense.predictions[key]
        assert (row.token_ids, row.prediction, row.stop_reason) == (twin.token_ids, twin.prediction, twin.stop_reason)
        assert row.density_measured == 1.0
        assert row.attention_calls


@pytest.mark.parametrize("execution", ["research", "efficient"])
@pytest.mark.parametrize("masker", masker_configs())
def test_every_masker(shared: Path, masker: str, execution: str) -> None:
    check(shared, execution, f"masker={masker}", *WHOLE.get(masker, ["density=1.0"]))


@pytest.mark.parametrize("execution", ["research", "efficient"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_and_sizes(shared: Path, recipe: str, execution: str) -> None:
    check(shared, execution, f"masker={recipe}", *RECIPES[recipe])


def test_the_answers_of_the_tiny_model_tell_settings_apart() -> None:
    """Without this the equalities above would prove nothing."""
    assert run("masker=sink", "masker.sink.sink_size=1").code == 0
    assert [row.token_ids for row in sparse_of().predictions.values()] != [
        row.token_ids for row in dense_of().predictions.values()
    ]
