"""Makes an output folder with a sweep of invented numbers, through the classes that write real ones.

For measuring and testing the report alone: scores follow a formula of the density, answers are drawn from a word list.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sah.metrics.aggregate import compare, scored_rows, summarise
from sah.report.records import JOB_FILE
from sah.results.files import replace_json
from sah.results.provenance import collect
from sah.results.rows import PredictionRow, ScoreRow, json_line
from sah.results.store import PREDICTIONS_FILE, PointStore

HOSTILE = '</script><script>window.stolen = 1</script><img src=x onerror="window.stolen = 1"> {{ 7 * 7 }} \u2028 "\\'
"""Part of some answers: what a page must show as text."""
METRIC = "string_match_all"
_WORDS = ("the", "magic", "number", "for", "river", "stone", "is", "mentioned", "in", "text", "a", "green", "sky", "go")
_METHODS = ("topk", "quest", "double_sparsity", "sink+local+magicpig", "random")
LAYERS, HEADS = 6, 4


@dataclass(frozen=True)
class Sweep:
    """What to invent. Points are methods x values x densities x lengths, besides one dense point a length."""

    methods: int = 5
    values: int = 1
    """Values of an override that each method is tried with."""
    densities: Sequence[float] = (0.02, 0.05, 0.1, 0.2)
    lengths: Sequence[int] = (1024, 4096)
    contexts: int = 16
    questions: int = 1
    """Questions a context."""
    hostile: bool = True
    """Whether some answers hold `HOSTILE`."""

    @property
    def points(self) -> int:
        """Sparse points."""
        return self.methods * self.values * len(self.densities) * len(self.lengths)


def make_sweep(root: Path, sweep: Sweep) -> Path:
    """Write the points of a sweep and its job folders.

    Args:
        root: The output folder.
        sweep: What to invent.

    Returns:
        The sweep's folder.
    """
    folder = root / "sweeps" / "2026-01-01" / "00-00-00"
    job = 0
    for length in sweep.lengths:
        rows = [
            _dense_row(length, number, question, sweep)
            for number in range(sweep.contexts)
            for question in range(sweep.questions)
        ]
        dense_id, dense_scored = _write_dense(root, length, rows)
        for method in range(sweep.methods):
            for value in range(sweep.values):
                for density in sweep.densities:
                    record = _write_sparse(root, length, method, value, density, rows, dense_id, dense_scored, sweep)
                    (folder / str(job)).mkdir(parents=True, exist_ok=True)
                    replace_json(folder / str(job) / JOB_FILE, record)
                    job += 1
    return folder


def _dense_row(length: int, number: int, question: int, sweep: Sweep) -> PredictionRow:
    depth = round(number / max(1, sweep.contexts - 1), 3)
    needle = f"{random.Random(f'{length} {number} {question}').randrange(10**6, 10**7)}"
    return PredictionRow(
        example_key=f"{length:08x}{number:08x}",
        question_index=question,
        status="ok",
        prediction=f" {needle}. {_words(f'dense {length} {number}', 12)}",
        token_ids=tuple(range(12)),
        answers=(needle,),
        answer_prefix=" The number is",
        num_answer_tokens=12,
        decode_steps=11,
        attention_calls=0,
        prefill_seconds=1.5 * length / 1024,
        prefill_reused=False,
        attention_seconds=0.05,
        run="one",
        stop_reason="eos",
        metadata={"index": number, "depth": depth, "length": length, "needles": [{"key": "river", "depth": depth}]},
    )


def _identity(length: int, recipe: Any) -> dict[str, Any]:
    dataset = {"name": "niah", "task": "single", "length": length, "depths": [0.0, 1.0]}
    return {
        "model": {"checkpoint": "invented"},
        "dataset": dataset,
        "generation": {"max_new_tokens": 16},
        "recipe": recipe,
    }


def _write_dense(
    root: Path, length: int, rows: Sequence[PredictionRow]
) -> tuple[str, Mapping[str, Mapping[str, float]]]:
    scores = {row.key: {METRIC: 1.0 if index % 9 else 0.0} for index, row in enumerate(rows)}
    store = PointStore(root, _identity(length, "dense"), "dense", {"model": {"label": "invented-model"}})
    arm = summarise(scored_rows(rows, scores)) | {"decode_kv_bytes": 1024.0 * length}
    _write(store, rows, scores, {"metrics": [METRIC], "label": "dense", "dense": arm}, ["masker=dense"])
    return store.id, scores


def _write_sparse(
    root: Path, length: int, method: int, value: int, density: float, dense: Sequence[PredictionRow], dense_id: str,
    dense_scores: Mapping[str, Mapping[str, float]], sweep: Sweep,
) -> dict[str, Any]:  # fmt: skip
    label = _METHODS[method % len(_METHODS)]
    overrides = [f"masker={label}", f"masker.{label}.value={value}", f"density={density}", f"dataset.length={length}"]
    dice = random.Random(" ".join(overrides))
    quality = 1 / (1 + math.exp(-(math.log10(density) + 1.6 - 0.25 * method + 0.05 * value) * 5))
    rows, scores = [], {}
    for index, row in enumerate(dense):
        right = dice.random() < quality and dense_scores[row.key][METRIC] == 1.0
        text = row.prediction if right else f" {_words(f'{overrides} {index}', 10)}"
        rows.append(
            PredictionRow(
                example_key=row.example_key, question_index=row.question_index, status="ok",
                prediction=f"{text} {HOSTILE}" if sweep.hostile and index % 5 == 1 else text,
                token_ids=row.token_ids, answers=row.answers, answer_prefix=row.answer_prefix, num_answer_tokens=12,
                decode_steps=11, density_requested=density, density_measured=density * 1.01, attention_calls=60,
                prefill_seconds=row.prefill_seconds, prefill_reused=True, attention_seconds=0.03 + density / 20,
                selection_seconds=0.01 * (method + 1), run="one", stop_reason="length", metadata=row.metadata,
            )
        )  # fmt: skip
        scores[rows[-1].key] = {METRIC: 1.0 if right else 0.0}
    identity = _identity(length, [{"masker": label, "value": value, "density": density}])
    store = PointStore(root, identity, label, {"model": {"label": "invented-model"}})
    arms = scored_rows(dense, dense_scores), scored_rows(rows, scores)
    divergence = (1 - quality) * 0.4
    metrics = {
        "metrics": [METRIC],
        "label": label,
        "dense": summarise(arms[0]) | {"decode_kv_bytes": 1024.0 * length},
        "density_requested": density,
        "phases": ["question", "decode"],
        "dense_layers": "",
        "dense_point": dense_id,
        "sparse": summarise(arms[1])
        | {
            "decode_kv_bytes": 1024.0 * length * density * (1 + 0.2 * method),
            "fidelity": {
                "questions": len(rows),
                "tokens": 12 * len(rows),
                "kl": {"mean": divergence, "low": divergence * 0.8, "high": divergence * 1.3},
                "top1_agreement": {"mean": quality, "low": quality * 0.95, "high": min(1.0, quality * 1.05)},
            },
            "attention_by_head": _heads(dice, 1 - quality, density),
        },
        "comparison": compare(*arms),
    }
    _write(store, rows, scores, metrics, overrides)
    return {
        "status": "ok", "overrides": overrides, "point": store.id, "folder": str(store.folder.resolve()),
        "examples": "all", "questions": [row.key for row in rows], "label": label, "metrics": metrics,
    }  # fmt: skip


def _heads(dice: random.Random, error: float, density: float) -> dict[str, Any]:
    def grid(centre: float) -> list[list[float]]:
        return [[round(centre * dice.uniform(0.5, 1.5), 4) for _ in range(HEADS)] for _ in range(LAYERS)]

    layers = list(range(LAYERS))
    return {
        "rate": 0.1, "layers": layers, "rows": [4] * LAYERS, "output_error": grid(error), "mass_recalled": grid(0.6),
        "density": grid(density),
    }  # fmt: skip


def _write(
    store: PointStore, rows: Sequence[PredictionRow], scores: Mapping[str, Mapping[str, float]],
    metrics: Mapping[str, Any], overrides: Sequence[str],
) -> None:  # fmt: skip
    with store.writer():
        store.write_scores(
            ScoreRow(example_key=r.example_key, question_index=r.question_index, status="ok", scores=scores[r.key])
            for r in rows
        )
        store.write_metrics(metrics)
        store.add_provenance(collect(overrides=overrides, seed=0, checkpoint_hash="invented"))
    # The store makes every row safe by itself, which takes minutes for fifty thousand.
    (store.folder / PREDICTIONS_FILE).write_bytes(b"".join(json_line(row.to_json()) for row in rows))


def _words(seed: str, count: int) -> str:
    return " ".join(random.Random(seed).choices(_WORDS, k=count))
