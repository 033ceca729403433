"""`sah ls`: every file says what it is."""

from __future__ import annotations

import json

import pytest

from sah.config.paths import conf_dir
from sah.sparse_attention.discovery import masker_configs
from sah.terminal.ls import find_groups, knobs, read_option

GROUPS = find_groups()


def test_all_kinds_with_counts(sah):
    code, out, _ = sah("ls")
    assert code == 0
    for group, options in GROUPS.items():
        names = sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))
        assert f"{group}s ({len(names)}), " in out
        assert f"  {', '.join(names)}\n" in out
        assert [option.name for option in options] == names
    assert "+experiment=NAME: sah ls experiments" in out
    assert "hydra" not in GROUPS


@pytest.mark.parametrize("option", [o for options in GROUPS.values() for o in options], ids=lambda o: str(o.path.stem))
def test_every_file_has_a_command_and_a_description(option):
    assert option.problem == ""
    assert option.command.startswith("python -m ")
    assert len(option.description) > 10
    lines = [line for line in option.path.read_text().splitlines() if not line.startswith("# @package")]
    assert any(line.startswith("# python -m ") for line in lines[:2]), "the command stays on top"


@pytest.mark.parametrize("name", sorted(masker_configs()))
def test_knobs_of_maskers_are_fields(name):
    option = read_option(conf_dir() / "masker" / f"{name}.yaml")
    assert knobs(option).keys() <= set(masker_configs()[name].__dataclass_fields__)


def test_one_line_each(sah):
    _, out, _ = sah("ls", "maskers")
    lines = out.splitlines()
    assert len(lines) == 1 + len(GROUPS["masker"])
    (quest,) = (line for line in lines if line.startswith("  quest "))
    assert "Quest (arXiv 2406.10774)" in quest and "page_size=16" in quest and "heavy_size=null" in quest
    _, out, _ = sah("ls", "experiment")
    assert len(out.splitlines()) == 1 + len(GROUPS["experiment"])
    assert "Which forms of the needle task the model answers dense, by length  |  a sweep" in out


def test_availability_of_models(sah, tmp_path, monkeypatch):
    monkeypatch.setenv("SAH_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    told = {entry["name"]: entry["availability"] for entry in json.loads(sah("ls", "models", "--json")[1])["models"]}
    assert told["tiny"] == "made here, offline"
    assert told["llama"] == "embedded, not fetched yet: sah fetch llama"
    assert told["qwen3_8b"] == "hub, Qwen/Qwen3-8B, not in the cache, needs the network"


def test_fetched_and_local_models(sah, tmp_path, monkeypatch):
    from sah.adapters.sources import find_source

    monkeypatch.setenv("SAH_CACHE_DIR", str(tmp_path / "cache"))
    source = find_source("llama")
    source.folder.mkdir(parents=True)
    own = tmp_path / "conf" / "model"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text(f"# Mine.\n# python -m sah.run model=mine\nname: {tmp_path}\n")
    (own / "odd.yaml").write_text("name: 'a//b c'\n")
    (own / "empty.yaml").write_text("label: x\n")
    _, out, _ = sah("ls", "models", "--config-dir", tmp_path / "conf")
    assert "|  embedded, fetched, offline" in out
    assert f"mine         Mine  |  local folder, offline  |  from {own / 'mine.yaml'}" in out
    assert "a//b c, neither a folder nor a hub id" in out
    assert "(its head comment says nothing)  |  names no model" in out


def test_own_groups_and_a_file_that_is_no_yaml(sah, tmp_path):
    (tmp_path / "conf" / "masker").mkdir(parents=True)
    (tmp_path / "conf" / "prompt").mkdir()
    (tmp_path / "conf" / "prompt" / "short.yaml").write_text(
        "# python -m sah.run prompt=short\n# Short. Really.\na: 1\n"
    )
    (tmp_path / "conf" / "masker" / "broken.yaml").write_text("# Broken.\nkey: [1\n")
    (tmp_path / "conf" / "masker" / "mine.yaml").write_text("# Mine.\nmine:\n  _target_: a.B\n  size: 3\n")
    _, out, _ = sah("ls", "prompts", "-cd", tmp_path / "conf")
    assert out.startswith("prompts (1), prompt=NAME\n  short  Short  |  from ")
    _, out, _ = sah("ls", "maskers", "-cd", tmp_path / "conf")
    assert "Broken  |  no YAML config in line 3  |  from" in out
    assert "Mine  |  size=3  |  from" in out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["maskrs"], "There is no kind 'maskrs'. Allowed: models, maskers, prefills, datasets, experiments, trackers"),
        (["maskrs"], "Did you mean: sah ls maskers?"),
        (["models", "--config-dir", "nowhere"], "--config-dir nowhere is no folder. Give one that holds groups"),
    ],
)
def test_mistakes(sah, arguments, expected):
    code, out, err = sah("ls", *arguments)
    assert (code, out) == (1, "")
    assert expected in " ".join(err.split())
