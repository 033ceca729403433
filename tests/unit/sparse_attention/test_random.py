"""Uniform sampling without replacement: exact probabilities, unbiased estimates, reproducible draws."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sah.sparse_attention import (
    AdaptiveSamplingMaskerConfig,
    LocalMaskerConfig,
    RandomSamplingMaskerConfig,
    SinkMaskerConfig,
    TopKMaskerConfig,
)
from sah.sparse_attention.key_lists import KeyLists
from sah.sparse_attention.mask import Mask
from sah.sparse_attention.pool import pool_of_lists, pool_of_mask
from sah.sparse_attention.randomness import draw_distinct, generator_for
from tests.support.attention import (
    EXECUTIONS,
    F32,
    SHAPES,
    Inputs,
    Shape,
    attend,
    efficient,
    inclusion_of,
    make_inputs,
    research,
)


@pytest.mark.parametrize("shape", [s for s in SHAPES if s.kv_len < 500], ids=str)
@pytest.mark.parametrize("rate", [1, 7, 0.5, 1.0])
def test_the_probability_is_draws_by_residual_exactly(shape: Shape, rate: float) -> None:
    inputs = make_inputs(shape)
    first: list[Any] = [SinkMaskerConfig(sink_size=2), TopKMaskerConfig(heavy_size=3)]
    before = inclusion_of(research(first), inputs) > 0
    inclusion = inclusion_of(research([*first, RandomSamplingMaskerConfig(sampling_rate=rate)]), inputs)
    assert (inclusion[before] == 1).all()
    allowed = inputs.allowed.expand_as(before).sum(-1)
    residual = allowed - before.sum(-1)
    wanted = rate if isinstance(rate, int) else (rate * allowed.double()).round().long().clamp(min=1)
    draws = torch.minimum(torch.as_tensor(wanted).expand_as(residual), residual)
    drawn = (inclusion > 0) & ~before
    assert torch.equal(drawn.sum(-1), draws), "draws are without replacement, so there are exactly as many keys"
    probability = (draws.double() / residual.clamp(min=1)).float()
    assert torch.equal(inclusion[drawn], probability.unsqueeze(-1).expand_as(inclusion)[drawn])


def draw_many(recipe: list[Any], inputs: Inputs, draws: int) -> torch.Tensor:
    """Inclusion of many independent draws, (draws, kv_len): one lane a draw, all rows of one batch."""
    lanes = [f"draw {i}" for i in range(draws)]
    wide = Inputs(
        inputs.queries.expand(draws, -1, -1, -1),
        inputs.keys.expand(draws, -1, -1, -1),
        inputs.values.expand(draws, -1, -1, -1),
        inputs.allowed.expand(draws, -1, -1, -1),
        inputs.scaling,
    )
    return inclusion_of(research(recipe), wide, {"lanes": lanes})[:, 0, 0]


def test_every_residual_key_is_drawn_equally_often() -> None:
    """Chi-square over 4,000 draws of 5 of 20 keys; the seed is fixed, so this cannot flicker."""
    inputs = make_inputs(Shape(1, 1, False, F32, 24, kv_heads=1), batch=1)
    inclusion = draw_many([SinkMaskerConfig(), RandomSamplingMaskerConfig(sampling_rate=5)], inputs, 4000)
    assert (inclusion[:, :4] == 1).all()
    hits = (inclusion[:, 4:] > 0).sum(0).double()
    expected = 4000 * 5 / 20
    # Variance of a hit is p (1-p), and the hits of a draw sum to 5: the statistic follows chi-square with 19 degrees.
    chi_square = float(((hits - expected) ** 2 / (expected * (1 - 0.25))).sum()) * 19 / 20
    assert chi_square < 43.8, "above the 99.9 % quantile"
    pairs = ((inclusion[:, 4] > 0) & (inclusion[:, 5] > 0)).double().mean()
    assert abs(float(pairs) - 5 * 4 / (20 * 19)) < 4 * (0.05 * 0.95 / 4000) ** 0.5


@pytest.mark.parametrize("rate", [2, 0.5, 0.9])
def test_the_estimate_of_the_denominator_is_unbiased(rate: float) -> None:
    """Trap of the reference: with replacement and p = n/K the mean was 0.79 of the truth at a rate of 0.5."""
    inputs = make_inputs(Shape(1, 1, False, F32, 60, kv_heads=1), batch=1)
    exponentials = torch.exp((inputs.queries @ inputs.keys.mT * inputs.scaling).double())[0, 0, 0]
    recipe = [SinkMaskerConfig(), LocalMaskerConfig(window_size=4), RandomSamplingMaskerConfig(sampling_rate=rate)]
    inclusion = draw_many(recipe, inputs, 3000).double()
    estimates = torch.where(inclusion > 0, exponentials / inclusion.clamp(min=1e-9), 0.0).sum(-1)
    error = float(estimates.mean() - exponentials.sum())
    standard_error = float(estimates.std() / 3000**0.5)
    assert abs(error) < 4 * standard_error + 1e-9


def test_equal_keys_give_the_denominator_exactly() -> None:
    """With equal logits any draw estimates the sum exactly, so weights must be exactly 1/p, not 1/(p + tiny)."""
    inputs = make_inputs(Shape(1, 1, False, F32, 61, kv_heads=1), batch=1)
    inputs.keys[:] = 0
    for make in EXECUTIONS.values():
        recipe = [SinkMaskerConfig(sink_size=1), RandomSamplingMaskerConfig(sampling_rate=7)]
        inclusion = inclusion_of(research(recipe), inputs)[0, 0, 0].double()
        estimate = (1 / inclusion[inclusion > 0]).sum()
        assert float(estimate) == pytest.approx(61, abs=1e-4)
        weights = torch.where(inclusion > 0, 1 / inclusion.clamp(min=1e-9), 0.0) / estimate
        expected = (weights @ inputs.values[0, 0].double()).float()
        assert torch.allclose(attend(make(recipe), inputs)[0, 0, 0], expected, atol=1e-6)


def test_draws_repeat_and_follow_the_seed() -> None:
    inputs = make_inputs(SHAPES[0])
    recipe = [RandomSamplingMaskerConfig(sampling_rate=9)]

    def drawn(seed: int, layer: int = 0, lanes: list[str] | None = None) -> torch.Tensor:
        meta = {"lanes": lanes} if lanes else {}
        return inclusion_of(research(recipe, seed=seed), inputs, meta, layer_idx=layer)

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    assert not torch.equal(drawn(1), drawn(1, layer=1))
    assert not torch.equal(drawn(1, lanes=["a", "b"]), drawn(1, lanes=["b", "a"]))
    assert torch.equal(drawn(1, lanes=["a", "b"])[0], drawn(1, lanes=["a", "c"])[0])


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    inputs = make_inputs(SHAPES[0])
    recipe = [RandomSamplingMaskerConfig(sampling_rate=9)]
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = inclusion_of(research(recipe), inputs)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(inclusion_of(research(recipe), inputs), first)


def test_heads_and_steps_draw_apart() -> None:
    inputs = make_inputs(Shape(4, 6, False, F32, 63), batch=1)
    inclusion = inclusion_of(research([RandomSamplingMaskerConfig(sampling_rate=8)]), inputs)[0] > 0
    patterns = {tuple(row.tolist()) for row in inclusion.flatten(0, 1)}
    assert len(patterns) == 8 * 6


def test_draws_do_not_depend_on_chunking() -> None:
    inputs = make_inputs(Shape(3, 8, False, F32, 63), batch=1)
    recipe = [SinkMaskerConfig(), RandomSamplingMaskerConfig(density=0.3)]
    whole = inclusion_of(research(recipe), inputs)
    for start, stop in [(0, 1), (1, 4), (4, 8)]:
        end = 63 - 8 + stop
        piece = Inputs(
            inputs.queries[:, :, start:stop],
            inputs.keys[:, :, :end],
            inputs.values[:, :, :end],
            inputs.allowed[:, :, start:stop, :end],
            inputs.scaling,
        )
        assert torch.equal(inclusion_of(research(recipe), piece), whole[:, :, start:stop, :end])


def draw(
    seed: object, count: int, wanted: list[int], taken: list[list[int]] | None = None, *, generator: Any = None
) -> torch.Tensor:
    """Draw for all lists of one row, (lists, n)."""
    return draw_distinct(
        [generator or generator_for(seed)],
        torch.full((1, len(wanted)), count),
        torch.tensor([taken if taken is not None else [[]] * len(wanted)], dtype=torch.long),
        torch.tensor([wanted]),
    )[0]


@pytest.mark.parametrize("count", [40, 2000], ids=["by permutation", "by proposal"])
def test_numbers_are_drawn_once_and_never_taken_ones(count: int) -> None:
    taken = [[3, -1, 17, 0], [-1, -1, -1, -1], [39, 38, 37, 36]]
    for seed in range(50):
        drawn = draw(seed, count, [30, 1, 22], taken).tolist()
        assert [len(row) for row in drawn] == [30, 30, 30]
        for row, number, gone in zip(drawn, (30, 1, 22), taken, strict=True):
            used = row[:number]
            assert len(set(used)) == number
            assert not set(used) & set(gone)
            assert 0 <= min(used) <= max(used) < count
            assert row[number:] == [-1] * (30 - number)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.51, 0.97, 1.0])
def test_every_free_number_is_equally_likely(share: float) -> None:
    """Chi-square over 1,500 draws of 40 numbers, of which a tenth is taken: both ways of drawing are exact."""
    count, gone, draws = 40, 4, 1500
    wanted = max(1, round(share * (count - gone)))
    taken = [[5, 6, 7, 20]] * draws
    drawn = draw(share, count, [wanted] * draws, taken)
    hits = torch.bincount(drawn.flatten(), minlength=count).double()
    assert hits[[5, 6, 7, 20]].sum() == 0
    free = hits[[i for i in range(count) if i not in taken[0]]]
    expected = draws * wanted / (count - gone)
    if wanted == count - gone:
        assert (free == draws).all()
        return
    # Hits of a draw sum to `wanted`, which takes one of 36 degrees of freedom.
    spread = expected * (1 - wanted / (count - gone))
    chi_square = float(((free - expected) ** 2 / spread).sum()) * 35 / 36
    assert chi_square < 66.6, "above the 99.9 % quantile of 35 degrees"
    first = torch.bincount(drawn[:, 0], minlength=count).double()
    assert float(((first[first > 0] - draws / 36) ** 2 / (draws / 36)).sum()) < 66.6, "nor is the order biased"


def test_running_out_of_proposals_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists whose proposals coincide too often are drawn by permutation, and all sets stay equally likely."""
    import sah.sparse_attention.randomness as module

    monkeypatch.setattr(module.math, "ceil", lambda _: -4)
    draws, count, wanted = 3000, 12, 4
    drawn = draw("short", count, [wanted] * draws)
    assert (drawn >= 0).all()
    assert (drawn.sort(-1).values.diff(dim=-1) > 0).all()
    hits = torch.bincount(drawn.flatten(), minlength=count).double()
    expected = draws * wanted / count
    chi_square = float(((hits - expected) ** 2 / (expected * (1 - wanted / count))).sum()) * 11 / 12
    assert chi_square < 31.3, "above the 99.9 % quantile of 11 degrees"


