"""The wheel: what it holds, that it works away from the checkout, and that it declares what it imports."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DISTRIBUTIONS = {"huggingface_hub": "huggingface-hub", "hydra": "hydra-core"}
"""Import names that differ from the name on the package index."""
EXTRAS = {
    "datasets": "data",
    "matplotlib": "plot",
    "plotly": "reports",
    "pyarrow": "data",
    "ray": "ray",
    "submitit": "slurm",
    "trackio": "trackio",
    "wandb_workspaces": "reports",
}
"""Imports that an extra brings; pyarrow comes with datasets."""


def call(*command: str | Path, cwd: Path, seconds: int = 120) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, without what this process has in its environment for Python."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the checkout with the build back end that is installed here."""
    source = tmp_path_factory.mktemp("source")
    for name in ("sah", "conf"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", ".gitignore"):
        shutil.copy(ROOT / name, source / name)
    done = call(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        "dist",
        ".",
        cwd=source,
    )
    assert done.returncode == 0, done.stderr
    (built,) = (source / "dist").glob("sah-*.whl")
    return built


def environment_python(folder: Path) -> Path:
    """Make a fresh virtual environment and return its Python."""
    venv.create(folder, with_pip=True)
    return folder / "bin" / "python"


def test_the_wheel_holds_the_package_and_conf_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {
        "sah",
        *(n.split("/")[0] for n in names if ".dist-info/" in n),
    }
    inside = {name.removeprefix("sah/conf/") for name in names if name.startswith("sah/conf/")}
    assert inside == {str(path.relative_to(ROOT / "conf")) for path in (ROOT / "conf").rglob("*") if path.is_file()}
    assets = {f"sah/report/assets/{path.name}" for path in (ROOT / "sah" / "report" / "assets").iterdir()}
    assert "sah/report/assets/index.html" in assets
    assert assets <= set(names)
    modules = {name for name in names if name.endswith(".py")}
    assert modules == {str(path.relative_to(ROOT)) for path in (ROOT / "sah").rglob("*.py")}


@pytest.mark.slow
def test_the_installed_wheel_composes_from_any_folder(wheel, tmp_path):
    """In an environment of its own that sees the dependencies installed here, but not this checkout."""
    python = environment_python(tmp_path / "venv")
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    for number, folder in enumerate(path for path in sys.path if path.endswith("site-packages")):
        # A path named in a .pth file inside that folder is not followed, so an editable install stays unseen.
        (site / f"dependencies_{number}.pth").write_text(f"{folder}\n", encoding="utf-8")
    done = call(python, "-m", "pip", "install", "--no-deps", "--no-index", "--force-reinstall", wheel, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for command in ([python.parent / "sah"], [python, "-m", "sah.run"]):
        composed = call(*command, "--cfg", "job", "masker=[sink,topk]", cwd=elsewhere)
        assert composed.returncode == 0, composed.stderr
        assert "heavy_size: null" in composed.stdout
    found = call(python, "-c", "from sah.config.paths import conf_dir; print(conf_dir())", cwd=elsewhere)
    assert found.stdout.strip() == str(site / "sah" / "conf")
    completion = call(python.parent / "sah", "-sc", "install=bash", cwd=elsewhere)
    assert completion.stdout.rstrip().endswith("hydra_bash_completion sah")


@pytest.mark.slow
def test_a_clean_environment_runs_the_smoke_preset(wheel, tmp_path):
    """With nothing but the wheel and what it declares, from the package index."""
    python = environment_python(tmp_path / "venv")
    done = call(python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", wheel, cwd=tmp_path, seconds=540)
    assert done.returncode == 0, done.stderr
    ran = call(python.parent / "sah", "+experiment=smoke", cwd=tmp_path, seconds=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert list((tmp_path / "outputs" / "points").iterdir())


def declared(requirements: list[str]) -> set[str]:
    """Names of the required distributions."""
    return {
        re.split(r"[\[<>=!~;, ]", requirement, maxsplit=1)[0].lower().replace("_", "-") for requirement in requirements
    }


def test_every_import_is_declared():
    core = declared(PROJECT["dependencies"])
    extras = {extra: declared(lines) for extra, lines in PROJECT["optional-dependencies"].items()}
    for path in (ROOT / "sah").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                names = [node.module]
            for name in {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"sah"}:
                if name in EXTRAS:
                    assert extras[EXTRAS[name]]
                else:
                    assert DISTRIBUTIONS.get(name, name) in core, f"{path} imports {name}, which is not declared"


def test_only_hydra_has_an_upper_bound():
    """Pins are for constraints.txt; they would clash with what else a user has installed."""
    bounded = [line for line in PROJECT["dependencies"] if re.search(r"<|==|~=", line)]
    assert bounded == ["hydra-core>=1.3.2,<1.4"]


def test_every_dependency_is_in_the_tested_set():
    pinned = declared((ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines())
    wanted = declared(PROJECT["dependencies"]).union(
        *(declared(lines) for lines in PROJECT["optional-dependencies"].values())
    )
    assert wanted - {"sah"} <= pinned
