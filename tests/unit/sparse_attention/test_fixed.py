"""Sinks, windows and their union: positions are those of the allowed keys, and nothing is erased."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sah.sparse_attention import LocalMaskerConfig, SinkMaskerConfig, StreamingLLMMaskerConfig
from tests.support.attention import F32, Shape, inclusion_of, make_inputs, research


def kept_keys(masker_configs: list[Any], q_len: int = 1, kv_len: int = 20) -> list[list[int]]:
    inputs = make_inputs(Shape(2, q_len, False, F32, kv_len), batch=1)
    inclusion = inclusion_of(research(masker_configs), inputs)
    assert (inclusion == inclusion[:, :1]).all()
    return [row.nonzero().squeeze(-1).tolist() for row in inclusion[0, 0]]


def test_sink_keeps_the_first() -> None:
    assert kept_keys([SinkMaskerConfig(sink_size=3)], q_len=2) == [[0, 1, 2], [0, 1, 2]]


def test_local_keeps_the_keys_up_to_the_query() -> None:
    assert kept_keys([LocalMaskerConfig(window_size=3)], q_len=3) == [[15, 16, 17], [16, 17, 18], [17, 18, 19]]


@pytest.mark.parametrize("order", [1, -1])
def test_local_never_erases_what_sinks_keep(order: int) -> None:
    recipe = [SinkMaskerConfig(sink_size=2), LocalMaskerConfig(window_size=2)][::order]
    assert kept_keys(recipe, q_len=2) == [[0, 1, 17, 18], [0, 1, 18, 19]]


def test_overlapping_sinks_and_window_count_once() -> None:
    assert kept_keys([SinkMaskerConfig(sink_size=6), LocalMaskerConfig(window_size=6)], kv_len=8) == [list(range(8))]


def test_a_share_is_of_each_query_s_own_allowed_keys() -> None:
    rows = kept_keys([SinkMaskerConfig(sink_size=0.5)], q_len=20)
    assert [len(row) for row in rows] == [max(1, round(0.5 * n)) for n in range(1, 21)]


def test_streaming_llm_is_four_sinks_and_a_window_of_the_rest() -> None:
    (row,) = kept_keys([StreamingLLMMaskerConfig(density=0.1)], kv_len=100)
    assert row == [0, 1, 2, 3, *range(94, 100)]


def test_streaming_llm_equals_sink_plus_local() -> None:
    for q_len in (1, 6):
        recipe = kept_keys([SinkMaskerConfig(sink_size=4), LocalMaskerConfig(window_size=7)], q_len=q_len)
        assert kept_keys([StreamingLLMMaskerConfig(window_size=7)], q_len=q_len) == recipe


@pytest.mark.parametrize("density", [0.01, 0.03, 0.05])
def test_streaming_llm_with_less_than_its_sinks_still_reads_its_own_key(density: float) -> None:
    (row,) = kept_keys([StreamingLLMMaskerConfig(density=density)], kv_len=100)
    assert len(row) == max(1, round(density * 100))
    assert 99 in row


def test_padding_takes_no_place() -> None:
    inputs = make_inputs(Shape(2, 1, True, F32, 30))
    recipe = [SinkMaskerConfig(sink_size=2), LocalMaskerConfig(window_size=2)]
    inclusion = inclusion_of(research(recipe), inputs)
    assert inclusion[0, 0, 0].nonzero().squeeze(-1).tolist() == [3, 4, 28, 29]
    assert inclusion[1, 0, 0].nonzero().squeeze(-1).tolist() == [8, 9, 28, 29]


def test_a_hole_in_the_middle_takes_no_place() -> None:
    inputs = make_inputs(Shape(2, 1, False, F32, 30), batch=1)
    inputs.allowed[..., 27:29] = False
    inclusion = inclusion_of(research([LocalMaskerConfig(window_size=2)]), inputs)
    assert torch.equal(inclusion[0, 0, 0].nonzero().squeeze(-1), torch.tensor([26, 29]))
