"""`python -m sah.run` and `sah` as processes: help, composing, messages, exit codes. No model is loaded."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def run(module: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a module of this checkout in another folder."""
    code = (
        f"import sys, runpy; sys.path.insert(0, {str(ROOT)!r}); sys.argv[0] = 'sah'; "
        f"runpy.run_module({module!r}, run_name='__main__')"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.slow
def test_help_shows_groups_and_examples(tmp_path):
    done = run("sah.run", "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for expected in (
        "masker=",
        "streaming_llm",
        "model=",
        "+experiment=",
        "Examples",
        "'masker=[sink,local,topk]'",
    ):
        assert expected in done.stdout
    assert "schema" not in done.stdout
    assert 'eval "$(sah -sc install=bash)"' in done.stdout


@pytest.mark.slow
def test_composing_is_quick_and_leaves_nothing(tmp_path):
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = run("sah.run", "--cfg", "job", "masker=[sink,local,topk]", cwd=tmp_path)
        seconds.append(time.perf_counter() - start)
    assert done.returncode == 0, done.stderr
    assert "heavy_size: null" in done.stdout
    assert list(tmp_path.iterdir()) == []
    assert min(seconds) < 2.0, "composing imports something heavy; benchmarks/README.md holds the figure"


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("masker=topq", ["masker='topq' is not allowed", "streaming_llm", "example: masker=topp"]),
        ("masker=[sink,topq]", ["masker='topq' is not allowed", "streaming_llm", "'masker=[sink,topp]'"]),
        ("+experiment=smok", ["+experiment='smok' is not allowed", "density_curve", "+experiment=smoke"]),
        ("experiment=smoke", ["use +experiment=smoke"]),
        (
            "masker.topk.foo=1",
            [
                "masker.topk.foo is not a key of masker.topk. "
                "Allowed: density, group_score, heavy_size, layers, selection"
            ],
        ),
        ("output_dir=${nope}", ["Interpolation key 'nope' not found"]),
        ("--config-dir=nowhere", ["nowhere' not found"]),
        ("masker=[topk,topk]", ["topk stands more than once"]),
        ("dataset=null", ["dataset=None is not allowed"]),
        ("density=0", ["density=0 is not allowed. Allowed: a number above 0 and at most 1"]),
        ("phases=decode", ["phases='decode' is not allowed. Allowed: [question,decode]", "'phases=[decode]'"]),
    ],
)
def test_a_mistake_ends_in_one_message_and_exit_code_1(tmp_path, argument, expected):
    done = run("sah.run", argument, cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    for text in expected:
        assert text in done.stderr


@pytest.mark.slow
def test_hydra_full_error_shows_the_traceback(tmp_path, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    for argument, name in (("masker.topk.foo=1", "ConfigCompositionException"), ("density=0", "ConfigError")):
        done = run("sah.run", argument, cwd=tmp_path)
        assert done.returncode == 1
        assert "Traceback" in done.stderr and name in done.stderr


def test_options_of_a_folder_of_ones_own_are_named(tmp_path):
    (tmp_path / "mine" / "masker").mkdir(parents=True)
    (tmp_path / "mine" / "masker" / "own_one.yaml").write_text("sink:\n  sink_size: 4\n")
    for choice in ("own_two", "[sink,own_two]"):
        done = run("sah.run", "--config-dir", "mine", f"masker={choice}", cwd=tmp_path)
        assert done.returncode == 1
        assert "masker='own_two' is not allowed" in done.stderr and "topk" in done.stderr
        assert choice.replace("own_two", "own_one") in done.stderr.partition("Write")[2]


@pytest.mark.slow
def test_sah_takes_overrides_with_and_without_the_word_run(tmp_path):
    bare = run("sah.cli", "masker=sink", "--cfg", "job", cwd=tmp_path)
    worded = run("sah.cli", "run", "masker=sink", "--cfg", "job", cwd=tmp_path)
    assert bare.returncode == worded.returncode == 0, bare.stderr + worded.stderr
    assert bare.stdout == worded.stdout
    assert "sink_size: 4" in bare.stdout


@pytest.mark.slow
def test_sah_alone_shows_the_help(tmp_path):
    assert "sah fetch" in run("sah.cli", cwd=tmp_path).stdout


def test_a_mistyped_command_is_named(tmp_path):
    done = run("sah.cli", "rnu", cwd=tmp_path)
    assert done.returncode == 2
    assert "There is no command 'rnu'" in done.stderr


def test_fetch_lists_what_it_knows(tmp_path):
    done = run("sah.cli", "fetch", "nosuch", cwd=tmp_path)
    assert done.returncode == 2
    for name in ("gemma3_270m", "llama", "tiny", "tiny:qwen3", "essays"):
        assert name in done.stderr
    assert "Traceback" not in done.stderr


def test_tab_completion(tmp_path):
    installed = run("sah.cli", "-sc", "install=bash", cwd=tmp_path)
    assert "complete" in installed.stdout
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; sys.argv[0] = 'sah'; from sah.cli import main; main()",
            "-sc",
            "query=bash",
        ],
        cwd=ROOT,
        env={"COMP_LINE": "sah masker=st", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.split() == ["masker=streaming_llm"]
