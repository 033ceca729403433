"""`sah doctor`: every check by itself, and the exit code. No model is loaded here."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sah.adapters.sources import find_source
from sah.adapters.sources.base import write_manifest
from sah.errors import ModelError
from sah.terminal import doctor, health, servers
from sah.terminal.health import OK, PROBLEM, WARNING, Result, guarded


@pytest.fixture
def server() -> Iterator[str]:
    """A server that answers 405 to everything, on this machine."""

    class Refuses(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(405)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Refuses) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A checkout whose requirements and constraints tests may write."""
    monkeypatch.setattr(health, "_ROOT", tmp_path)
    health.requirements.cache_clear()
    yield tmp_path
    health.requirements.cache_clear()


def project(folder: Path, dependencies: str, extras: str = "") -> None:
    """Write a pyproject.toml."""
    text = f'[project]\nname = "sah"\ndependencies = {dependencies}\n[project.optional-dependencies]\n{extras}\n'
    (folder / "pyproject.toml").write_text(text)


def test_this_installation_has_all_it_needs():
    for check in (health.python, health.code, health.packages):
        (result,) = check()
        assert result.status == OK, result
    assert "torch 2." in health.packages()[0].text
    names = [result.name for result in health.extras()]
    assert "extra plot" in names and "extra test" not in names


def test_missing_and_old_packages(checkout):
    project(checkout, '["torch>=99", "no_such_package>=1", "rich"]', 'plot = ["matplotlib", "absent-one", "sah[data]"]')
    (checkout / "constraints.txt").write_text("")
    (result,) = health.packages()
    assert result.status == PROBLEM
    assert "no-such-package is missing, torch 2." in result.text and "is installed, >=99 is needed" in result.text
    assert result.advice == "Run: pip install -c constraints.txt 'torch>=99' 'no_such_package>=1'"
    (extra,) = health.extras()
    assert (extra.status, extra.text) == (OK, "absent-one not installed")
    assert extra.advice == "To use it: pip install 'sah[plot]'"


def test_drift_from_the_tested_set(checkout):
    project(checkout, '["torch", "rich"]')
    assert "constraints.txt comes with a checkout" in health.tested_set()[0].text
    (checkout / "constraints.txt").write_text("# head\nabsent-one==1.0\ntqdm==0.0.1\nrich==0.0.1\n")
    (result,) = health.tested_set()
    assert result.status == WARNING
    assert result.text.startswith("rich ") and "(tested 0.0.1), tqdm " in result.text
    (checkout / "constraints.txt").write_text("absent-one==1.0\n")
    assert health.tested_set()[0].status == OK


def test_requirements_of_an_installed_wheel(checkout):
    wanted, extras = health.requirements()
    assert any(text.startswith("torch") for text in wanted)
    assert "data" in extras


@pytest.mark.parametrize(("asked", "status"), [("1", OK), ("4000", WARNING), ("many", WARNING), (None, OK)])
def test_threads(monkeypatch, asked, status):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    (result,) = health.processor()
    assert result.status == status
    assert ("export OMP_NUM_THREADS=" in result.advice) == (status == WARNING)


def test_config():
    (result,) = health.config()
    assert result.status == OK and "the default command is right" in result.text


def test_disk(tmp_path):
    assert health.disk("output folder", tmp_path, "output_dir=PATH")[0].status in (OK, WARNING)
    (result,) = health.disk("output folder", tmp_path / "a" / "b", "output_dir=PATH")
    assert "made when it is needed" in result.text
    (tmp_path / "file").write_text("")
    (result,) = health.disk("output folder", tmp_path / "file" / "b", "output_dir=PATH")
    assert result.status == PROBLEM and "is no folder" in result.text
    assert result.advice == "Choose another one with output_dir=PATH"


@pytest.mark.parametrize(("free", "status"), [(1e8, PROBLEM), (1e9, WARNING), (1e11, OK)])
def test_room(tmp_path, monkeypatch, free, status):
    usage = health.shutil.disk_usage(tmp_path)._replace(free=int(free))
    monkeypatch.setattr(health.shutil, "disk_usage", lambda _: usage)
    assert health.disk("cache folder", tmp_path, "SAH_CACHE_DIR=PATH")[0].status == status


