"""The presets of papers: what they say of themselves, that they fit the default model, and that they run."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from sah.adapters.hash_files import write_weights
from sah.config.build import build_experiment
from sah.config.experiment import Experiment
from sah.config.paths import conf_dir
from sah.fetching import CACHE_VARIABLE
from sah.runners.session import attention_config
from sah.sparse_attention.base import SparseAttention
from tests.integration.running import run, sparse_of
from tests.support.attention import hash_layer

PRESETS = sorted((conf_dir() / "experiment").glob("paper_*.yaml"))
SMOLLM2_LAYERS = 30

RECIPES = {
    "paper_double_sparsity": "double_sparsity",
    "paper_h2o": "h2o",
    "paper_hash_attention": "sink+local+hash_attention",
    "paper_magicpig": "sink+local+magicpig",
    "paper_pqcache": "sink+local+pqcache",
    "paper_quest": "quest",
    "paper_snapkv": "snapkv",
    "paper_socket": "sink+local+socket",
    "paper_streaming_llm": "streaming_llm",
    "paper_tova": "tova",
    "paper_vattention_hash": "sink+local+hash_attention+adaptive",
    "paper_vattention_oracle": "sink+local+topk+adaptive",
    "paper_vattention_pqcache": "sink+local+pqcache+adaptive",
}

DECODE_ONLY = {"paper_magicpig", "paper_pqcache", "paper_socket", "paper_snapkv", "paper_tova"}
"""Those that read the question dense, as their papers do."""

presets = pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)


def built(path: Path) -> Experiment:
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        return build_experiment(compose("config", [f"+experiment={path.stem}"]))


def test_every_paper_has_its_preset() -> None:
    assert {path.stem: built(path).label for path in PRESETS} == RECIPES


@presets
def test_a_preset_names_its_paper_and_where_it_differs(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[:2] == ["# @package _global_", f"# python -m sah.run +experiment={path.stem}"]
    about = list(itertools.takewhile(lambda line: line.startswith("# "), lines[2:]))
    assert 3 <= len(about) <= 8
    text = " ".join(line.removeprefix("# ") for line in about)
    assert re.search(r"arXiv \d{4}\.\d{5}", text)
    assert re.search(r"Table \d|\.sh|\.py", text), "the table it follows, or the authors' script"
    assert "Differs: " in text


@presets
def test_a_preset_fits_the_default_model(path: Path) -> None:
    experiment = built(path)
    assert (experiment.model.name, experiment.dataset.name) == ("embedded:smollm2-135m-instruct", "niah")
    config = attention_config(experiment)
    assert config is not None
    config.check_layers(SMOLLM2_LAYERS)
    SparseAttention.create_from_config(config)


@presets
def test_a_preset_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    # The tiny model has 3 layers, fewer than some of these presets name.
    fitting = ["dense_layers=[0]"] if built(path).dense_layers else []
    if "hash_attention" in RECIPES[path.stem]:
        # Of the tiny model: 4 query heads, 2 KV heads, head_dim 16.
        networks = {layer: hash_layer(4, 2, 16, 32, seed=layer) for layer in range(3)}
        write_weights(tmp_path / "hash.safetensors", networks, {})
        fitting.append(f"masker.hash_attention.weights={tmp_path / 'hash.safetensors'}")
    done = run(f"+experiment={path.stem}", *fitting, "dataset.num_examples=1")
    assert done.code == 0, done.text
    (row,) = sparse_of(label=RECIPES[path.stem]).predictions.values()
    assert row.status == "ok"
    assert row.attention_calls and row.density_measured is not None
    assert (row.density_by_phase["question"] is None) == (path.stem in DECODE_ONLY)
