"""Double Sparsity: top-k over each layer's and KV head's own channels, with labels rounded to a few bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sah.errors import ConfigError
from sah.sparse_attention import (
    DoubleSparsityTopKMaskerConfig,
    EfficientAttention,
    EfficientAttentionConfig,
    LocalMaskerConfig,
    ResearchAttention,
    ResearchAttentionConfig,
    SinkMaskerConfig,
    TopKMaskerConfig,
)
from sah.sparse_attention.labels import rounded_labels
from sah.sparse_attention.maskers.double_sparsity import DoubleSparsityTopKMasker
from tests.support.attention import BF16, EXECUTIONS, F32, Inputs, Shape, attend, efficient, inclusion_of, make_inputs

LAYERS, KV_HEADS, HEAD_DIM = 3, 2, 16
SHAPES = [
    Shape(3, 1, False, F32, 50),
    Shape(4, 1, True, F32, 37),
    Shape(1, 1, False, BF16, 64),
    Shape(3, 1, False, F32, 1),
    Shape(3, 6, True, F32, 45),
    Shape(2, 5, False, BF16, 41),
]


def order_of_channels(seed: int = 5) -> dict[int, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randperm(HEAD_DIM, generator=generator) for _ in range(LAYERS * KV_HEADS)]
    return {layer: torch.stack(rows[KV_HEADS * layer : KV_HEADS * (layer + 1)]) for layer in range(LAYERS)}


def made(execution: str, config: list[Any], order: dict[int, torch.Tensor] | None = None) -> Any:
    """An attention whose maskers read this order of channels."""
    built = {
        "research": lambda: ResearchAttention(ResearchAttentionConfig(config)),
        "efficient": lambda: EfficientAttention(EfficientAttentionConfig(config)),
    }[execution]()
    for masker in built.maskers:
        if getattr(masker, "needs_channels", False):
            masker.use_channels(order_of_channels() if order is None else order)
    return built


def naive_labels(row: torch.Tensor, bits: int | None) -> torch.Tensor:
    """Labels of one key: each entry moved to the nearest of 2^bits even steps from the smallest to the largest one."""
    if bits is None or row.max() == row.min():
        return row.double()
    low, high = float(row.min()), float(row.max())
    steps = torch.linspace(0, 1, 2**bits, dtype=torch.double) * (high - low) + low
    nearest = (row.double().unsqueeze(-1) - steps).abs().argmin(-1)
    return steps[nearest].to(row.dtype).double()


def naive_scores(inputs: Inputs, config: DoubleSparsityTopKMaskerConfig, layer: int) -> torch.Tensor:
    """Dot products over the chosen channels, key by key, (batch, heads, q_len, kv_len)."""
    group = inputs.queries.shape[1] // KV_HEADS
    width = max(1, HEAD_DIM // config.group_factor)
    order = order_of_channels()[layer]
    scores = torch.zeros(*inputs.queries.shape[:3], inputs.keys.shape[2], dtype=torch.double)
    for b in range(len(scores)):
        for kv_head in range(KV_HEADS):
            channels = order[kv_head, :width]
            labels = torch.stack([naive_labels(key[channels], config.label_bits) for key in inputs.keys[b, kv_head]])
            for head in range(kv_head * group, (kv_head + 1) * group):
                scores[b, head] = inputs.queries[b, head][:, channels].double() @ labels.T * inputs.scaling
    if config.selection == "group":
        grouped = scores.masked_fill(~inputs.allowed, float("-inf")).unflatten(1, (KV_HEADS, group))
        if config.group_score == "softmax_mean":
            grouped = torch.softmax(grouped, -1)
        combined = grouped.amax(2) if config.group_score == "max" else grouped.mean(2)
        scores = combined.repeat_interleave(group, 1)
    return scores


def naive_choice(scores: torch.Tensor, kept: torch.Tensor, allowed: torch.Tensor, wanted: int) -> torch.Tensor:
    residual = allowed.expand_as(kept) & ~kept
    place = scores.masked_fill(~residual, float("-inf")).argsort(-1, descending=True).argsort(-1)
    return kept | ((place < wanted) & residual)


CONFIGS: dict[str, dict[str, Any]] = {
    "paper": {"heavy_size": 6, "group_factor": 8},
    "own type": {"heavy_size": 5, "group_factor": 4, "label_bits": None},
    "one channel": {"heavy_size": 3, "group_factor": 16, "label_bits": None},
    "all channels": {"heavy_size": 7, "group_factor": 1, "label_bits": 6},
    "group": {"heavy_size": 6, "group_factor": 2, "label_bits": None, "selection": "group"},
    "group by max": {"heavy_size": 4, "group_factor": 4, "label_bits": 8, "selection": "group", "group_score": "max"},
    "group by softmax": {
        "heavy_size": 6, "group_factor": 2, "label_bits": 8, "selection": "group", "group_score": "softmax_mean"
    },
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_the_mask_follows_the_definition(shape: Shape, name: str) -> None:
    """Alone and behind other maskers, in every layer, in both executions; equal scores may choose either key."""
    inputs, config = make_inputs(shape), DoubleSparsityTopKMaskerConfig(**CONFIGS[name])
    before: list[list[Any]] = [[], [SinkMaskerConfig(sink_size=3), LocalMaskerConfig(window_size=4)]]
    for layer in range(LAYERS):
        scores = naive_scores(inputs, config, layer)
        for first in before:
            kept = torch.zeros(scores.shape, dtype=torch.bool)
            if first:
                kept = inclusion_of(made("research", first), inputs) > 0
            expected = naive_choice(scores, kept, inputs.allowed, config.heavy_size)
            for execution in EXECUTIONS:
                found = inclusion_of(made(execution, [*first, config]), inputs, layer_idx=layer) > 0
                assert torch.equal(found.sum(-1), expected.sum(-1))
                assert (found >= kept).all()
                highest = scores.masked_fill(found == expected, float("-inf")).amax(-1)
                lowest = scores.masked_fill(found == expected, float("inf")).amin(-1)
                tied = (found == expected).all(-1) | (highest - lowest < 1e-6)
                assert tied.all(), (execution, layer)
                if config.label_bits is None and config.group_factor < 64:
                    assert torch.equal(found, expected), (execution, layer)


def test_all_channels_unrounded_are_oracle_topk() -> None:
    for selection in ("head", "group"):
        inputs = make_inputs(Shape(3, 4, True, F32, 60))
        config = DoubleSparsityTopKMaskerConfig(density=0.3, group_factor=1, label_bits=None, selection=selection)
        oracle = TopKMaskerConfig(density=0.3, selection=selection)
        for execution, make in EXECUTIONS.items():
            expected = inclusion_of(make([oracle]), inputs)
            assert torch.equal(inclusion_of(made(execution, [config]), inputs), expected)


def test_each_kv_head_reads_its_own_channels() -> None:
    """A needle in a channel that only one KV head's labels hold is found by the heads of that one alone."""
    inputs = make_inputs(Shape(3, 1, False, F32, 80), batch=1)
    order = {0: torch.stack([torch.arange(16), torch.arange(16).flip(0)])}
    inputs.queries[..., 0] = 1
    inputs.keys[:, :, 33, 0] = 100
    config = DoubleSparsityTopKMaskerConfig(heavy_size=1, group_factor=8, label_bits=None)
    for execution in EXECUTIONS:
        kept = inclusion_of(made(execution, [config], order), inputs)[0, :, 0, 33]
        assert kept.tolist() == [1, 1, 1, 0, 0, 0]


