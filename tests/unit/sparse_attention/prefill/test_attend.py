"""The fast form of every pattern equals the plain masked form over what it says it keeps, and does less."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sah.sparse_attention import (
    AShapeConfig,
    BlockTopKConfig,
    PrefillConfig,
    PrefillPattern,
    VerticalSlashConfig,
)
from sah.sparse_attention.kernels.masked import masked_attention
from tests.support.attention import Inputs, Shape, causal, make_inputs, sdpa

F32, BF16 = torch.float32, torch.bfloat16
PATTERNS: dict[str, Callable[[], PrefillConfig]] = {
    "a_shape": AShapeConfig,
    "a_shape-sizes": lambda: AShapeConfig(sink_size=7, window_size=150),
    "a_shape-shares": lambda: AShapeConfig(sink_size=0, window_size=0.2),
    "vertical_slash": VerticalSlashConfig,
    "vertical_slash-fine": lambda: VerticalSlashConfig(density=0.3, block_size=16, last_queries=7),
    "vertical_slash-sizes": lambda: VerticalSlashConfig(vertical_size=0.1, slash_size=70, block_size=32),
    "block_topk": BlockTopKConfig,
    "block_topk-group": lambda: BlockTopKConfig(density=0.4, block_size=16, selection="group"),
    "block_topk-blocks": lambda: BlockTopKConfig(blocks=3, block_size=33),
    "block_topk-coverage": lambda: BlockTopKConfig(coverage=0.6, block_size=32),
    "block_topk-antidiagonal": lambda: BlockTopKConfig(density=0.3, block_size=32, estimator="antidiagonal", stride=4),
    "block_topk-antidiagonal-group": lambda: BlockTopKConfig(
        coverage=0.7, block_size=16, estimator="antidiagonal", stride=8, selection="group"
    ),
}
DENSE: dict[str, Callable[[], PrefillConfig]] = {
    "a_shape": lambda: AShapeConfig(density=1.0),
    "a_shape-window": lambda: AShapeConfig(window_size=5000),
    "vertical_slash": lambda: VerticalSlashConfig(density=1.0),
    "vertical_slash-sizes": lambda: VerticalSlashConfig(vertical_size=0, slash_size=1.0),
    "vertical_slash-verticals": lambda: VerticalSlashConfig(vertical_size=1.0, slash_size=0),
    "block_topk": lambda: BlockTopKConfig(density=1.0, block_size=32),
    "block_topk-blocks": lambda: BlockTopKConfig(blocks=5000),
    "block_topk-coverage": lambda: BlockTopKConfig(coverage=1.0, selection="group", estimator="antidiagonal"),
}
SHAPES = [
    Shape(1, 1, False, F32, 1, kv_heads=1, head_dim=8),
    Shape(3, 63, False, BF16, 63, head_dim=8),
    Shape(4, 129, False, F32, 129, kv_heads=1, head_dim=8),
    Shape(3, 1000, False, F32, 1000, kv_heads=1, head_dim=8),
    Shape(1, 200, False, BF16, 333, head_dim=8),
    Shape(3, 5, False, F32, 300, head_dim=8),
]


def built(config: PrefillConfig) -> PrefillPattern:
    return PrefillPattern.create_from_config(config)


def attend(pattern: PrefillPattern, inputs: Inputs, **kwargs: Any) -> tuple[torch.Tensor, float]:
    return pattern.attend(inputs.queries, inputs.keys, inputs.values, inputs.scaling, **kwargs)


def check_against_plain(pattern: PrefillPattern, inputs: Inputs, **kwargs: Any) -> None:
    kept = pattern.keep(inputs.queries, inputs.keys, inputs.scaling)
    allowed = causal(inputs.queries.shape[2], inputs.keys.shape[2])
    assert not (kept & ~allowed).any()
    assert kept.any(-1).all()
    plain, _ = masked_attention(inputs.queries, inputs.keys, inputs.values, kept.float(), inputs.scaling, **kwargs)
    output, density = attend(pattern, inputs, **kwargs)
    assert output.dtype == inputs.queries.dtype
    torch.testing.assert_close(output, plain, atol=1e-5 if output.dtype == F32 else 2e-2, rtol=1e-4)
    assert density == pytest.approx(float(kept.sum()) / float(allowed.sum()) / (kept.shape[0] * kept.shape[1]))


# Pairwise: each pattern meets one half of the shapes, the long one or the later chunk.
CASES = [
    pytest.param(name, shape, id=f"{name}-{shape}")
    for place, name in enumerate(PATTERNS)
    for shape in SHAPES[place % 2 :: 2]
]


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_attend_equals_the_plain_form(name: str, shape: Shape) -> None:
    with torch.inference_mode():
        check_against_plain(built(PATTERNS[name]()), make_inputs(shape, batch=1))


@pytest.mark.parametrize("shape", [SHAPES[2], SHAPES[4]], ids=str)
@pytest.mark.parametrize("name", ["a_shape", "vertical_slash-fine", "block_topk-group", "block_topk-coverage"])
def test_learned_sinks_and_softcap_are_honoured(name: str, shape: Shape) -> None:
    inputs = make_inputs(shape)
    sinks = torch.linspace(-1, 3, inputs.queries.shape[1])
    pattern = built(PATTERNS[name]())
    for given in ({"sinks": sinks}, {"softcap": 1.5}, {"sinks": sinks, "softcap": 1.5}):
        check_against_plain(pattern, inputs, **given)
        assert not torch.allclose(attend(pattern, inputs, **given)[0], attend(pattern, inputs)[0], atol=1e-2)


@pytest.mark.parametrize("shape", SHAPES[:5], ids=str)
@pytest.mark.parametrize("name", DENSE)
def test_a_full_budget_is_dense(name: str, shape: Shape) -> None:
    inputs = make_inputs(shape, batch=1)
    output, density = attend(built(DENSE[name]()), inputs)
    assert density == 1.0
    tolerance = 1e-5 if shape.dtype == F32 else 2e-2
    torch.testing.assert_close(output.float(), sdpa(inputs), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", PATTERNS)
def test_nothing_behind_a_query_moves_its_output(name: str) -> None:
    """Values never decide what is read, and keys of later blocks only where lines are read off the last queries."""
    pattern = built(PATTERNS[name]())
    inputs = make_inputs(Shape(3, 500, False, F32, 500, kv_heads=1, head_dim=8), batch=1)
    cut = 297
    before = attend(pattern, inputs)[0]
    inputs.values[:, :, cut:] += 100
    if name.startswith("a_shape"):
        inputs.keys[:, :, cut:] *= -9
    elif name.startswith("block_topk"):
        # The block that the cut falls into is estimated as a whole.
        cut = cut // pattern.config.block_size * pattern.config.block_size
        inputs.keys[:, :, cut:] *= -9
        inputs.queries[:, :, cut:] *= -9
    after = attend(pattern, inputs)[0]
    torch.testing.assert_close(after[:, :, :cut], before[:, :, :cut], atol=1e-6, rtol=1e-5)
    assert (after[:, :, cut:] - before[:, :, cut:]).abs().amax() > 1


@pytest.mark.parametrize("name", ["vertical_slash", "block_topk", "block_topk-antidiagonal-group"])
def test_a_batch_equals_its_sequences_alone(name: str) -> None:
    pattern = built(PATTERNS[name]())
    inputs = make_inputs(Shape(2, 150, False, F32, 210, head_dim=8))
    together, density = attend(pattern, inputs)
    alone = [
        attend(pattern, Inputs(*(part[row : row + 1] for part in inputs.tensors()), inputs.scaling)) for row in (0, 1)
    ]
    torch.testing.assert_close(together, torch.cat([output for output, _ in alone]))
    assert density == pytest.approx(sum(share for _, share in alone) / 2)
    torch.testing.assert_close(attend(pattern, inputs)[0], together, atol=0, rtol=0)


class LargestTensor(TorchDispatchMode):
    """Notes the size of the largest tensor that is made."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for part in result if isinstance(result, tuple | list) else (result,):
            if isinstance(part, torch.Tensor):
                self.numbers = max(self.numbers, part.numel())
        return result


@pytest.mark.parametrize("name", ["a_shape", "vertical_slash", "block_topk", "block_topk-antidiagonal"])
def test_nothing_is_made_of_the_size_of_all_pairs(name: str) -> None:
    heads, length, head_dim = 4, 2048, 8
    inputs = make_inputs(Shape(2, length, False, F32, length, head_dim=head_dim), batch=1)
    for given in ({}, {"sinks": torch.zeros(heads)}):
        with LargestTensor() as largest:
            attend(built(PATTERNS[name]()), inputs, **given)
        assert 0 < largest.numbers <= heads * length * length / 30
