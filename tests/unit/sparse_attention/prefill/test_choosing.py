"""What patterns choose: planted structure is found, estimates equal their plain form, budgets are kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sah.errors import ConfigError
from sah.sparse_attention import (
    AShapeConfig,
    AShapePrefill,
    BlockTopKConfig,
    BlockTopKPrefill,
    PrefillConfig,
    PrefillPattern,
    VerticalSlashConfig,
    VerticalSlashPrefill,
)
from sah.sparse_attention.prefill.block_estimates import antidiagonal, mean_pool
from sah.sparse_attention.prefill.discovery import prefill_configs
from sah.sparse_attention.prefill.line_estimates import line_masses
from sah.sparse_attention.prefill.rows import Rows, allowed_pairs, spread_blocks, target_pairs
from tests.support.attention import causal

HEADS, KV_HEADS, DIM = 4, 2, 16


def noise(q_len: int, kv_len: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(1, HEADS, q_len, DIM, generator=generator)
    return queries, torch.randn(1, KV_HEADS, kv_len, DIM, generator=generator)


def density_of(kept: torch.Tensor) -> list[float]:
    """Share of the allowed pairs that each head keeps."""
    allowed = causal(*kept.shape[2:]).sum()
    return (kept.sum((0, 2, 3)) / allowed).tolist()


def test_a_vertical_line_is_found() -> None:
    queries, keys = noise(512, 512)
    queries[..., 0] = 8.0
    keys[:, 1, 100, 0] = 8.0
    verticals, _ = VerticalSlashPrefill(VerticalSlashConfig(density=0.2, block_size=16)).choose(queries, keys, 0.25)
    assert verticals[0, :, 100].tolist() == [False, False, True, True]


def test_a_slash_is_found() -> None:
    """Every query asks for the key 200 before it; 200 is 12.5 blocks of 16, so two blocks of distances share it."""
    length, apart = 512, 200
    _, keys = noise(length, length)
    queries = 4 * keys.repeat_interleave(HEADS // KV_HEADS, 1).roll(apart, 2)
    pattern = VerticalSlashPrefill(VerticalSlashConfig(density=0.2, block_size=16))
    _, slashes = pattern.choose(queries, keys, 1.0)
    assert slashes[0, :, [0, 12, 13]].all()
    kept = pattern.keep(queries, keys, 1.0)
    assert kept[0].diagonal(-apart, 1, 2).all()


@pytest.mark.parametrize("estimator", ["mean_pool", "antidiagonal"])
def test_a_block_is_found(estimator: str) -> None:
    """The queries of block 9 ask for what the keys of block 4 share, one head in two."""
    queries, keys = noise(320, 320)
    queries[:, ::2, 288:, 0] += 6
    keys[:, :, 128:160, 0] += 6
    stride = 8 if estimator == "antidiagonal" else None
    config = BlockTopKConfig(blocks=3, block_size=32, estimator=estimator, stride=stride)
    chosen = BlockTopKPrefill(config).choose(queries, keys, 0.25)
    assert chosen[0, ::2, 9].nonzero()[:, 1].tolist() == [0, 4, 9] * 2
    assert chosen.sum(-1).tolist() == [[[1, 2] + [3] * 8] * HEADS]


def test_antidiagonals_find_a_single_key_that_means_hide() -> None:
    queries, keys = noise(320, 320)
    queries[..., 0] = 10.0
    keys[:, :, 128:160, 0] -= 1.2
    keys[:, :, 140, 0] = 20.0
    found = {}
    for name in ("mean_pool", "antidiagonal"):
        stride = 8 if name == "antidiagonal" else None
        config = BlockTopKConfig(blocks=3, block_size=32, estimator=name, stride=stride)
        found[name] = BlockTopKPrefill(config).choose(queries, keys, 0.25)[:, :, 6:, 4]
    assert found["antidiagonal"].all()
    assert not found["mean_pool"].any()


@pytest.mark.parametrize(("q_len", "kv_len"), [(40, 40), (37, 75), (5, 6)])
def test_antidiagonal_sums_equal_the_plain_form(q_len: int, kv_len: int) -> None:
    """Tile by tile, from all scores, with what stands beyond the sequence counted as a score of 0."""
    size, stride, scaling = 8, 4, 0.3
    queries, keys = noise(q_len, kv_len)
    rows = Rows(q_len, kv_len, size)
    found = antidiagonal(queries, keys, scaling, rows, stride).exp()
    end = rows.blocks * size
    scores = torch.zeros(HEADS, end, end)
    scores[:, rows.offset : kv_len, :kv_len] = queries[0] @ keys[0].repeat_interleave(2, 0).mT * scaling
    expected = torch.zeros(HEADS, rows.blocks, rows.blocks)
    for head in range(HEADS):
        for tile in range(rows.offset // stride, end // stride):
            places = range(tile * stride, (tile + 1) * stride)
            real = sum(rows.offset <= place < kv_len for place in places) / stride
            logits = torch.stack(
                [
                    torch.stack([scores[head, q, key * stride + stride - 1 - i] for i, q in enumerate(places)]).mean()
                    for key in range(tile + 1)
                ]
            )
            for key, share in enumerate(torch.softmax(logits, 0) * real):
                expected[head, tile * stride // size, key * stride // size] += share
    expected = expected[:, rows.offset // size :]
    torch.testing.assert_close(found[0], expected / expected.sum(-1, keepdim=True))


@pytest.mark.parametrize(("q_len", "kv_len"), [(40, 40), (37, 75), (5, 6)])
def test_mean_pool_equals_the_plain_form(q_len: int, kv_len: int) -> None:
    queries, keys = noise(q_len, kv_len)
    rows = Rows(q_len, kv_len, 8)
    found = mean_pool(queries, keys, 0.3, rows, 1)
    for head in range(HEADS):
        for place, row in enumerate(rows):
            mean = queries[0, head, row.first - rows.offset : row.last - rows.offset].mean(0)
            blocks = [part.mean(0) for part in keys[0, head // 2].split(8)][: row.block + 1]
            expected = torch.log_softmax(torch.stack(blocks) @ mean * 0.3, 0)
            torch.testing.assert_close(found[0, head, place, : row.block + 1], expected)
            assert (found[0, head, place, row.block + 1 :] == float("-inf")).all()


def test_line_masses_equal_the_plain_form() -> None:
    queries, keys = noise(30, 43)
    size, last = 8, 5
    vertical, slash = line_masses(queries, keys, 0.3, last, size)
    logits = queries[0] @ keys[0].repeat_interleave(2, 0).mT * 0.3
    shares = torch.softmax(logits.masked_fill(~causal(30, 43)[0], float("-inf")), -1)[:, -last:]
    torch.testing.assert_close(vertical[0], (shares.sqrt().sum(1) / last) ** 2)
    expected = torch.zeros(HEADS, 7)
    for distance in range(43):
        seen = [(place, 43 - last + place - distance) for place in range(last)]
        roots = sum(shares[:, place, key].sqrt() for place, key in seen if key >= 0)
        blocks, further = divmod(distance, size)
        expected[:, blocks] += (roots / last) ** 2 * (1 - further / size)
        expected[:, blocks + 1] += (roots / last) ** 2 * further / size
    torch.testing.assert_close(slash[0], expected[:, :6] / size)


BUDGETS: dict[str, tuple[PrefillConfig, int]] = {
    "a_shape": (AShapeConfig(), 1),
    "vertical_slash": (VerticalSlashConfig(density=0.2, block_size=16), 16),
    "vertical_slash-coarse": (VerticalSlashConfig(block_size=128), 128),
    "block_topk": (BlockTopKConfig(density=0.35, block_size=32), 32),
    "block_topk-antidiagonal": (BlockTopKConfig(density=0.5, block_size=48, estimator="antidiagonal"), 48),
}


@pytest.mark.parametrize(("q_len", "kv_len"), [(1000, 1000), (333, 1000), (129, 129), (63, 63), (1, 1)])
@pytest.mark.parametrize("name", BUDGETS)
def test_the_density_is_met_from_below(name: str, q_len: int, kv_len: int) -> None:
    """By less than a line or block a head; above it is only what is always kept."""
    config, size = BUDGETS[name]
    kept = PrefillPattern.create_from_config(config).keep(*noise(q_len, kv_len), 0.25)
    target = getattr(config, "density", None) or 0.1
    rows = Rows(q_len, kv_len, size)
    always = sum(rows.own_pairs(row) for row in rows)
    if name.startswith("block_topk"):
        always += sum(row.count * size for row in rows if row.block)
    total = allowed_pairs(q_len, kv_len)
    step = size * size if name.startswith("block_topk") else kv_len
    for density in density_of(kept):
        assert density <= max(target, always / total) + 1e-6
        assert density >= max(min(target, 1.0) - step / total, always / total) - 1e-6


def test_what_density_leaves_goes_to_rows_in_proportion() -> None:
    rows = Rows(4096, 4096, 128)
    counts = spread_blocks(0.5, rows)
    assert counts[:2] == [1, 2]
    slope = (counts[-1] - 2) / 30
    assert 0.4 < slope < 0.5
    assert all(abs(2 + slope * (block - 1) - count) < 2 for block, count in enumerate(counts[1:], 1))
    assert spread_blocks(0.1, rows).index(3) < 20
    assert spread_blocks(1.0, rows) == list(range(1, 33))
    assert spread_blocks(1e-6, rows) == [1] + [2] * 31
    assert target_pairs(0.29, 1, 100) == 29


def test_a_shape_keeps_its_sizes_for_every_query() -> None:
    queries, keys = noise(300, 400)
    kept = AShapePrefill(AShapeConfig(sink_size=5, window_size=0.1)).keep(queries, keys, 1.0)
    assert (kept.sum(-1) == 45).all()
    assert kept[0, 0, 299].nonzero()[:, 0].tolist() == [*range(5), *range(360, 400)]
    sinks, window = AShapePrefill(AShapeConfig(density=0.01)).sizes(100, 100)
    assert (sinks, window) == (0, 1)


def test_coverage_follows_the_text() -> None:
    """Attention to one block needs one, attention spread evenly needs a share of all."""
    queries, keys = noise(640, 640)
    pattern = BlockTopKPrefill(BlockTopKConfig(coverage=0.9, block_size=32))
    sharp = pattern.choose(queries + 20 * torch.eye(DIM)[0], keys, 1.0)
    flat = pattern.choose(queries * 0, keys, 1.0)
    assert flat[0, 0, 19].sum() == 18
    assert sharp[0, :, 19].sum() < 4 * 8


def test_group_heads_share_blocks() -> None:
    queries, keys = noise(640, 640)
    assert BlockTopKPrefill(BlockTopKConfig(block_size=32, selection="group")).choose(queries, keys, 1.0).shape[1] == 2


@pytest.mark.parametrize(
    ("config", "values", "says"),
    [
        (AShapeConfig, {"density": 0.1, "window_size": 5}, "prefill.window_size=5"),
        (AShapeConfig, {"sink_size": -1}, "prefill.sink_size=-1"),
        (AShapeConfig, {"density": 0}, "prefill.density=0"),
        (VerticalSlashConfig, {"vertical_size": 9}, "prefill.slash_size"),
        (VerticalSlashConfig, {"density": 0.1, "vertical_size": 9, "slash_size": 9}, "one budget"),
        (VerticalSlashConfig, {"last_queries": 0}, "prefill.last_queries=0"),
        (BlockTopKConfig, {"blocks": 1}, "prefill.blocks=1"),
        (BlockTopKConfig, {"blocks": 4, "coverage": 0.9}, "one budget"),
        (BlockTopKConfig, {"coverage": 1.5}, "prefill.coverage=1.5"),
        (BlockTopKConfig, {"estimator": "pool"}, "prefill.estimator='pool'"),
        (BlockTopKConfig, {"selection": "heads"}, "prefill.selection='heads'"),
        (BlockTopKConfig, {"stride": 8}, "prefill.estimator=mean_pool reads no stride"),
        (BlockTopKConfig, {"estimator": "antidiagonal", "stride": 3}, "a divisor of prefill.block_size=64"),
    ],
    ids=lambda value: "" if isinstance(value, type) else str(value),
)
def test_bad_values_are_refused(config: type[PrefillConfig], values: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match="Write") as error:
        config(**values)
    assert says in str(error.value)


def test_patterns_are_found_and_identify_what_they_compute() -> None:
    assert list(prefill_configs()) == ["a_shape", "block_topk", "vertical_slash"]
    for config in prefill_configs().values():
        assert config().identity() == config(density=0.1).identity() != config(density=0.2).identity()
    antidiagonal_sums = {"estimator": "antidiagonal"}
    assert BlockTopKConfig(**antidiagonal_sums, stride=16).identity() == BlockTopKConfig(**antidiagonal_sums).identity()
    assert BlockTopKConfig(**antidiagonal_sums, stride=8).identity() != BlockTopKConfig(**antidiagonal_sums).identity()
    assert "density" in BlockTopKConfig(blocks=4).identity()
    assert BlockTopKConfig(blocks=4).identity()["density"] is None


@pytest.mark.parametrize(("block_size", "tokens", "density"), [(64, 512, 0.35), (64, 1000, 0.18), (64, 2000, 0.1),
                                                               (128, 2000, 0.18), (128, 4000, 0.1)])  # fmt: skip
def test_short_contexts_read_more_than_they_are_asked_to(block_size: int, tokens: int, density: float) -> None:
    """The figures of the README and of the method's docstring; they follow from the blocks that are always read."""
    queries = torch.randn(1, 1, tokens, 8, generator=torch.Generator().manual_seed(0))
    pattern = BlockTopKPrefill(BlockTopKConfig(density=0.1, block_size=block_size))
    assert round(pattern.attend(queries, queries, queries, 0.3)[1], 2) == density
