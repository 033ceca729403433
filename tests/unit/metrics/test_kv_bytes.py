"""Bytes a decoded token reads, against a count key by key."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sah.metrics.kv_bytes import decode_kv_bytes, held_kv_bytes
from sah.results.rows import PredictionRow


def row(context: int = 100, question: int = 10, steps: int = 4, kept: float | None = 0.25, **other) -> PredictionRow:
    values = {
        "example_key": "e",
        "question_index": 0,
        "status": "ok",
        "kv_len": context,
        "num_question_tokens": question,
        "decode_steps": steps,
        "density_by_phase": {} if kept is None else {"question": None, "decode": kept},
    }
    return PredictionRow(**{**values, **other})


@given(
    context=st.integers(0, 500),
    question=st.integers(1, 50),
    steps=st.integers(1, 40),
    kept=st.floats(0.001, 1),
    choosing=st.integers(0, 100),
)
def test_it_is_the_mean_over_the_steps(context, question, steps, kept, choosing):
    per_step = []
    held = context + question
    for _ in range(steps):
        held += 1  # the step's own token is written before attention reads
        per_step.append(held * kept * 64 + held * choosing)
    found = decode_kv_bytes([row(context, question, steps, kept)], 64, choosing)
    assert found == pytest.approx(sum(per_step) / steps)


def test_a_dense_decode_reads_every_key():
    dense = decode_kv_bytes([row(kept=None)], 64)
    assert dense == 64 * (100 + 10 + 2.5)
    assert decode_kv_bytes([row(kept=0.25)], 64) == dense / 4


def test_rows_count_the_same_whatever_their_length():
    short, long = row(context=10), row(context=1000)
    both = [decode_kv_bytes([one], 8) for one in (short, long)]
    assert decode_kv_bytes([short, long], 8) == pytest.approx(sum(both) / 2)


def test_rows_that_say_nothing_are_left_out():
    silent = [row(steps=0), row(status="model_failed", kv_len=None), row(kv_len=None)]
    assert decode_kv_bytes([row(), *silent], 8) == decode_kv_bytes([row()], 8)
    assert decode_kv_bytes(silent, 8) is None


def test_a_cache_holds_everything_unless_the_method_evicts() -> None:
    whole = held_kv_bytes([row(context=100, question=10, steps=5, kept=0.25)], 64, evicts=False)
    assert whole == 115 * 64
    assert held_kv_bytes([row(context=100, question=10, steps=5, kept=0.25)], 64, evicts=True) == whole / 4
    assert held_kv_bytes([row(steps=0)], 64, evicts=True) is None