def test_asking_for_more_continues_a_draw() -> None:
    few, many = draw("a", 1000, [20, 7]), draw("a", 1000, [90, 30])
    assert torch.equal(many[0, :20], few[0])
    assert torch.equal(many[1, :7], few[1, :7])


def test_a_sample_drawn_in_parts_holds_every_pair_equally_often() -> None:
    """Two parts of 2 and 3 of 10 numbers are as good as one draw of 5."""
    draws = 4000
    generator = generator_for("parts")
    first = draw(None, 10, [2] * draws, generator=generator)
    second = draw(None, 10, [3] * draws, first.tolist(), generator=generator)
    held = torch.zeros(draws, 10).scatter_(1, torch.cat([first, second], 1), 1.0)
    assert (held.sum(-1) == 5).all()
    pairs = (held.T @ held)[~torch.eye(10, dtype=torch.bool)] / draws
    chance = 5 * 4 / (10 * 9)
    assert (pairs - chance).abs().max() < 4 * (chance * (1 - chance) / draws) ** 0.5


def test_rows_drawn_together_are_drawn_as_each_alone() -> None:
    """Rows of either way of drawing, with lists that want nothing, take all that is left, or differ in their count."""
    count = torch.tensor([[3000, 2500], [40, 40], [500, 7], [9, 9], [2000, 2000], [60, 1]])
    wanted = torch.tensor([[90, 3], [30, 1], [20, 7], [0, 0], [0, 700], [36, 1]])
    taken = torch.full((6, 2, 5), -1)
    taken[0, 0] = torch.tensor([3, -1, 7, 2999, -1])
    taken[1] = torch.tensor([[39, 38, 0, 1, 2], [-1, 5, -1, -1, -1]])

    def generators() -> list[torch.Generator]:
        return [generator_for("row", row) for row in range(6)]

    together, alone = generators(), generators()
    drawn = draw_distinct(together, count, taken, wanted)
    assert drawn.shape == (6, 2, 700)
    assert torch.equal((drawn >= 0).sum(-1), wanted)
    for row in range(6):
        part = slice(row, row + 1)
        own = draw_distinct(alone[part], count[part], taken[part], wanted[part])[0]
        assert torch.equal(drawn[row, :, : own.shape[-1]], own)
        assert (drawn[row, :, own.shape[-1] :] == -1).all()
        assert torch.equal(together[row].get_state(), alone[row].get_state()), "a generator was moved by other rows"
    assert not torch.equal(drawn[0], draw_distinct(together, count, taken, wanted)[0]), "generators move on"


