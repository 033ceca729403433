"""The rooms of the package: who may import whom, what stays light, and how large a module may grow."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted((ROOT / "sah").rglob("*.py"))
MOST_LINES = 450
HEAVY = {
    "accelerate",
    "datasets",
    "gguf",
    "matplotlib",
    "numpy",
    "plotly",
    "scipy",
    "torch",
    "trackio",
    "transformers",
    "wandb",
    "wandb_workspaces",
    "wonderwords",
}

FOUNDATION = {"sah.errors", "sah.config.base", "sah.config.lookup", "sah.config.values", "sah.config.model"}
"""What every room may import."""

MAY_IMPORT: dict[str, set[str]] = {
    "sah": set(),
    "sah.errors": set(),
    "sah.fetching": set(),
    "sah.console": set(),
    "sah.config": {"sah.data", "sah.sparse_attention", "sah.tracking"},
    "sah.sparse_attention": set(),
    "sah.adapters": {"sah.sparse_attention", "sah.fetching"},
    "sah.data": {"sah.fetching"},
    "sah.metrics": set(),
    "sah.results": set(),
    "sah.tracking": set(),
    "sah.report": {"sah.console", "sah.metrics", "sah.results", "sah.tracking"},
    "sah.runners": {
        "sah.adapters",
        "sah.config",
        "sah.console",
        "sah.data",
        "sah.metrics",
        "sah.report",
        "sah.results",
        "sah.sparse_attention",
        "sah.tracking",
    },
    "sah.terminal": {
        "sah.adapters",
        "sah.config",
        "sah.console",
        "sah.fetching",
        "sah.metrics",
        "sah.report",
        "sah.results",
        "sah.runners",
        "sah.tracking",
    },
    "sah.cli": {
        "sah.adapters",
        "sah.console",
        "sah.convert_hash",
        "sah.data",
        "sah.plan",
        "sah.report",
        "sah.run",
        "sah.terminal",
        "sah.train_hash",
    },
    "sah.run": {"sah.config", "sah.console", "sah.runners"},
    "sah.plan": {"sah.run", "sah.runners"},
    "sah.convert_hash": {"sah.adapters", "sah.console"},
    "sah.train_hash": {"sah.adapters", "sah.config", "sah.console", "sah.sparse_attention"},
}
"""Room to the rooms it may import, besides itself and the foundation. A new room is entered here."""

LIGHT = (
    "sah",
    "sah.run",
    "sah.plan",
    "sah.cli",
    "sah.config.register",
    "sah.config.build",
    "sah.config.compose",
    "sah.config.experiment",
    "sah.runners.launcher",
    "sah.runners.sweeper",
)
"""Modules on the way to a composed config."""


def module_name(path: Path) -> str:
    """Dotted name of a module's file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {module_name(path): path for path in MODULES}


def room(name: str) -> str:
    """The room a module belongs to: a package or module right below `sah`."""
    return ".".join(name.split(".")[:2])


@cache
def tree(path: Path) -> ast.Module:
    """The parsed module."""
    return ast.parse(path.read_text(encoding="utf-8"))


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def _nodes(node: ast.AST, *, lazy: bool) -> Iterator[ast.AST]:
    """All nodes that run; without `lazy` only those that run on import."""
    for child in ast.iter_child_nodes(node):
        if _is_type_checking(child):
            continue
        if not lazy and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        yield child
        yield from _nodes(child, lazy=lazy)


@cache
def imports(name: str, *, lazy: bool) -> frozenset[str]:
    """Dotted names that a module imports; modules of sah itself as deep as they are named."""
    found = set()
    for node in _nodes(tree(NAMES[name]), lazy=lazy):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                deeper = f"{node.module}.{alias.name}"
                found.add(deeper if deeper in NAMES else node.module)
    return frozenset(found)


@pytest.mark.parametrize("name", NAMES)
def test_imports_run_downwards(name):
    allowed = MAY_IMPORT.get(room(name))
    assert allowed is not None, f"{room(name)} is a new room: enter it in MAY_IMPORT"
    for imported in imports(name, lazy=True):
        if imported.split(".")[0] == "sah" and imported not in {"sah", *FOUNDATION}:
            assert room(imported) in allowed | {room(name)}, f"{name} may not import {imported}"


def test_the_foundation_rests_on_nothing_above_it():
    for name in FOUNDATION:
        assert {i for i in imports(name, lazy=True) if i.split(".")[0] == "sah"} <= FOUNDATION


def test_no_circles():
    graph = {name: {i for i in imports(name, lazy=False) if i in NAMES and i != name} for name in NAMES}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, "circle: " + " > ".join((*trail, name))
        if name not in done:
            for imported in graph[name]:
                visit(imported, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("name", [n for n in NAMES if n.endswith(("config", "discovery")) or room(n) == "sah.config"])
def test_config_modules_import_nothing_heavy(name):
    assert not {imported.split(".")[0] for imported in imports(name, lazy=False)} & HEAVY


def test_composing_imports_nothing_heavy():
    code = (
        f"import sys\nfor name in {LIGHT!r}: __import__(name)\n"
        "from sah.config.register import register_configs\nregister_configs()\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_house_rules(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MOST_LINES
    for node in ast.walk(tree(path)):
        assert not isinstance(node, ast.Assert), f"line {node.lineno}: raise an error instead of assert"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"print", "eval", "exec"}, f"line {node.lineno}: {node.func.id}"
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: import by the full name"
