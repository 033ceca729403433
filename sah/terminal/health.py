"""Checks of this machine and installation for `sah doctor`."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

import sah
from sah import fetching
from sah.errors import SahError
from sah.results.provenance import git_state, hardware, package_version
from sah.terminal.screen import shortened

OK = "ok"
WARNING = "warning"
PROBLEM = "problem"

_OLDEST_PYTHON = (3, 11)
_ROOT = Path(sah.__file__).resolve().parents[1]
_SHOWN_VERSIONS = ("torch", "transformers", "hydra-core", "omegaconf", "numpy", "wandb")
_MOST_DRIFTED = 8
_FEW_BYTES = 2e9
_NO_BYTES = 2e8
_MODEL = "llama"
_TEST_EXTRA = "test"


@dataclass(frozen=True)
class Result:
    """What one check found."""

    name: str
    status: str
    """`ok`, `warning` or `problem`."""

    text: str
    advice: str = ""
    """What to do; empty where nothing needs to be done."""


Check = Callable[[], "Iterable[Result]"]


def guarded(name: str, check: Check) -> list[Result]:
    """Run a check; if it fails itself, that is a problem of its name.

    Args:
        name: Of the check.
        check: The check.

    Returns:
        Its results.
    """
    try:
        return list(check())
    except SahError as error:
        return [Result(name, PROBLEM, str(error))]
    except Exception as error:
        told = shortened(f"{type(error).__name__}: {error}", 300)
        return [Result(name, PROBLEM, f"the check itself failed: {told}")]


def python() -> list[Result]:
    """Check the interpreter."""
    text = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info[:2] < _OLDEST_PYTHON:
        return [Result("python", PROBLEM, text, "sah needs Python 3.11 or newer: make a new environment with it.")]
    return [Result("python", OK, text)]


def code() -> list[Result]:
    """Tell which code runs."""
    state = git_state(Path(sah.__file__).parent)
    text = f"{package_version('sah') or sah.__version__} in {_ROOT}"
    if state is None:
        return [Result("sah", OK, f"{text}, no git checkout")]
    commit = (state["commit"] or "before the first commit")[:12]
    return [Result("sah", OK, f"{text}, commit {commit}{', with changes' if state['dirty'] else ''}")]


def packages() -> list[Result]:
    """Check that everything that sah needs is installed in versions that it takes."""
    wanted, _ = requirements()
    missing, old = _unmet(wanted)
    if missing or old:
        told = [*(f"{name} is missing" for name in missing), *old]
        constraints = "-c constraints.txt " if (_ROOT / "constraints.txt").is_file() else ""
        quoted = " ".join(f"'{text}'" for text in wanted if _name(text) in {*missing, *(o.split()[0] for o in old)})
        return [Result("packages", PROBLEM, ", ".join(told), f"Run: pip install {constraints}{quoted}")]
    shown = ", ".join(f"{name} {package_version(name)}" for name in _SHOWN_VERSIONS)
    return [Result("packages", OK, f"{shown}; all {len(wanted)} that sah needs are there")]


def tested_set() -> list[Result]:
    """Compare what is installed with the versions that were tested."""
    path = _ROOT / "constraints.txt"
    if not path.is_file():
        return [Result("tested set", OK, "not compared: constraints.txt comes with a checkout")]
    tested = dict(
        line.split("==", 1)
        for line in map(str.strip, path.read_text(encoding="utf-8").splitlines())
        if "==" in line and not line.startswith("#")
    )
    wanted, extra = requirements()
    direct = {_name(text) for text in (*wanted, *(t for texts in extra.values() for t in texts))}
    drifted = [
        (_canonical(name) not in direct, f"{name} {found} (tested {version})")
        for name, version in tested.items()
        if (found := package_version(name)) is not None and found.partition("+")[0] != version.partition("+")[0]
    ]
    if not drifted:
        return [Result("tested set", OK, "what is installed has the versions of constraints.txt")]
    told = [text for _, text in sorted(drifted)]
    more = f" and {len(told) - _MOST_DRIFTED} more" if len(told) > _MOST_DRIFTED else ""
    advice = "Results may differ in small ways. For the tested set: pip install -c constraints.txt -e ."
    return [Result("tested set", WARNING, ", ".join(told[:_MOST_DRIFTED]) + more, advice)]


def extras() -> list[Result]:
    """Tell which optional parts are installed."""
    results = []
    for name, wanted in sorted(requirements()[1].items()):
        if name == _TEST_EXTRA:
            continue
        missing, old = _unmet(wanted)
        if missing or old:
            told = ", ".join([*(f"{package} not installed" for package in missing), *old])
            status = WARNING if old else OK  # parts that nobody asked for may be absent
            results.append(Result(f"extra {name}", status, told, f"To use it: pip install 'sah[{name}]'"))
        else:
            told = ", ".join(f"{_name(text)} {package_version(_name(text))}" for text in wanted)
            results.append(Result(f"extra {name}", OK, told))
    return results


def config() -> list[Result]:
    """Check that the default command composes."""
    from sah.config.paths import conf_dir
    from sah.terminal.checked import check_command

    checked = check_command([])
    if checked.mistakes:
        return [Result("config", PROBLEM, "\n".join(checked.mistakes), f"Mend or reinstall {conf_dir()}")]
    return [Result("config", OK, f"{conf_dir()}, the default command is right")]


def processor() -> list[Result]:
    """Tell cores, memory and threads."""
    known = hardware()
    usable = known["cores_usable"] or 1
    memory = known["memory_gib"]
    text = f"{usable} of {known['cores']} cores usable"
    text += f", {memory} GiB of memory" if memory is not None else ""
    asked = os.environ.get("OMP_NUM_THREADS")
    text += f"; sah uses threads=1 unless told otherwise, OMP_NUM_THREADS is {asked or 'not set'}"
    if asked is not None and (not asked.isdigit() or not 0 < int(asked) <= usable):
        advice = f"More threads than cores slow everything down: export OMP_NUM_THREADS={usable}"
        return [Result("processor", WARNING, text, advice)]
    return [Result("processor", OK, text)]


def device() -> list[Result]:
    """Tell where models run without a `device_map`."""
    try:
        import torch
    except Exception as error:  # broken builds raise other errors than ImportError
        told = shortened(str(error), 300)
        return [
            Result("device", PROBLEM, f"torch cannot be imported: {told}", "Run: pip install -c constraints.txt torch")
        ]
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
        return [Result("device", OK, f"cuda: {names}")]
    if torch.backends.mps.is_available():
        return [Result("device", OK, "mps")]
    return [Result("device", OK, "cpu; torch sees no GPU")]


def disk(name: str, folder: Path, other: str) -> list[Result]:
    """Check that a folder can be written and has room.

    Args:
        name: What it is for.
        folder: The folder; it need not exist yet.
        other: How to choose another one.

    Returns:
        One result.
    """
    there = folder.expanduser().absolute()
    while not there.exists():
        there = there.parent
    told = str(folder.absolute()) + ("" if there == folder.expanduser().absolute() else ", made when it is needed")
    if not there.is_dir():
        return [Result(name, PROBLEM, f"{told}: {there} is no folder", f"Choose another one with {other}")]
    if not os.access(there, os.W_OK | os.X_OK):
        return [Result(name, PROBLEM, f"{told}: {there} cannot be written", f"Choose another one with {other}")]
    free = shutil.disk_usage(there).free
    text = f"{told}: {free / 1e9:.1f} GB free"
    if free < _NO_BYTES:
        return [Result(name, PROBLEM, text, f"Free some, or choose another disk with {other}")]
    if free < _FEW_BYTES:
        return [
            Result(name, WARNING, text, f"Rows are small, but prefilled contexts and models are not; or use {other}")
        ]
    return [Result(name, OK, text)]


def cache_folder() -> list[Result]:
    """Check the folder of fetched models and data."""
    return disk("cache folder", fetching.cache_dir(), f"{fetching.CACHE_VARIABLE}=PATH")


def embedded(*, load: bool) -> list[Result]:
    """Check the default model: fetched, every file as it was written, and able to answer.

    Args:
        load: Whether to let it answer.

    Returns:
        One result.
    """
    from sah.adapters.sources import find_source
    from sah.adapters.sources.base import damaged_file

    name = "embedded model"
    source = find_source(_MODEL)
    if source is None:
        return [Result(name, PROBLEM, f"model={_MODEL} is not known", "Reinstall sah.")]
    if not source.folder.is_dir():
        return [Result(name, WARNING, f"{source.name} is not fetched yet (93 MB)", f"Run: sah fetch {_MODEL}")]
    damaged = damaged_file(source.folder)
    if damaged:
        text = f"{source.folder} is damaged: {damaged}"
        return [Result(name, PROBLEM, text, f"Run: sah fetch {_MODEL}, which makes it again")]
    if not load:
        return [Result(name, OK, f"{source.name}, checksums right, not loaded")]
    from sah.adapters import Request, create_adapter

    adapter = create_adapter(source.name)
    answer = adapter.process_request(Request("The sky is blue.", "\nWhich colour is the sky?", max_new_tokens=4))
    return [Result(name, OK, f"{source.name}, checksums right, loads and answers {str(answer.responses).strip()!r}")]


@cache
def requirements() -> tuple[list[str], dict[str, list[str]]]:
    """Read what sah needs, and its extras need: from pyproject.toml in a checkout, else from what pip installed."""
    path = _ROOT / "pyproject.toml"
    if path.is_file():
        project = tomllib.loads(path.read_text(encoding="utf-8")).get("project", {})
        if project.get("name") == "sah":
            optional: Mapping[str, list[str]] = project.get("optional-dependencies", {})
            return list(project["dependencies"]), {name: _others(texts) for name, texts in optional.items()}
    wanted: list[str] = []
    extra: dict[str, list[str]] = {}
    for text in metadata.requires("sah") or []:
        requirement, _, marker = text.partition(";")
        if "extra ==" in marker:
            extra.setdefault(marker.split("extra ==")[1].strip(" '\"()"), []).append(requirement.strip())
        else:
            wanted.append(requirement.strip())
    return wanted, {name: _others(texts) for name, texts in extra.items()}


def _others(texts: Iterable[str]) -> list[str]:
    """Leave out what an extra says of sah's other extras."""
    return [text for text in texts if _name(text) != "sah"]


def _unmet(wanted: Iterable[str]) -> tuple[list[str], list[str]]:
    """Find requirements that are missing, and in words those of which another version is installed."""
    from packaging.requirements import Requirement

    missing, other = [], []
    for text in wanted:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        found = package_version(requirement.name)
        if found is None:
            missing.append(_canonical(requirement.name))
        elif not requirement.specifier.contains(found, prereleases=True):
            other.append(f"{_canonical(requirement.name)} {found} is installed, {requirement.specifier} is needed")
    return missing, other


def _name(text: str) -> str:
    from packaging.requirements import Requirement

    return _canonical(Requirement(text).name)


def _canonical(name: str) -> str:
    return name.lower().replace("_", "-")