def test_rows_that_run_out_of_proposals_are_drawn_as_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    import sah.sparse_attention.randomness as module

    monkeypatch.setattr(module.math, "ceil", lambda _: -4)
    count, wanted, taken = torch.full((40, 1), 12), torch.full((40, 1), 4), torch.empty(40, 1, 0, dtype=torch.long)
    together = draw_distinct([generator_for(row) for row in range(40)], count, taken, wanted)
    ways = set()
    for row in range(40):
        generator = generator_for(row)
        assert torch.equal(draw_distinct([generator], count[:1], taken[:1], wanted[:1])[0], together[row])
        proposed = generator_for(row)
        torch.rand(4, 1, generator=proposed, dtype=torch.float64)
        ways.add(torch.equal(proposed.get_state(), generator.get_state()))
    assert ways == {True, False}, "some rows run out of proposals, some do not"


@pytest.mark.parametrize("share", [0, 10**6], ids=["by sorting", "by a table"])
@pytest.mark.parametrize(("count", "width"), [(1, 1), (3, 12), (50, 12), (4000, 60)])
def test_first_entries_are_told_from_repeated_ones(
    share: int, count: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sah.sparse_attention.randomness as module

    monkeypatch.setattr(module, "TABLE_SHARE", share)
    numbers = torch.randint(-1, count, (5, width), generator=torch.Generator().manual_seed(count))
    numbers[0, -1] = count - 1
    expected = [[number not in row[:place] for place, number in enumerate(row)] for row in numbers.tolist()]
    assert module._is_first(numbers, count).tolist() == expected


@pytest.mark.parametrize("lists", [2, 6])
def test_what_is_left_of_lists_is_what_is_left_of_the_mask(lists: int) -> None:
    """Rows that read prefixes of different lengths."""
    shape, lengths = (3, 6, 1, 90), torch.tensor([90, 71, 64])
    order = torch.rand(3, lists, 50, generator=torch.Generator().manual_seed(0)).argsort(-1)[..., :9].unsqueeze(2) + 5
    used = (torch.arange(9) < torch.tensor([9, 4, 0]).view(3, 1, 1, 1)).expand(order.shape).float()
    previous = Mask.from_spans(shape, ((0, 5), (57, 61))).extend(KeyLists(order, used))
    allowed = (torch.arange(90) < lengths.unsqueeze(-1))[:, None, None]
    wanted = torch.full((3, lists, 1), 8)
    pools = [
        make([generator_for(row) for row in range(3)])
        for make in (
            lambda generators: pool_of_lists(previous, lengths, lists, generators),
            lambda generators: pool_of_mask(previous, allowed, lists, generators),
        )
    ]
    drawn = [pool.draw(wanted) for pool in pools]
    # Lists keep their keys in another order than the mask, and that of the draw follows from the numbers alone.
    assert torch.equal(pools[0].size, pools[1].size)
    assert torch.equal(drawn[0][0], drawn[1][0])
    assert torch.equal(drawn[0][1], drawn[1][1])
    assert torch.equal(drawn[0][2].size, pools[0].size - 8)
    assert bool((drawn[0][0] < lengths.view(3, 1, 1, 1)).all())


class LargestResult(TorchDispatchMode):
    """Records the most entries of any tensor that an operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.entries = max(self.entries, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


@pytest.mark.parametrize("selection", ["head", "group"])
@pytest.mark.parametrize("name", ["random", "adaptive"])
def test_decoding_builds_nothing_of_the_size_of_all_keys_and_heads(name: str, selection: str) -> None:
    heads, kv_len = 12, 20_000
    inputs = make_inputs(Shape(6, 1, False, F32, kv_len, head_dim=4), batch=1)
    inputs.queries[:] *= 0.1
    if name == "random":
        sampler: Any = RandomSamplingMaskerConfig(sampling_rate=100, selection=selection)
    else:
        sampler = AdaptiveSamplingMaskerConfig(base_rate=100, epsilon=0.5, selection=selection)
    (masker,) = efficient([sampler]).maskers
    previous = Mask.from_spans((1, heads, 1, kv_len), ((0, 4), (kv_len - 64, kv_len)))
    inputs = Inputs(inputs.queries, inputs.keys, inputs.values, torch.ones_like(inputs.allowed), inputs.scaling)
    with LargestResult() as largest:
        mask = masker.add_indices(*inputs.tensors(), inputs.scaling, 0.0, {}, previous, layer_idx=0)
    assert mask.count(inputs.allowed).unique().tolist() == [168]
    given = max(tensor.numel() for tensor in inputs.tensors())
    assert largest.entries <= given, "the keys themselves are seen, as views"
    own = [part.indices.numel() for part in mask.lists]
    assert max(own) <= heads * 100


def test_a_group_shares_one_draw() -> None:
    inputs = make_inputs(Shape(4, 1, False, F32, 300))
    recipe = [SinkMaskerConfig(), RandomSamplingMaskerConfig(sampling_rate=30, selection="group")]
    mask = efficient(recipe).build_mask(*inputs.tensors(), inputs.scaling, 0.0, {}, layer_idx=0)
    assert mask.lists[-1].indices.shape == (2, 2, 1, 30)
    kept = mask.to_dense().view(2, 2, 4, 1, 300)
    assert torch.equal(kept[:, :, :1].expand_as(kept), kept)
    assert not torch.equal(kept[:, 0], kept[:, 1]), "KV heads draw apart"
    assert torch.equal(mask.to_dense(), inclusion_of(research(recipe), inputs))


def test_a_group_draws_no_key_that_any_of_its_heads_keeps() -> None:
    """Only a masker called by itself meets such a mask: recipes refuse it."""
    inputs = make_inputs(Shape(3, 1, False, F32, 40))
    shape = (2, 6, 1, 40)
    previous = Mask.from_dense(shape, torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.2)
    (masker,) = research([RandomSamplingMaskerConfig(sampling_rate=5, selection="group")]).maskers
    mask = masker.add_mask(*inputs.tensors(), inputs.scaling, 0.0, {}, previous, layer_idx=0).to_dense()
    kept = previous.to_dense() > 0
    drawn = (mask > 0) & ~kept
    assert (drawn.sum(-1) == 5).all()
    any_kept = kept.view(2, 2, 3, 1, 40).any(2, keepdim=True).expand(-1, -1, 3, -1, -1).reshape(shape)
    assert not (drawn & any_kept).any()
    left = 40 - any_kept.sum(-1, keepdim=True)
    assert torch.equal(mask[drawn], (5 / left.double()).float().expand(shape)[drawn])


@pytest.mark.parametrize("selection", ["head", "group"])
@pytest.mark.parametrize("q_len", [1, 4])
def test_padding_does_not_change_what_is_drawn(selection: str, q_len: int) -> None:
    plain = make_inputs(Shape(3, q_len, False, F32, 50), batch=1)
    padded = Inputs(
        plain.queries,
        torch.cat([plain.keys[:, :, :7], plain.keys], 2),
        torch.cat([plain.values[:, :, :7], plain.values], 2),
        torch.cat([torch.zeros(1, 1, q_len, 7, dtype=torch.bool), plain.allowed], 3),
        plain.scaling,
    )
    recipe = [SinkMaskerConfig(), RandomSamplingMaskerConfig(density=0.4, selection=selection)]
    expected = inclusion_of(research(recipe), plain)
    for make in EXECUTIONS.values():
        assert torch.equal(inclusion_of(make(recipe), padded)[..., 7:], expected)
