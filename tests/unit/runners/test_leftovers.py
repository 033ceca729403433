"""What a killed run has left is taken over where it is what the new run would make."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from sah.config.experiment import Experiment
from sah.results.fidelity import FidelityRow
from sah.results.files import LineFile
from sah.results.rows import PredictionRow
from sah.runners.tasks import GroupSpec, Setting, row_name
from sah.runners.workers.leftovers import find_leftovers
from sah.runners.workers.messages import Answered, encode
from sah.runners.workers.shard import make_file
from tests.unit.config.conftest import build, composed

__all__ = ["build", "composed"]

RATES = {"a": 0.25, "b": 0.5}


def test_fidelity_with_another_share_of_queries_is_not_taken(build: Callable[..., Experiment], tmp_path: Path) -> None:
    experiment = build("model=tiny", "masker=topk", "density=0.1")
    settings = tuple(
        Setting(name, "topk", dataclasses.replace(experiment, attention_error=rate), False, 0.1)
        for name, rate in RATES.items()
    )
    spec = GroupSpec(settings, "group", "run", {})
    (tmp_path / "dead").mkdir()
    path = tmp_path / "dead" / "0.jsonl"
    make_file(path, spec)
    rows: list[PredictionRow | FidelityRow] = [
        PredictionRow(example_key="c", question_index=0, status="ok", prediction="an answer"),
        FidelityRow(example_key="c", question_index=0, status="ok", tokens=4, kl=0.1, attention_error=RATES["a"]),
        FidelityRow(example_key="c", question_index=1, status="ok", tokens=4, kl=0.1, attention_error=RATES["b"]),
    ]
    file = LineFile(path, path.stat().st_size, False)
    for setting in range(2):
        for row in rows:
            file.append(encode(Answered(setting, row)))
    file.close()
    found = find_leftovers(tmp_path, spec)
    found.release()
    answer, low, high = map(row_name, rows)
    assert found.rows.keys() == {("a", answer), ("a", low), ("b", answer), ("b", high)}
