"""Every command of the README runs, the long ones in a short form."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.report_folder import Sweep, make_sweep
from tests.unit.adapters.test_hash_conversion import published

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", README, re.DOTALL)
INLINE = re.findall(r"`((?:make|sah|python -m|eval) [^`]+)`", README)
COMMANDS = list(
    dict.fromkeys(
        [line for kind, block in BLOCKS if kind == "bash" for line in block.splitlines() if line.strip()] + INLINE
    )
)
SWEEP = "outputs/sweeps/DATE/TIME"
"""Where the README means a sweep of the reader's own."""
TINY_NEEDLE = ["dataset.length=512", "dataset.num_examples=1", "dataset.depths=1"]


def run(command: list[str], timeout: float = 300) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout)


def short_overrides(given: list[str], folder: Path) -> list[str]:
    short = ["model=tiny", "wandb.mode=disabled", f"output_dir={folder}"]
    if any("prose" in word for word in given):
        return [*short, "dataset.length=128", "dataset.continuation=16", "dataset.num_examples=2"]
    return short + ([] if any("jsonl" in word for word in given) else TINY_NEEDLE)


def test_the_readme_has_commands() -> None:
    assert len(COMMANDS) >= 10
    assert "make run" in COMMANDS and "make test" in COMMANDS


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with finished work for the commands that look at `outputs`."""
    folder = tmp_path_factory.mktemp("finished") / "outputs"
    given = ["-m", "masker=topk,random", *short_overrides([], folder)]
    done = run([sys.executable, "-m", "sah.run", *given])
    assert done.returncode == 0, done.stderr
    return folder


def train_tiny_networks(folder: Path) -> subprocess.CompletedProcess[str]:
    options = ["bits=8", "steps=2", f"output={folder / 'hash.safetensors'}"]
    done = run([sys.executable, "-m", "sah.train_hash", "model=tiny", *options])
    assert (folder / "hash.safetensors").is_file(), done.stderr
    return done


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_command(command: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    words = shlex.split(command)
    if words[0] == "make":
        # The test run is what these start; CI runs them for real.
        done = run(["make", "-n", *words[1:]])
    elif words[0] == "eval":
        done = run([sys.executable, "-m", "sah.cli", "-sc", "install=bash"])
        assert "complete" in done.stdout
    elif words[:2] == ["sah", "fetch"]:
        done = run([sys.executable, "-m", "sah.cli", "fetch", "--help"])
        assert words[2] in done.stdout
    elif words[0] == "sah" and words[1] in ("show", "compare", "report"):
        folder = request.getfixturevalue("finished")
        extra = {"compare": ["--in", str(folder)], "report": ["--output", str(tmp_path)]}.get(words[1], [])
        given = [str(folder) if word == "outputs" else word for word in words[1:]]
        done = run([sys.executable, "-m", "sah.cli", *given, *extra])
    elif words[0] == "sah" and words[1] in ("validate", "ls", "doctor"):
        done = run([sys.executable, "-m", "sah.cli", *words[1:]])
    elif words[0] == "sah":
        informs = "--help" in words or "--cfg" in words
        extra = [] if informs else short_overrides(words, tmp_path)
        done = run([sys.executable, "-m", "sah.cli", *words[1:], *extra])
    elif words[:3] == ["python", "-m", "sah.run"]:
        done = run([sys.executable, *words[1:], *short_overrides(words, tmp_path)])
        assert "density measured" in done.stdout, done.stderr
    elif words[:3] == ["python", "-m", "sah.plan"]:
        done = run([sys.executable, *words[1:], *short_overrides(words, tmp_path)])
        assert "Composed, checked and planned in" in done.stdout, done.stderr
    elif words[:4] == ["python", "-m", "sah.report", "wandb"]:
        assert run([sys.executable, "-m", "sah.run", *short_overrides([], tmp_path)]).returncode == 0
        done = run([sys.executable, *words[1:4], str(tmp_path), "--offline"])
        assert (tmp_path / "wandb_report" / "report.html").is_file(), done.stderr
    elif words[:3] == ["python", "-m", "sah.report"] and words[3] != "wandb":
        sweep = make_sweep(tmp_path, Sweep(methods=1, densities=(0.1,), contexts=2))
        done = run([sys.executable, *words[1:3], *(str(sweep) if word == SWEEP else word for word in words[3:])])
        assert (sweep / "report" / "index.html").is_file(), done.stderr
    elif words == ["python", "-m", "benchmarks.sweep"]:
        # tests/integration/test_benchmark_sweep.py measures all parts.
        done = run([sys.executable, *words[1:], "--fast", "--parts", "plan"])
        assert "points" in done.stdout, done.stderr
    elif words == ["python", "-m", "benchmarks.fidelity"]:
        done = run([sys.executable, *words[1:], "--fast", "--rounds", "1"])
        assert "fidelity=true against fidelity=false" in done.stdout, done.stderr
    elif words[:3] == ["python", "-m", "sah.train_hash"]:
        done = train_tiny_networks(tmp_path)
    elif words[:3] == ["python", "-m", "sah.convert_hash"]:
        torch.save(published().state_dict(), tmp_path / words[3])
        done = run([sys.executable, *words[1:3], *(str(tmp_path / word) for word in words[3:])])
        assert (tmp_path / words[4]).is_file(), done.stderr
    elif words == ["python", "-m", "benchmarks.hash_recall"]:
        assert train_tiny_networks(tmp_path).returncode == 0
        tiny = ["--model", "tiny:llama", "--bits", "8", "--weights", str(tmp_path / "hash.safetensors")]
        done = run([sys.executable, *words[1:], *tiny, "--length", "512", "--examples", "1"])
        assert "random" in done.stdout, done.stderr
    elif words == ["python", "-m", "benchmarks.prefill"]:
        done = run([sys.executable, *words[1:], "--lengths", "300", "--models", "smollm2", "--repeats", "1"])
        assert "block_topk" in done.stdout, done.stderr
    elif words == ["python", "-m", "benchmarks.prefill_model"]:
        done = run([sys.executable, *words[1:], "--tokens", "300", "--model", "tiny:llama", "--repeats", "1"])
        assert "block_topk" in done.stdout, done.stderr
    elif words[:2] == ["python", "-m"] and words[2].startswith("experiments."):
        page = ["--folder", str(tmp_path / "page"), "--output-dir", str(tmp_path / "rows")]
        done = run([sys.executable, *words[1:], "--fast", *page])
        assert "| method | setting |" in (tmp_path / "page" / "README.md").read_text(encoding="utf-8")
        assert (tmp_path / "page" / "needle-density.png").stat().st_size > 1000
    else:
        pytest.fail(f"the README has a command that no test knows how to run: {command}")
    assert done.returncode == 0, done.stdout + done.stderr


def test_python_example(capsys: pytest.CaptureFixture[str]) -> None:
    [code] = [block for kind, block in BLOCKS if kind == "python"]
    exec(compile(code.replace("embedded:smollm2-135m-instruct", "tiny:llama"), "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("[")
