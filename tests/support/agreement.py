"""Compares both executions of a recipe step by step, and shows of every difference that it is a tie."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from sah.sparse_attention import (
    AdaptiveSamplingMaskerConfig,
    EfficientAttention,
    EfficientAttentionConfig,
    Mask,
    ResearchAttention,
    ResearchAttentionConfig,
)
from sah.sparse_attention.maskers.adaptive import AdaptiveSamplingMasker
from sah.sparse_attention.maskers.double_sparsity import DoubleSparsityTopKMasker
from sah.sparse_attention.maskers.quest import QuestTopKMasker
from sah.sparse_attention.maskers.topk import OracleTopK
from sah.sparse_attention.maskers.topp import TopPMasker
from tests.support.attention import Inputs, attend

TOLERANCE = 1e-4
"""Largest difference of outputs that counts as none."""

TIE = 1e-5
"""Largest gap between the scores of keys that both executions may choose between."""


class Pair:
    """Both executions of a recipe, each with a state of its own that is carried from step to step.

    Args:
        recipe: Makes the masker configs.
        equip: Called with each attention, to give it calibrated channels.
    """

    def __init__(self, recipe: Callable[[], list[Any]], equip: Callable[[Any], Any] = lambda _: None) -> None:
        self.equip = equip
        self.research = ResearchAttention(ResearchAttentionConfig(recipe()))
        self.efficient = EfficientAttention(EfficientAttentionConfig(recipe()))
        for attention in (self.research, self.efficient):
            equip(attention)
        self.steps = 0
        self.exceptions = 0

    def step(self, inputs: Inputs, metas: tuple[Any, Any], layer_idx: int = 0, **passed_on: Any) -> torch.Tensor:
        """Run one decode step of every batch row in both executions.

        Args:
            inputs: With one query a row that may read every key.
            metas: The `sparse_meta_data` of both.
            layer_idx: The layer.
            **passed_on: What the model passes on.

        Returns:
            The output of the efficient execution, (batch, heads, 1, value_dim).

        Raises:
            AssertionError: If the outputs of a row differ and that is no tie.
        """
        outputs = [
            attend(attention, inputs, meta, layer_idx=layer_idx, **passed_on)
            for attention, meta in zip((self.research, self.efficient), metas, strict=True)
        ]
        assert torch.isfinite(outputs[1]).all()
        apart = (outputs[0] - outputs[1]).abs().flatten(1).amax(-1) > TOLERANCE
        self.steps += len(apart)
        self.exceptions += int(apart.sum())
        if bool(apart.any()):
            self.explain(inputs, metas, apart, layer_idx, **passed_on)
        return outputs[1]

    def explain(
        self, inputs: Inputs, metas: tuple[Any, Any], apart: torch.Tensor, layer_idx: int, **passed_on: Any
    ) -> None:
        """Find the masker in which the rows that are apart begin to differ, and check that it had a tie."""
        shape = (*inputs.queries.shape[:3], inputs.keys.shape[2])
        masks = [Mask.empty(shape), Mask.empty(shape)]
        given = (*inputs.tensors(), inputs.scaling, 0.0)
        unexplained = apart.clone()
        for plain, fast in zip(self.research.recipe_of(layer_idx), self.efficient.recipe_of(layer_idx), strict=True):
            before = masks[0]
            masks = [
                plain.add_mask(*given, metas[0], masks[0], layer_idx=layer_idx, **passed_on),
                fast.add_indices(*given, metas[1], masks[1], layer_idx=layer_idx, **passed_on),
            ]
            inclusion = [mask.to_dense().expand(shape) for mask in masks]
            for row in unexplained.nonzero().flatten().tolist():
                if torch.equal(inclusion[0][row], inclusion[1][row]):
                    continue
                if isinstance(plain, AdaptiveSamplingMasker):
                    assert_promise_is_tied(plain, given, metas[0], before, inclusion[1][row], row, layer_idx, passed_on)
                else:
                    kept = [x[row, :, 0] > 0 for x in inclusion]
                    scores = true_scores(plain, inputs, layer_idx, passed_on.get("softcap"))
                    assert_tied(plain, kept[0], kept[1], scores[row, :, 0])
                unexplained[row] = False
        assert not unexplained.any(), "the masks are equal, the outputs are not"


def assert_tied(masker: Any, left: torch.Tensor, right: torch.Tensor, scores: torch.Tensor) -> None:
    """Check that the keys in which two choices differ tie at the threshold.

    Args:
        masker: It chose.
        left: Kept keys, (heads, kv_len).
        right: The same of the other execution.
        scores: What the masker goes by, (heads, kv_len).
    """
    for head in (left != right).any(-1).nonzero().flatten().tolist():
        differing = left[head] != right[head]
        sizes = left[head].sum(), right[head].sum()
        if isinstance(masker, TopPMasker) and sizes[0] != sizes[1]:
            fewer = min(float(scores[head, kept].sum()) for kept in (left[head], right[head]))
            gap = abs(fewer - masker.config.top_p)
        else:
            assert sizes[0] == sizes[1], f"{masker.key}: {sizes[0]} and {sizes[1]} keys in head {head}"
            gap = float(scores[head, differing].max() - scores[head, differing].min())
        assert gap < TIE, f"{masker.key}: keys with scores {gap:.3g} apart in head {head}"


def assert_promise_is_tied(
    masker: AdaptiveSamplingMasker,
    given: tuple[Any, ...],
    meta: dict[Any, Any],
    before: Mask,
    expected: torch.Tensor,
    row: int,
    layer_idx: int,
    passed_on: dict[str, Any],
) -> None:
    """Check that a promise moved by the tie's width asks for as many keys as the other execution drew."""
    found = []
    for factor in (1 - TIE, 1 + TIE):
        config = masker.config
        assert isinstance(config, AdaptiveSamplingMaskerConfig)
        moved = dataclasses.replace(config, epsilon=config.epsilon * factor)
        twin = AdaptiveSamplingMasker(moved, masker.key, masker.seed)
        mask = twin.add_mask(*given, meta, before, layer_idx=layer_idx, **passed_on)
        found.append(torch.equal(mask.to_dense().expand(mask.shape)[row], expected))
    assert any(found), f"{masker.key}: both executions draw differently, and not for a promise that is nearly kept"


