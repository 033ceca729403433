"""The timed run of a point: what its first examples take to decode, apart from its rows."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from sah.adapters.timing import TIMED_ROUNDS, TIMED_TOKENS, time_decoding
from sah.errors import ModelError, SahError
from sah.metrics.aggregate import mean
from sah.report.timing import timed_point
from sah.results.rows import row_key
from sah.results.store import TIMING_FILE
from sah.runners.group import DENSE_WAIT_SECONDS
from sah.runners.point import Point
from sah.runners.session import Session
from sah.runners.tasks import looks_at_prefill

_log = logging.getLogger(__name__)

TIMED_EXAMPLES = 2
"""Examples whose first question is timed."""

SPARSE = "sparse"
"""Name of the point's own arm in `timing.json`, beside `own` and `grouped`; a point without maskers has none."""


def time_point(point: Point, run: str, session: Session, provenance: Mapping[str, Any]) -> None:
    """Time the decoding of the first examples that have an answer, and write `timing.json`. Rows are not touched.

    Args:
        point: A point that has run.
        run: Id of this run.
        session: Caches of the process.
        provenance: What is known of this run; noted if no row has made it so.

    Raises:
        ModelError: If decoding fails, or cannot be timed.
        StateError: If the file cannot be written.
    """
    arm, model = point.main, point.model.adapter
    answered = {e.key: e for e in point.examples if row_key(e.key, 0) in arm.done}
    if not answered:
        _log.warning("Nothing is timed, since no first question of an example has an answer.")
        return
    chosen = list(answered.values())[:TIMED_EXAMPLES]
    _log.info("Timing the decoding of %d example%s.", len(chosen), "" if len(chosen) == 1 else "s")
    # Dense decoding behind a sparse prefill is one of the dense arms, over that prefill's cache.
    sparse = None if point.sparse is None or not point.experiment.maskers else point.sparse.adapter
    arms = {} if sparse is None else {SPARSE: sparse}
    observers = [sparse] if sparse is not None and looks_at_prefill(point.experiment) else []
    entries: list[dict[str, Any]] = []
    for example in chosen:
        question = example.questions[0]
        try:
            cache, _ = session.contexts.get(
                point.context_group, example.context, model.prefill, point.experiment.prefill, observers
            )
            timed = time_decoding(
                model,
                arms,
                cache,
                question.text,
                answer_prefix=question.answer_prefix,
            )
        except RuntimeError as error:
            if isinstance(error, SahError):
                raise
            raise ModelError(f"The timed run failed: {error}. All answers are kept.") from error
        entries.append(
            {
                "example_key": example.key,
                "context_tokens": timed.context_tokens,
                "question_tokens": timed.question_tokens,
                "new_tokens": len(timed.token_ids),
                "arms": {name: asdict(times) for name, times in timed.arms.items()},
            }
        )
    timing: dict[str, Any] = {
        "run": run,
        "label": arm.label,
        "threads": torch.get_num_threads(),
        "device": str(model.model.device),
        "dtype": str(model.model.dtype).removeprefix("torch."),
        "own_attention": model.model.config._attn_implementation,
        "new_tokens": TIMED_TOKENS,
        "rounds": TIMED_ROUNDS,
        "arms": _means([entry["arms"] for entry in entries]),
        "examples": entries,
    }
    timing["best_dense"] = timed_point(timing).dense_form
    with arm.store.writer(DENSE_WAIT_SECONDS):
        arm.store.write_json(TIMING_FILE, timing)
        if not arm.noted:
            arm.store.add_provenance(provenance)
            arm.noted = True


def _means(entries: Sequence[Any]) -> Any:
    """Average nested dicts of numbers that have the same keys."""
    if isinstance(entries[0], Mapping):
        return {name: _means([entry[name] for entry in entries]) for name in entries[0]}
    return mean(entries)
