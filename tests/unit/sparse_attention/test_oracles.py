"""Oracle top-k and top-p against plain-Python definitions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sah.sparse_attention import LocalMaskerConfig, Mask, SinkMaskerConfig, TopKMaskerConfig, TopPMaskerConfig
from sah.sparse_attention.kernels.largest import BLOCK_NUMBERS, ascending, largest, strongest
from tests.support.attention import F32, SHAPES, Shape, causal, efficient, inclusion_of, make_inputs, research


def true_logits(inputs) -> torch.Tensor:
    keys = inputs.keys.double().repeat_interleave(inputs.queries.shape[1] // inputs.keys.shape[1], 1)
    logits = inputs.queries.double() @ keys.mT * inputs.scaling
    return logits.masked_fill(~inputs.allowed, float("-inf"))


@pytest.mark.parametrize("shape", [s for s in SHAPES if s.dtype is F32 and s.kv_len < 500], ids=str)
@pytest.mark.parametrize("heavy_size", [1, 6, 0.25])
def test_topk_adds_the_largest_of_the_residual(shape: Shape, heavy_size: float) -> None:
    inputs = make_inputs(shape)
    before = inclusion_of(research([SinkMaskerConfig(sink_size=3), LocalMaskerConfig(window_size=3)]), inputs) > 0
    recipe = [SinkMaskerConfig(sink_size=3), LocalMaskerConfig(window_size=3), TopKMaskerConfig(heavy_size=heavy_size)]
    after = inclusion_of(research(recipe), inputs) > 0
    logits = true_logits(inputs)
    for row in torch.cartesian_prod(*(torch.arange(n) for n in logits.shape[:3])).tolist():
        b, h, q = row
        residual = (logits[b, h, q] > float("-inf")) & ~before[b, h, q]
        allowed = int((logits[b, h, q] > float("-inf")).sum())
        size = heavy_size if isinstance(heavy_size, int) else max(1, round(heavy_size * allowed))
        best = logits[b, h, q].masked_fill(~residual, float("-inf")).topk(min(size, int(residual.sum()))).indices
        added = (after[b, h, q] & ~before[b, h, q]).nonzero().squeeze(-1)
        assert sorted(added.tolist()) == sorted(best.tolist())


@pytest.mark.parametrize("shape", [s for s in SHAPES if s.dtype is F32 and s.kv_len < 500], ids=str)
@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("before", ["alone", "after sink and local"])
def test_topp_keeps_the_fewest_keys_that_reach_the_total_mass(shape: Shape, top_p: float, before: str) -> None:
    inputs = make_inputs(shape)
    first = [] if before == "alone" else [SinkMaskerConfig(sink_size=2), LocalMaskerConfig(window_size=2)]
    kept_before = (
        inclusion_of(research(first), inputs) > 0
        if first
        else torch.zeros(*inputs.queries.shape[:3], shape.kv_len).bool()
    )
    kept = inclusion_of(research([*first, TopPMaskerConfig(top_p=top_p)]), inputs) > 0
    mass = torch.softmax(true_logits(inputs), -1)
    total, total_before = (mass * kept).sum(-1), (mass * kept_before).sum(-1)
    assert (total >= top_p - 1e-6).all()
    added = kept & ~kept_before
    # Without its lightest added key the mask would fall short, and no residual key left out is heavier than one taken.
    lightest = mass.masked_fill(~added, 2.0).amin(-1)
    some = added.any(-1)
    assert ((total - lightest)[some] < top_p + 1e-6).all()
    left_out = mass.masked_fill(kept | ~inputs.allowed, -1.0).amax(-1)
    assert (left_out[some] <= lightest[some] + 1e-6).all()
    assert ((total_before < top_p - 1e-6) <= some).all()
    assert (~some[total_before > top_p + 1e-6]).all()


def test_topp_counts_mass_that_is_kept_already() -> None:
    """The trap: 0.9 of the residual mass instead of 0.9 of all mass."""
    inputs = make_inputs(Shape(1, 1, False, F32, 10, kv_heads=1), batch=1)
    mass = torch.tensor([0.8, 0.04, 0.06, 0.05, 0.01, 0.01, 0.01, 0.01, 0.005, 0.005])
    inputs.queries[:] = 0
    inputs.queries[..., 0] = 1
    inputs.keys[..., 0] = mass.log() / inputs.scaling
    kept = inclusion_of(research([SinkMaskerConfig(sink_size=1), TopPMaskerConfig(top_p=0.9)]), inputs)
    assert kept[0, 0, 0].nonzero().squeeze(-1).tolist() == [0, 2, 3]
    enough = inclusion_of(research([SinkMaskerConfig(sink_size=1), TopPMaskerConfig(top_p=0.7)]), inputs)
    assert enough[0, 0, 0].nonzero().squeeze(-1).tolist() == [0]


def test_topp_of_equal_keys_takes_just_enough() -> None:
    inputs = make_inputs(Shape(1, 1, False, F32, 64, kv_heads=1), batch=1)
    inputs.keys[:] = 1
    for top_p, count in [(0.25, 16), (0.26, 17), (1 / 64, 1), (1.0, 64)]:
        kept = inclusion_of(research([TopPMaskerConfig(top_p=top_p)]), inputs)
        assert int((kept > 0).sum()) == count


def test_topp_under_a_softcap_uses_the_model_s_own_mass() -> None:
    inputs = make_inputs(Shape(2, 3, False, F32, 40), batch=1)
    inputs.queries *= 10
    capped = 2.0 * torch.tanh(true_logits(inputs) / 2.0)
    mass = torch.softmax(capped.masked_fill(~causal(3, 40), float("-inf")), -1)
    kept = inclusion_of(research([TopPMaskerConfig(top_p=0.6)]), inputs, softcap=2.0) > 0
    total = (mass * kept).sum(-1)
    assert (total >= 0.6 - 1e-6).all()
    assert ((total - mass.masked_fill(~kept, 2.0).amin(-1)) < 0.6).all()


class LargeResults(TorchDispatchMode):
    """Keeps every piece of memory above so many bytes that an operation's result lies in."""

    def __init__(self, above: int) -> None:
        super().__init__()
        self.above = above
        self.storages: dict[int, torch.UntypedStorage] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().nbytes() > self.above:
                self.storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return result


