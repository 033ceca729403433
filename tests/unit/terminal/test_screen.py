"""Blocks, intervals and text for the terminal."""

from __future__ import annotations

import pytest

from sah.terminal.screen import figure, interval, resampled, shortened, sparkline


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 1.0], "▁█"),
        ([0.0, 0.124, 0.126, 0.5, 0.99, 1.0], "▁▁▂▅██"),
        ([None, 0.5, None], " ▅ "),
        ([-3.0, 4.0], "▁█"),
        ([], ""),
    ],
)
def test_heights(values, expected):
    assert sparkline(values, 0.0, 1.0) == expected


def test_one_height_for_equal_values():
    assert sparkline([0.3, 0.3], 0.3, 0.3) == "▅▅"


def test_long_series_become_means():
    assert resampled([1.0, 3.0, 5.0, 7.0], 2) == [2.0, 6.0]
    assert resampled([1.0, None, None, None], 2) == [1.0, None]
    assert resampled([1.0, 2.0], 4) == [1.0, 2.0]


def test_what_was_not_measured_is_said():
    assert figure(None) == "not measured"
    assert interval(None, 0.0, 1.0) == "not measured"
    assert interval(0.5, None, 1.0) == "0.500"
    assert interval(-0.5, -1.0, 0.25, 2, sign=True) == "-0.50 [-1.00, +0.25]"


def test_text_of_a_model_moves_no_cursor():
    assert shortened("a\x1b[2Jb\r\nc", 20) == "a\ufffd[2Jb c"
    assert shortened("x" * 10, 8) == "xxxxx..."