def test_the_state_is_a_label_a_key() -> None:
    inputs = make_inputs(Shape(2, 1, False, BF16, 200), batch=1)
    for factor in (2, 8):
        meta: dict[Any, Any] = {}
        attend(made("efficient", [DoubleSparsityTopKMaskerConfig(density=0.1, group_factor=factor)]), inputs, meta)
        (state,) = meta[0].values()
        assert state.nbytes() == inputs.keys.nbytes / factor


def test_a_changed_setting_finds_no_foreign_context_state() -> None:
    def identity(**changed: Any) -> Any:
        config = DoubleSparsityTopKMaskerConfig(heavy_size=3, **changed)
        return DoubleSparsityTopKMasker(config, "0.double_sparsity").state_identity()

    others: list[dict[str, Any]] = [{"group_factor": 4}, {"label_bits": None}, {"channels": "some.safetensors"}]
    assert len({identity(), *(identity(**changed) for changed in others)}) == 4
    assert identity(selection="group", layers=[0]) == identity(), "labels do not depend on it"


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=["fp32", "bf16"])
def test_labels_are_rounded_to_even_steps_between_their_own_ends(bits: int, dtype: torch.dtype) -> None:
    labels = torch.randn(40, 12, generator=torch.Generator().manual_seed(bits)).to(dtype)
    low, high = labels.float().amin(-1, keepdim=True), labels.float().amax(-1, keepdim=True)
    step = (high - low) / (2**bits - 1)
    slack = 1e-5 if dtype is F32 else 0.02
    for direction, least, most in [(0, -0.5, 0.5), (1, 0.0, 1.0), (-1, -1.0, 0.0)]:
        rounded = rounded_labels(labels, bits, direction)
        assert rounded.dtype == dtype and rounded.shape == labels.shape
        moved = rounded.float() - labels.float()
        assert (moved >= least * step - slack).all() and (moved <= most * step + slack).all()
        if dtype is F32:
            places = (rounded - low) / step
            assert ((places - places.round()).abs() < 0.01).all() or bits == 16
            assert max(len(row.unique()) for row in rounded) <= 2**bits
        for end, there in ((low, labels.float() == low), (high, labels.float() == high)):
            assert ((rounded.float() - end)[there].abs() <= slack).all(), "the ends themselves stay"


