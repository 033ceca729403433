"""Oracle top-k and top-p against plain-Python definitions."""

from __future__ import annotations

import pytest
import torch

from sah.sparse_attention import LocalMaskerConfig, SinkMaskerConfig, TopKMaskerConfig, TopPMaskerConfig
from tests.support.attention import F32, SHAPES, Shape, causal, inclusion_of, make_inputs, research


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
