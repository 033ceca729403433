from __future__ import annotations

import copy
import math

import pytest

from sah.data.niah.config import NiahConfig, resolve_depths
from sah.errors import ConfigError


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"task": "multivalue"},
            r"dataset.task='multivalue' is not allowed. Allowed: single, multikey, multiquery",
        ),
        ({"needle": "uuid"}, r"dataset.needle='uuid' is not allowed. Allowed: number, word"),
        ({"haystack": "wiki"}, r"dataset.haystack='wiki' is not allowed. Allowed: noise, essays, prose"),
        ({"length": 0}, "dataset.length=0"),
        ({"length": 10.5}, "dataset.length=10.5"),
        ({"seed": -1}, "dataset.seed=-1"),
        ({"max_new_tokens": 0}, "dataset.max_new_tokens=0"),
        ({"num_examples": None}, "dataset.num_examples=None"),
        ({"num_keys": 0, "task": "multikey"}, "dataset.num_keys=0"),
        ({"num_keys": 4}, "dataset.task=multikey for more keys"),
        ({"num_queries": 2}, "dataset.task=multiquery for more queries"),
        ({"task": "multikey", "num_keys": 1}, "hides at least two needles"),
        ({"task": "multikey", "num_queries": 2}, "asks for one"),
        ({"task": "multiquery", "num_queries": 1}, "asks for at least two"),
        ({"task": "multiquery", "num_queries": 5, "num_keys": 4}, "at most the hidden ones"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        NiahConfig(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("depths", [[], [0.5, 1.1], [-0.1], [math.nan], ["0.5"], [True], "0.5", 0, -3, 0.5, None, True])
def test_bad_depths_are_refused(depths: object) -> None:
    with pytest.raises(ConfigError, match=r"dataset.depths=.* from 0 \(start of the haystack\) to 1"):
        NiahConfig(depths=depths)


@pytest.mark.parametrize(
    ("depths", "expected"),
    [(1, [0.5]), (2, [0.0, 1.0]), (5, [0.0, 0.25, 0.5, 0.75, 1.0]), ([1, 0.3], [1.0, 0.3]), ((0.2,), [0.2])],
)
def test_depths_are_a_count_or_a_list(depths: object, expected: list[float]) -> None:
    assert resolve_depths(depths) == expected


@pytest.mark.parametrize(
    ("settings", "counts"),
    [
        ({}, (1, 1)),
        ({"task": "multikey"}, (4, 1)),
        ({"task": "multikey", "num_keys": 9}, (9, 1)),
        ({"task": "multiquery"}, (4, 4)),
        ({"task": "multiquery", "num_queries": 2}, (4, 2)),
        ({"task": "multiquery", "num_queries": 6}, (6, 6)),
    ],
)
def test_needle_counts_follow_the_task(settings: dict[str, object], counts: tuple[int, int]) -> None:
    assert NiahConfig(**settings).needle_counts() == counts  # type: ignore[arg-type]


def test_identity_holds_what_decides_an_example() -> None:
    config = NiahConfig()
    before = copy.deepcopy(config)
    identity = config.identity()
    assert config == before
    assert "num_examples" not in identity and "metrics" not in identity
    assert identity == NiahConfig(num_examples=99).identity()
    assert identity == NiahConfig(depths=resolve_depths(8), num_keys=1).identity()
    for changes in (
        {"task": "multikey"},
        {"needle": "word"},
        {"haystack": "prose"},
        {"length": 512},
        {"depths": [0.5]},
        {"seed": 1},
        {"max_new_tokens": None},
    ):
        assert NiahConfig(**changes).identity() != identity  # type: ignore[arg-type]