def true_scores(masker: Any, inputs: Inputs, layer_idx: int, softcap: float | None = None) -> torch.Tensor:
    """What a masker goes by, from its definition in double precision, (batch, heads, 1, kv_len).

    Args:
        masker: A masker that scores keys.
        inputs: With one query a row that may read every key.
        layer_idx: The layer.
        softcap: The model's cap on its logits.
    """
    queries, keys = inputs.queries.double(), inputs.keys
    heads, kv_heads = queries.shape[1], keys.shape[1]

    def per_head(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.double().repeat_interleave(heads // kv_heads, 1)

    if isinstance(masker, DoubleSparsityTopKMasker):
        labels = per_head(masker.derive(keys, None, layer_idx))
        scores = masker._of_queries(queries, keys, layer_idx) @ labels.mT * inputs.scaling
    elif isinstance(masker, QuestTopKMasker):
        size = masker.config.page_size
        starts = range(0, keys.shape[2], size)
        ends = [masker._rounded(p.amax(2), p.amin(2)) for p in (keys[:, :, k : k + size] for k in starts)]
        high, low = per_head(torch.stack(ends, dim=2)).chunk(2, dim=-1)
        scores = torch.maximum(queries * high, queries * low).sum(-1).unsqueeze(2) * inputs.scaling
    elif isinstance(masker, (OracleTopK, TopPMasker)):
        scores = queries @ per_head(keys).mT * inputs.scaling
    else:
        raise AssertionError(f"{masker.key} scores no keys, so that nothing can tie")
    if isinstance(masker, TopPMasker):
        capped = scores if softcap is None else softcap * torch.tanh(scores / softcap)
        scores = torch.softmax(capped, dim=-1)
    if masker.by_group:
        how = "mean" if isinstance(masker, TopPMasker) else masker.config.group_score
        grouped = (torch.softmax(scores, dim=-1) if how == "softmax_mean" else scores).unflatten(1, (kv_heads, -1))
        scores = per_head(grouped.amax(2) if how == "max" else grouped.mean(2))
    if isinstance(masker, QuestTopKMasker):
        scores = scores[..., torch.arange(keys.shape[2]) // masker.config.page_size]
    return scores
