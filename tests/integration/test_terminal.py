"""The terminal's commands on real sweeps of the tiny model, and as the console script calls them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sah.terminal.command import run
from tests.integration.running import ROOT, run_exactly

pytestmark = pytest.mark.slow  # tests/unit/terminal has the quick ones

QUICK = ["model=tiny", "tracker=none", "dataset.length=512", "generation.max_new_tokens=4"]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with two sweeps, the second one over more examples, and a failed job."""
    from sah.config.register import register_configs

    register_configs()
    folder = tmp_path_factory.mktemp("work") / "outputs"
    common = [*QUICK, "density=0.1,0.3", f"output_dir={folder}"]
    for name, given in (
        ("one", ["masker=topk,random", "dataset.num_examples=3"]),
        ("two", ["masker=topk,quest", "dataset.num_examples=5"]),
    ):
        done = run_exactly("-m", *given, *common, f"hydra.sweep.dir={folder}/sweeps/2026-11-22/{name}")
        assert done.code == 0, done.text
    return folder


def sah(capsys: pytest.CaptureFixture[str], name: str, *arguments: object) -> tuple[int, str, str]:
    """Run a command in this process."""
    code = run(name, [str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_show(outputs, capsys):
    sweep = outputs / "sweeps" / "2026-11-22" / "one"
    code, out, err = sah(capsys, "show", sweep)
    assert (code, err) == (0, "")
    assert out.startswith(f"{sweep}: 4 points\n")
    assert "string_match_all by rising density" in out
    assert "Fidelity to dense" in out
    assert "output error of attention over layers" in out
    assert "python -m sah.run -m masker=topk,random dataset.num_examples=3 model=tiny" in out


def test_show_all_of_an_output_folder(outputs, capsys):
    code, out, _ = sah(capsys, "show", outputs, "--json")
    (told,) = json.loads(out)
    assert code == 0
    names = sorted(point["name"].split()[0] for point in told["points"])
    assert names == ["dense", "quest", "quest", "random", "random", "topk", "topk"]
    assert told["problems"] == []


def test_one_point_and_the_command_that_makes_it(outputs, capsys):
    code, out, _ = sah(capsys, "show", outputs / "sweeps/2026-11-22/two", "--point", "quest 0.3")
    assert code == 0
    assert "recipe.0.masker            quest" in out
    assert "sparse calls       12.0 an answer" in out
    assert "python -m sah.run masker=quest dataset.num_examples=5 model=tiny" in out


def test_compare_points_and_sweeps(outputs, capsys):
    code, out, _ = sah(capsys, "compare", "topk 0.1", "random 0.1", "--in", outputs)
    assert code == 0
    assert "string_match_all" in out and "recipe.0.masker" in out and "KL to dense" in out
    sweeps = outputs / "sweeps" / "2026-11-22"
    code, out, _ = sah(capsys, "compare", sweeps / "one", sweeps / "two", "--json")
    told = json.loads(out)
    assert code == 0
    assert [pair["a"]["name"] for pair in told["points"]] == ["topk 0.1", "topk 0.3"]
    assert told["points"][0]["scores"]["string_match_all"]["pairs"] == 3, "the questions that both asked for"
    assert len(told["only_a"]) == len(told["only_b"]) == 2


def test_the_same_command_is_valid_and_was_run(outputs, capsys):
    given = ["-m", "masker=topk,random", "dataset.num_examples=3", *QUICK, "density=0.1,0.3", f"output_dir={outputs}"]
    code, out, _ = sah(capsys, "validate", *given, "--json")
    assert code == 0
    assert json.loads(out)["points"] == 4


@pytest.mark.parametrize("name", ["show", "compare", "ls", "validate", "doctor"])
def test_help_of_each_command(name):
    done = console_script(name, "--help")
    assert done.returncode == 0, done.stderr
    assert f"usage: sah {name}" in done.stdout
    assert "examples:\n  sah " in done.stdout


def test_help_and_unknown_commands():
    done = console_script("--help")
    for name in ("plan", "validate", "show", "compare", "report", "ls", "doctor", "fetch"):
        assert f"\n  sah {name} " in done.stdout
    composed = subprocess.run(
        [sys.executable, "-m", "sah.run", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == composed.stdout == console_script().stdout == console_script("help").stdout
    done = console_script("shwo")
    assert done.returncode == 2
    assert "There is no command 'shwo'." in done.stderr and "Did you mean: sah show?" in done.stderr.replace("\n", " ")


def test_report(outputs, tmp_path):
    done = console_script("report", str(outputs / "sweeps/2026-11-22/one"), "--output", str(tmp_path / "page"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "page" / "index.html").is_file()


def test_doctor(tmp_path):
    done = console_script("doctor", "--quick", "--json", "--output-dir", str(tmp_path))
    told = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert {"python", "packages", "config", "device", "hub", "wandb", "output folder", "embedded model"} <= told.keys()
    assert told["config"]["status"] == "ok"
    (tmp_path / "file").write_text("")
    done = console_script("doctor", "--quick", "--output-dir", str(tmp_path / "file" / "x"))
    assert done.returncode == 1
    assert "problem output folder" in done.stdout


@pytest.mark.e2e
def test_doctor_loads_the_embedded_model():
    done = console_script("doctor")
    assert "loads and answers" in done.stdout, done.stdout + done.stderr


def console_script(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Call what the console script calls."""
    command = [sys.executable, "-m", "sah.cli", *arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