def test_the_embedded_model(tmp_path, monkeypatch):
    monkeypatch.setenv("SAH_CACHE_DIR", str(tmp_path))
    (result,) = health.embedded(load=False)
    assert (result.status, result.advice) == (WARNING, "Run: sah fetch llama")
    source = find_source("llama")
    source.folder.mkdir(parents=True)
    weights = source.folder / "model.safetensors"
    weights.write_bytes(b"weights")
    (result,) = health.embedded(load=False)
    assert result.status == PROBLEM and "manifest.json is missing" in result.text
    write_manifest(source.folder, {})
    assert health.embedded(load=False)[0].status == OK
    before = weights.stat()
    weights.write_bytes(b"Weights")
    import os

    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    (result,) = health.embedded(load=False)
    assert result.status == PROBLEM and "model.safetensors has another sha256" in result.text


def test_hub(monkeypatch, server):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert servers.hub()[0].text.startswith("not asked, since HF_HUB_OFFLINE is set")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", server)
    assert servers.hub()[0].status == OK, "an answer of any kind is one"
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    (result,) = servers.hub()
    assert result.status == WARNING and "http://127.0.0.1:9 cannot be reached" in result.text
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    assert "secret" not in str(servers.hub())


@pytest.mark.parametrize("mode", ["offline", "dryrun", "disabled"])
def test_wandb_told_by_the_environment(monkeypatch, mode):
    monkeypatch.setenv("WANDB_MODE", mode)
    (result,) = servers.wandb()
    assert result.status == OK
    assert result.text.startswith(f"mode {servers._MODES[mode]}, since WANDB_MODE={mode}")


def test_wandb_modes(monkeypatch, server, tmp_path):
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", server)
    import wandb

    wandb.teardown()  # it reads the environment once
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", "onlin")
    assert "WANDB_MODE=onlin is not known, and wandb does not start with it" in servers.wandb()[0].text
    monkeypatch.setenv("WANDB_MODE", "online")
    (result,) = servers.wandb()
    assert result.status == PROBLEM and "there is no key" in result.text
    monkeypatch.delenv("WANDB_MODE")
    assert servers.wandb()[0].text == f"mode offline, since no key for {server}"
    key = "0123456789" * 4
    monkeypatch.setenv("WANDB_API_KEY", key)
    (result,) = servers.wandb()
    assert result.text == f"mode online, since a key for {server} is configured; the server answers"
    monkeypatch.setenv("WANDB_API_KEY", "abc$def")
    (result,) = servers.wandb()
    assert result.status == WARNING and "cannot be right" in result.text and "abc$def" not in str(result)


def test_a_check_that_fails_stops_no_other_one():
    def breaks() -> list[Result]:
        raise KeyError("oops")

    def refuses() -> list[Result]:
        raise ModelError("No such thing.")

    assert guarded("x", breaks) == [Result("x", PROBLEM, "the check itself failed: KeyError: 'oops'")]
    assert guarded("x", refuses) == [Result("x", PROBLEM, "No such thing.")]


def test_a_server_that_never_answers_holds_nothing_up():
    begun = time.perf_counter()
    collect = doctor._begin({"slow": lambda: time.sleep(30), "quick": lambda: [Result("quick", OK, "there")]})
    late, quick = collect(0.2)
    assert time.perf_counter() - begun < 5
    assert (late.name, late.status, late.text) == ("slow", WARNING, "no answer within 0 s")
    assert quick == Result("quick", OK, "there")


@pytest.mark.parametrize(("status", "code"), [(OK, 0), (WARNING, 0), (PROBLEM, 1)])
def test_what_is_printed_and_the_exit_code(capsys, status, code):
    results = [Result("disk", status, "text\nmore", "Do this.")]
    assert doctor.tell(results) == code
    blank = " " * 14
    assert capsys.readouterr().out.startswith(f"{status:<8}disk  text\n{blank}more\n{blank}Do this.\n")
    assert doctor.tell(results, as_json=True) == code
    told = json.loads(capsys.readouterr().out)
    assert told["checks"] == [{"name": "disk", "status": status, "text": "text\nmore", "advice": "Do this."}]
    assert told["problems"] == code
