"""What a run really kept: allowed keys only, averaged over heads, queries and layers, phase by phase."""

from __future__ import annotations

import pytest
import torch

from sah.sparse_attention import LocalMaskerConfig, SinkMaskerConfig
from sah.sparse_attention.config import DECODE, QUESTION
from sah.sparse_attention.statistics import STATISTICS_KEY, AttentionStatistics
from tests.support.attention import EXECUTIONS, F32, Shape, attend, make_inputs


def counts(*values: int) -> torch.Tensor:
    return torch.tensor(values).view(1, 1, -1)


def test_density_by_phase_and_overall() -> None:
    statistics = AttentionStatistics()
    statistics.record(0, counts(1, 2), counts(4, 4))
    statistics.record(1, counts(4, 4), counts(4, 4))
    statistics.phase = DECODE
    statistics.record(0, counts(1), counts(10))
    assert statistics.density(QUESTION) == pytest.approx((0.25 + 0.5 + 1 + 1) / 4)
    assert statistics.density(DECODE) == pytest.approx(0.1)
    assert statistics.density() == pytest.approx((2.75 + 0.1) / 5)
    assert (statistics.calls(), statistics.layers()) == (3, [0, 1])


def test_a_dense_layer_counts_in_the_density_and_is_no_sparse_call() -> None:
    statistics = AttentionStatistics()
    statistics.record(0, counts(4, 4), counts(4, 4), dense=True)
    statistics.record(1, counts(1, 2), counts(4, 4))
    assert statistics.density() == pytest.approx((1 + 1 + 0.25 + 0.5) / 4)
    assert (statistics.calls(), statistics.layers()) == (1, [1])


def test_nothing_recorded_is_none_not_zero() -> None:
    statistics = AttentionStatistics()
    assert statistics.density() is None
    assert statistics.density(DECODE) is None
    assert statistics.calls() == 0


def test_heads_are_averaged() -> None:
    statistics = AttentionStatistics()
    kept = torch.tensor([[[1], [3]]])
    statistics.record(0, kept, torch.tensor([[[4]]]))
    assert statistics.density() == pytest.approx(0.5)


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_the_measured_density_of_a_known_pattern(execution: str) -> None:
    inputs = make_inputs(Shape(3, 4, True, F32, 63))
    statistics = AttentionStatistics()
    recipe = [SinkMaskerConfig(sink_size=2), LocalMaskerConfig(window_size=3)]
    attend(EXECUTIONS[execution](recipe), inputs, {STATISTICS_KEY: statistics})
    expected = (5 / inputs.allowed.sum(-1)).mean()
    assert statistics.density() == pytest.approx(float(expected))


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_queries_that_may_read_nothing_are_not_counted(execution: str) -> None:
    """A padded query has no keys to keep: it is no query of density 0."""
    inputs = make_inputs(Shape(2, 12, False, F32, 12), batch=1)
    inputs.allowed[..., :4] = False
    statistics = AttentionStatistics()
    attend(EXECUTIONS[execution]([LocalMaskerConfig(window_size=1.0)]), inputs, {STATISTICS_KEY: statistics})
    assert statistics.density() == 1.0
