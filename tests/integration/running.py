"""Runs `python -m sah.run` in this process, on the tiny model, and reads what it left."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from hydra.core.global_hydra import GlobalHydra

from sah.results.rows import PredictionRow
from sah.results.store import StoredPoint, read_point

ROOT = Path(__file__).resolve().parents[2]
COMMON = {"model": "tiny", "tracker": "none", "generation.max_new_tokens": "4", "report": "false", "fidelity": "false"}
NIAH = {"dataset.length": "512", "dataset.num_examples": "2"}


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        """Everything printed, line breaks and repeated blanks made one blank, since rich wraps log lines."""
        return " ".join((self.out + "\n" + self.err).split())


def arguments(*given: str) -> list[str]:
    """Add the defaults of a short run to arguments, where they do not say something else."""
    keys = {argument.lstrip("+").partition("=")[0] for argument in given}
    jsonl = any(argument.startswith("dataset=jsonl") for argument in given)
    defaults = COMMON if jsonl else COMMON | NIAH
    return [*given, *(f"{key}={value}" for key, value in defaults.items() if key not in keys)]


def run(*given: str) -> Outcome:
    """Run the command in the working folder, in this process, short by default."""
    return run_exactly(*arguments(*given))


def run_exactly(*given: str) -> Outcome:
    """Run the command in the working folder, in this process, with these arguments and no others."""
    from sah.run import main

    return _call(main, given)


def plan(*given: str) -> Outcome:
    """Show the plan of a command, short by default."""
    from sah.plan import main

    return _call(main, arguments(*given))


def _call(main: Callable[[], None], given: Sequence[str]) -> Outcome:
    out, err = io.StringIO(), io.StringIO()
    GlobalHydra.instance().clear()
    code = 0
    with (
        _logging_kept(),
        mock.patch.object(sys, "argv", ["sah", *given]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return Outcome(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _logging_kept() -> Iterator[None]:
    handlers, level = logging.root.handlers[:], logging.root.level
    try:
        yield
    finally:
        for handler in logging.root.handlers:
            if handler not in handlers:
                handler.close()
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)


def stored(folder: Path = Path("outputs")) -> dict[str, StoredPoint]:
    """Read all points of an output folder, by id."""
    return {path.name: read_point(path) for path in sorted((folder / "points").glob("*"))}


def dense_of(folder: Path = Path("outputs")) -> StoredPoint:
    """Read the only dense point of an output folder."""
    (point,) = (point for point in stored(folder).values() if point.label == "dense")
    return point


def sparse_of(folder: Path = Path("outputs"), label: str | None = None) -> StoredPoint:
    """Read the only sparse point of an output folder, or the only one with a label."""
    (point,) = (point for point in stored(folder).values() if point.label == (label or point.label) != "dense")
    return point


def lines(point: StoredPoint) -> list[dict[str, Any]]:
    """Read a point's rows as they lie on disk, repeated keys included."""
    text = (point.folder / "predictions.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def outcomes(point: StoredPoint) -> dict[str, tuple[Any, ...]]:
    """Give what the model did in each row, without times."""
    return {key: outcome(row) for key, row in point.predictions.items()}


def outcome(row: PredictionRow) -> tuple[Any, ...]:
    """Give what the model did in a row, without times."""
    return (row.status, row.prediction, row.token_ids, row.density_measured, row.attention_calls, row.stop_reason)


def jobs(folder: Path = Path("outputs")) -> list[dict[str, Any]]:
    """Read the records of all jobs, in the order of their folders."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*/*/**/job.json"))]


def files_under(folder: Path) -> dict[str, str]:
    """Hash every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def write_rows(path: Path, *rows: dict[str, Any]) -> Path:
    """Write a JSON-lines file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
