"""Aggregates of fidelity: what is known counts, what is not is no zero."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sah.metrics.fidelity import attention_by_head, mean_output_error, summarise_fidelity
from sah.results.fidelity import FidelityRow, LayerErrors

ROW = FidelityRow(
    example_key="a",
    question_index=0,
    status="ok",
    tokens=4,
    kl=0.5,
    top1_agreement=0.75,
    log_likelihood=-6.0,
    dense_log_likelihood=-2.0,
    attention_error=0.1,
    layers={1: LayerErrors(2, (0.1, 0.3), (0.9, 0.8), (0.2, 0.2))},
    calls_by_layer=(0, 4),
)


def test_each_text_counts_the_same() -> None:
    other = replace(ROW, example_key="b", tokens=1, kl=0.1, top1_agreement=1.0, log_likelihood=-2.0)
    found = summarise_fidelity([ROW, other])
    assert found is not None
    assert (found["questions"], found["tokens"], found["failed"]) == (2, 5, 0)
    assert found["kl"]["mean"] == pytest.approx(0.3)
    assert found["top1_agreement"]["mean"] == pytest.approx(0.875)
    assert found["log_likelihood_difference"]["mean"] == pytest.approx((-1.0 + 0.0) / 2)
    assert 0 <= found["kl"]["low"] <= 0.3 <= found["kl"]["high"], "a divergence is never negative"


@pytest.mark.parametrize("unknown", ["kl", "top1_agreement", "log_likelihood", "dense_log_likelihood"])
def test_what_is_not_known_is_no_zero(unknown: str) -> None:
    found = summarise_fidelity([ROW, replace(ROW, example_key="b", **{unknown: None})])
    assert found is not None
    assert (found["questions"], found["failed"], found["kl"]["mean"]) == (1, 1, 0.5)
    nothing = summarise_fidelity([replace(ROW, **{unknown: None})])
    assert nothing is not None and nothing["kl"] == {"mean": None, "low": None, "high": None}


def test_what_ran_dense_is_in_no_mean() -> None:
    dense = replace(ROW, example_key="b", kl=0.0, top1_agreement=1.0, calls_by_layer=())
    found = summarise_fidelity([ROW, dense])
    assert found is not None
    assert (found["questions"], found["without_sparse_calls"], found["kl"]["mean"]) == (1, 1, 0.5)


def test_nothing_measured_is_nothing() -> None:
    assert summarise_fidelity([]) is None
    assert attention_by_head([replace(ROW, layers={})]) is None
    assert mean_output_error(None) is None


def test_heads_are_weighed_by_their_queries() -> None:
    more = replace(
        ROW, layers={1: LayerErrors(6, (0.5, 0.3), (0.5, 0.8), (0.2, 0.6)), 0: LayerErrors(1, (1, 1), (1, 1), (1, 1))}
    )
    found = attention_by_head([ROW, more])
    assert found is not None
    assert (found["layers"], found["rows"], found["rate"]) == ([0, 1], [1, 8], 0.1)
    assert found["output_error"][1] == pytest.approx([0.4, 0.3])
    assert found["density"][1] == pytest.approx([0.2, 0.5])
    assert mean_output_error(found) == pytest.approx((1 * 1 + 8 * 0.35) / 9)