def test_equal_and_single_labels_stay() -> None:
    for labels in (torch.full((3, 5), -7.25), torch.tensor([[3.5], [0.0]]), torch.zeros(2, 4)):
        for bits in (1, 4, 16):
            for direction in (0, 1, -1):
                assert torch.equal(rounded_labels(labels, bits, direction), labels)


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_a_layer_without_channels_is_an_error_that_says_what_to_do(execution: str) -> None:
    inputs = make_inputs(SHAPES[0])
    order = order_of_channels()
    config = DoubleSparsityTopKMaskerConfig(heavy_size=3)
    for given, layer in [({}, 0), ({0: order[0]}, 1)]:
        with pytest.raises(ConfigError) as caught:
            attend(made(execution, [config], given), inputs, layer_idx=layer)
        for part in ("masker.double_sparsity.channels", f"layer {layer}", "adapter", "safetensors"):
            assert part in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [("group_factor", v) for v in (0, -8, 1.5, "8", True, None)]
    + [("label_bits", v) for v in (0, 17, 4.0, True, "4")]
    + [("channels", v) for v in ("", "  ", 3, ["a.safetensors"])],
)
def test_bad_values_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        DoubleSparsityTopKMaskerConfig(**{field: value})
    for part in (f"masker.double_sparsity.{field}", repr(value), "Allowed:", f"masker.double_sparsity.{field}="):
        assert part in str(caught.value)
    built = DoubleSparsityTopKMaskerConfig()
    with pytest.raises(ConfigError):
        setattr(built, field, value)
    assert built == DoubleSparsityTopKMaskerConfig()


def test_more_groups_than_channels_are_refused() -> None:
    inputs = make_inputs(SHAPES[0])
    attention = efficient([DoubleSparsityTopKMaskerConfig(density=0.2, group_factor=17)])
    with pytest.raises(ConfigError, match="group_factor=17 is not allowed. Allowed: 1 to the model's head_dim of 16"):
        attend(attention, inputs)
