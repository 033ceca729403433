"""Finished work on disk with given scores: written by the store, aggregated as runs do it, without a model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sah.metrics.aggregate import ScoredRow, compare, summarise
from sah.metrics.compare import MARGIN
from sah.results.rows import PredictionRow, ScoreRow
from sah.results.store import PointStore

METRIC = "string_match_all"
RIGHT, WRONG = "4116001", "11"


@dataclass(frozen=True)
class Work:
    """Where points and sweeps are written."""

    root: Path

    def dense(self, scores: Sequence[float], **options: Any) -> str:
        """Write a dense point with a score for each question; gives its id."""
        store, rows = self._write("dense", None, scores, options)
        metrics = {"metrics": [METRIC], "label": "dense", "dense": summarise(rows)}
        self._finish(store, metrics, ["masker=dense"])
        return store.id

    def sparse(
        self,
        label: str,
        density: float,
        scores: Sequence[float],
        dense: Sequence[float],
        sparse: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> str:
        """Write a sparse point and its dense arm; gives its id.

        Args:
            label: Its recipe.
            density: Requested, and measured.
            scores: One for each question.
            dense: Those of the dense arm.
            sparse: Further figures of the sparse arm, such as `fidelity`.
            options: What else the identity holds: `length`, `model`, `metric`, `prefill` (a sparse one, as names say
                it); and the `margin` of the comparison.
        """
        margin = options.pop("margin", MARGIN)
        dense_id = self.dense(dense, **options)
        store, rows = self._write(label, density, scores, options)
        _, dense_rows = self._write("dense", None, dense, options)
        metric = options.get("metric", METRIC)
        metrics = {
            "metrics": [metric],
            "label": label,
            "density_requested": density,
            "phases": options.get("phases", ["question", "decode"]),
            "dense_layers": "",
            "dense_point": dense_id,
            "dense": summarise(dense_rows),
            "sparse": {**summarise(rows), "decode_kv_bytes": 1000.0 * density, **(sparse or {})},
            "comparison": compare(dense_rows, rows, margin),
        }
        if "prefill" in options:
            metrics["prefill"] = options["prefill"]
        phases = [f"phases=[{','.join(options['phases'])}]"] if "phases" in options else []
        self._finish(store, metrics, [f"masker={label}", f"density={density:g}", *phases, *_prefill(options)])
        return store.id

    def sweep(self, name: str, ids: Sequence[str], failed: Sequence[tuple[str, str]] = ()) -> Path:
        """Write the folder of a sweep over points that are there, and of jobs that failed (override, error)."""
        folder = self.root / "sweeps" / name
        for number, identity in enumerate(ids):
            stored = json.loads((self.root / "points" / identity / "point.json").read_text())
            runs = json.loads((self.root / "points" / identity / "provenance.json").read_text())["runs"]
            record = {
                "status": "ok",
                "overrides": runs[-1]["overrides"],
                "point": identity,
                "folder": str(self.root / "points" / identity),
                "examples": "",
                "label": stored["label"],
                "metrics": json.loads((self.root / "points" / identity / "metrics.json").read_text()),
            }
            self._job(folder, number, record)
        for number, (override, error) in enumerate(failed, start=len(ids)):
            self._job(folder, number, {"status": "failed", "overrides": [override], "error": error})
        return folder

    @staticmethod
    def _job(folder: Path, number: int, record: Mapping[str, Any]) -> None:
        (folder / str(number)).mkdir(parents=True)
        (folder / str(number) / "job.json").write_text(json.dumps(record))

    def _write(
        self, label: str, density: float | None, scores: Sequence[float], options: Mapping[str, Any]
    ) -> tuple[PointStore, list[ScoredRow]]:
        length, metric = options.get("length", 512), options.get("metric", METRIC)
        recipe: list[Any] = [] if density is None else [{"masker": label, "density": density}]
        if recipe and "phases" in options:
            recipe += options["phases"]
        identity = {
            "model": {"checkpoint": options.get("model", "tiny:llama")},
            "dataset": {"name": "niah", "length": length},
            "generation": {"max_new_tokens": 8},
            "recipe": recipe,
        }
        if density is not None and "prefill" in options:
            identity["prefill"] = options["prefill"]
        config = {"model": {"name": options.get("model", "tiny:llama")}}
        store = PointStore(self.root, identity, label, config)
        rows = [
            PredictionRow(
                example_key=f"{length:04d}{place:04d}",
                question_index=0,
                status="ok",
                prediction=RIGHT if score == 1 else WRONG,
                answers=(RIGHT,),
                density_measured=density,
                attention_calls=0 if density is None else 6,
                metadata={"task": "single", "length": length, "depth": place / max(len(scores) - 1, 1)},
            )
            for place, score in enumerate(scores)
        ]
        scored = [ScoredRow(row, {metric: score}) for row, score in zip(rows, scores, strict=True)]
        with store.writer():
            if not store.load():
                for row in rows:
                    store.append(row)
            store.write_scores(
                ScoreRow(example_key=s.row.example_key, question_index=0, status="ok", scores=s.scores) for s in scored
            )
        return store, scored

    @staticmethod
    def _finish(store: PointStore, metrics: Mapping[str, Any], overrides: Sequence[str]) -> None:
        with store.writer():
            store.write_metrics(metrics)
            store.add_provenance({"overrides": list(overrides), "git": {"commit": "0123456789abcdef", "dirty": False}})


def _prefill(options: Mapping[str, Any]) -> list[str]:
    """Override of a sparse prefill, `block_topk 0.1`."""
    name, _, density = str(options.get("prefill", "")).partition(" ")
    return [f"prefill={name}", f"prefill.density={density}"] if name else []
