from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import sah
from sah.results.provenance import collect, git_state
from sah.results.redact import redacted, redacted_argument
from sah.results.sweep_file import redact_sweep_file


def test_what_is_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "sah.run", "+model.model_kwargs.token=hf_x", "seed=3"])
    entries = collect(overrides=["seed=3"], seed=3, threads=1, checkpoint_hash="ab", extra={"dtype": "float32"})
    assert json.loads(json.dumps(entries)) == entries
    assert entries["command"].endswith("seed=3") and "hf_x" not in entries["command"]
    assert entries["seed"] == 3 and entries["checkpoint_hash"] == "ab" and entries["dtype"] == "float32"
    assert entries["versions"]["torch"] and entries["versions"]["transformers"]
    assert (
        entries["hardware"]["threads"] == 1 and entries["hardware"]["cores"] >= entries["hardware"]["cores_usable"] >= 1
    )
    assert entries["time_utc"].endswith("+00:00")


def test_git_state_of_a_repository_and_of_none(tmp_path: Path) -> None:
    assert git_state(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "a").write_text("x")
    assert git_state(tmp_path) is None, "the repository does not track it"
    subprocess.run([*git, "add", "a"], check=True)
    assert git_state(tmp_path) == {"commit": None, "dirty": True}
    subprocess.run([*git, "commit", "-q", "-m", "a"], check=True)
    state = git_state(tmp_path)
    assert state is not None and len(state["commit"]) == 40 and not state["dirty"]
    installed = tmp_path / "site-packages" / "sah"
    installed.mkdir(parents=True)
    (installed / "b").write_text("x")
    assert git_state(installed) is None
    changed = git_state(tmp_path)
    assert changed is not None and changed["dirty"]


def test_the_commit_is_that_of_the_code_wherever_it_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    entries = collect()
    assert entries["git"] == git_state(Path(sah.__file__).parent)
    assert entries["working_folder"] == str(tmp_path)


def test_tokens_are_hidden_in_the_file_of_a_sweep(tmp_path: Path) -> None:
    path = tmp_path / "multirun.yaml"
    saved = {
        "hydra": {
            "run": {"dir": "${output_dir}/runs"},
            "overrides": {"hydra": ["hydra.mode=MULTIRUN"], "task": ["+model.model_kwargs.token=abc", "seed=3"]},
            "job": {"override_dirname": "+model.model_kwargs.token=abc,seed=3"},
        },
        "model": {"model_kwargs": {"token": "abc"}},
        "output_dir": "outputs",
    }
    path.write_text(json.dumps(saved))
    redact_sweep_file(path)
    assert "abc" not in path.read_text()
    config = OmegaConf.load(path)
    assert config.hydra.overrides.task == ["+model.model_kwargs.token=***", "seed=3"]
    assert config.hydra.run.dir == "outputs/runs"
    before = path.stat().st_ino
    redact_sweep_file(path)
    assert path.stat().st_ino == before, "nothing is left to hide"
    redact_sweep_file(tmp_path / "nowhere.yaml")
    assert [entry.name for entry in tmp_path.iterdir()] == ["multirun.yaml"]


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("+model.model_kwargs.token=abc", "+model.model_kwargs.token=***"),
        ("++x.hf_token=abc", "++x.hf_token=***"),
        ("model.model_kwargs={token:abc,dtype:float32}", "model.model_kwargs={token:***,dtype:float32}"),
        ("generation.max_new_tokens=5", "generation.max_new_tokens=5"),
        ("token_ids=5", "token_ids=5"),
        ("masker=topk", "masker=topk"),
        ("run.py", "run.py"),
    ],
)
def test_secrets_on_the_command_line(argument: str, expected: str) -> None:
    assert redacted_argument(argument) == expected


def test_secrets_in_a_config() -> None:
    config = {
        "model": [{"token": "a", "api_key": "b"}],
        "max_new_tokens": 5,
        "num_answer_tokens": 2,
        "token": None,
    }
    hidden = {
        "model": [{"token": "***", "api_key": "***"}],
        "max_new_tokens": 5,
        "num_answer_tokens": 2,
        "token": None,
    }
    assert redacted(config) == hidden