@pytest.mark.parametrize("selection", ["head", "group"])
def test_topp_at_decode_holds_nothing_but_masses_for_all_heads(selection: str) -> None:
    group, kv_heads, kv_len = 3, 4, 3000
    inputs = make_inputs(Shape(group, 1, False, F32, kv_len, kv_heads=kv_heads, head_dim=1), batch=1)
    (masker,) = efficient([TopPMaskerConfig(top_p=0.3, selection=selection)]).maskers
    lists = kv_heads * group if selection == "head" else kv_heads
    previous = Mask.from_spans((1, kv_heads * group, 1, kv_len), ((0, 4), (kv_len - 64, kv_len)))
    allowed = torch.ones(1, 1, 1, kv_len, dtype=torch.bool)
    with LargeResults(above=group * kv_len * 8) as large:
        mask = masker.add_indices(
            inputs.queries, inputs.keys, inputs.values, allowed, inputs.scaling, 0.0, {}, previous, layer_idx=0
        )
    assert mask.lists
    # A buffer that is used again has an eighth of room to grow.
    assert [storage.nbytes() for storage in large.storages.values()] == [lists * kv_len * 9]


@pytest.mark.parametrize("shape", [(7,), (3, 20), (2, 3, 1, 30), (5, BLOCK_NUMBERS // 2 - 1), (2, BLOCK_NUMBERS + 1)])
def test_the_largest_of_every_row_however_many_are_partitioned_at_once(shape: tuple[int, ...]) -> None:
    scores = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values, places = largest(scores, 5)
    assert places.shape == (*shape[:-1], 5)
    assert torch.equal(scores.gather(-1, places), values)
    assert torch.equal(values.sort(descending=True).values, scores.topk(5).values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_sorting_is_torch_s(dtype: torch.dtype) -> None:
    """Transposed, with equal scores and with those of keys that may not be chosen."""
    scores = torch.randn(30, 2, 4, generator=torch.Generator().manual_seed(0)).to(dtype).transpose(0, 2)
    scores[1, 0, 3:9], scores[2], scores[3, 1, ::2] = 0.5, float("-inf"), float("-inf")
    before = scores.clone()
    found = ascending(scores)
    assert found.dtype == dtype
    assert torch.equal(found, scores.sort(dim=-1).values)
    assert torch.equal(scores, before), "its argument is not sorted in place"


@pytest.mark.parametrize("equal", [False, True], ids=["no two equal", "many equal"])
def test_the_strongest_are_as_many_as_wanted_and_the_largest(equal: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(3, 4, 1, 20, generator=generator)
    if equal:
        values = (values * 2).round()
        values[0, 0] = 7.0
    values[2, 1, 0, 5:] = float("-inf")
    count = torch.randint(0, 21, (3, 4, 1), generator=generator)
    count[0, 0], count[0, 1], count[2, 1] = 3, 20, 5
    count[1, 0] = 0
    chosen = strongest(values, count)
    assert chosen.dtype == torch.bool
    assert torch.equal(chosen.sum(-1), count)
    weakest = values.masked_fill(~chosen, float("inf")).amin(-1)
    assert bool((values.masked_fill(chosen, float("-inf")).amax(-1) <= weakest).all())
    if not equal:
        for place in torch.cartesian_prod(torch.arange(3), torch.arange(4)).tolist():
            row, wanted = values[tuple(place)][0], int(count[tuple(place)])
            if float(row.amin()) > float("-inf"):
                best = row.topk(wanted).indices.tolist()
                assert chosen[tuple(place)][0].nonzero().flatten().tolist() == sorted(best)
