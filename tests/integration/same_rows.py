"""Compares what two output folders hold: the same rows but for times, none lost, none twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sah.results.rows import PredictionRow
from sah.results.store import StoredPoint
from tests.integration.running import lines, stored

CLOSE = ("density_measured", "density_by_phase", "output_error")
"""Sums over heads and queries, whose last bits depend on what else was in the batch."""

OTHER = ("run", "prefill_reused")
"""What belongs to the run and not to the answer; so do the times, which end in `_seconds`."""


def check_same_rows(expected: Path, folder: Path) -> None:
    """Fail unless the points of two output folders hold the same rows, each once, and the same scores."""
    before, after = stored(expected), stored(folder)
    assert before.keys() == after.keys()
    for name, point in before.items():
        written = [f"{row['example_key']}:{row['question_index']}" for row in lines(after[name])]
        assert len(written) == len(set(written)), f"{point.label} holds rows twice"
        assert set(written) == set(point.predictions), f"{point.label} lacks rows or has strange ones"
        for key, row in point.predictions.items():
            exact, close = parts(row)
            exact_after, close_after = parts(after[name].predictions[key])
            assert exact_after == exact, f"{point.label}, row {key}"
            assert close_after == pytest.approx(close, abs=1e-6), f"{point.label}, row {key}"
        assert after[name].scores == point.scores
        check_same_fidelity(point, after[name])


def check_same_fidelity(expected: StoredPoint, found: StoredPoint) -> None:
    """Fail unless two points hold the same rows of `fidelity.jsonl`, each once."""
    path = found.folder / "fidelity.jsonl"
    written = path.read_bytes().count(b"\n") if path.exists() else 0
    assert written == len(found.fidelity), f"{found.label} holds rows of fidelity twice"
    assert found.fidelity.keys() == expected.fidelity.keys()
    for key, row in expected.fidelity.items():
        other = found.fidelity[key]
        assert (other.status, other.tokens, other.calls_by_layer) == (row.status, row.tokens, row.calls_by_layer)
        for name in ("kl", "top1_agreement", "log_likelihood", "dense_log_likelihood"):
            assert getattr(other, name) == pytest.approx(getattr(row, name), abs=1e-3), (
                f"{found.label}, row {key}: {name}"
            )
        assert {layer: errors.queries for layer, errors in other.layers.items()} == {
            layer: errors.queries for layer, errors in row.layers.items()
        }


def parts(row: PredictionRow) -> tuple[dict[str, Any], dict[str, float]]:
    """Split a row into what must be equal and what must be close; times are left out."""
    exact: dict[str, Any] = {}
    close: dict[str, float] = {}
    for name, value in row.to_json().items():
        if name in CLOSE:
            values = value if isinstance(value, dict) else {"": value}
            close |= {f"{name}.{part}": number for part, number in values.items() if number is not None}
            exact[name] = sorted(part for part, number in values.items() if number is None)
        elif name not in OTHER and not name.endswith("_seconds"):
            exact[name] = value
    return exact, close
