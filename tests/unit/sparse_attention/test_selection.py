"""`selection: head` and `selection: group`: whose keys are whose, how scores are combined, and what is read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from sah.errors import ConfigError
from sah.sparse_attention import (
    AdaptiveSamplingMaskerConfig,
    DoubleSparsityTopKMaskerConfig,
    HashAttentionTopKMaskerConfig,
    LocalMaskerConfig,
    Mask,
    PQCacheConfig,
    QuestTopKMaskerConfig,
    RandomSamplingMaskerConfig,
    SinkMaskerConfig,
    SocketMaskerConfig,
    TopKMaskerConfig,
    TopPMaskerConfig,
)
from sah.sparse_attention.discovery import masker_configs
from sah.sparse_attention.grouping import any_of_group, combine_heads, keeps_by_group
from sah.sparse_attention.kernels import lists as kernel
from sah.sparse_attention.key_lists import KeyLists
from sah.sparse_attention.masker_config import GROUP, GROUP_SCORES, HEAD, SelectiveMaskerConfig
from tests.support.attention import (
    BF16,
    EXECUTIONS,
    F32,
    Inputs,
    Shape,
    assert_near,
    attend,
    causal,
    efficient,
    inclusion_of,
    make_inputs,
    naive_attention,
    research,
)

SELECTIVE: dict[str, Any] = {
    "topk": lambda **more: TopKMaskerConfig(density=0.3, **more),
    "topp": lambda **more: TopPMaskerConfig(top_p=0.6, **more),
    "quest": lambda **more: QuestTopKMaskerConfig(density=0.3, page_size=4, **more),
    "double_sparsity": lambda **more: DoubleSparsityTopKMaskerConfig(density=0.3, group_factor=2, **more),
    "hash_attention": lambda **more: HashAttentionTopKMaskerConfig(density=0.3, **more),
    "pqcache": lambda **more: PQCacheConfig(density=0.3, bits=3, **more),
    "socket": lambda **more: SocketMaskerConfig(density=0.3, planes=4, tables=12, **more),
    "random": lambda **more: RandomSamplingMaskerConfig(density=0.3, **more),
    "adaptive": lambda **more: AdaptiveSamplingMaskerConfig(base_rate=5, epsilon=0.5, delta=0.5, **more),
}
SCORED = ["topk", "quest", "double_sparsity", "hash_attention", "pqcache", "socket"]
selective = pytest.mark.parametrize("name", SELECTIVE)
SHAPES = [
    Shape(3, 1, False, F32, 64),
    Shape(4, 1, True, BF16, 63),
    Shape(3, 6, True, F32, 47),
    Shape(2, 12, False, F32, 12),
]


def test_every_masker_with_a_selection_is_looked_at_here() -> None:
    found = {name for name, config in masker_configs().items() if issubclass(config, SelectiveMaskerConfig)}
    assert found == set(SELECTIVE)


def by_kv_head(inclusion: torch.Tensor, group: int) -> torch.Tensor:
    return inclusion.unflatten(1, (-1, group))


@selective
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_heads_of_a_group_share_one_set(name: str, shape: Shape) -> None:
    """Alone and behind sink and local; heads of other KV heads have sets of their own, and so has each head alone."""
    inputs = make_inputs(shape)
    for before in ([], [SinkMaskerConfig(sink_size=2), LocalMaskerConfig(window_size=3)]):
        for make in EXECUTIONS.values():
            shared = by_kv_head(inclusion_of(make([*before, SELECTIVE[name](selection=GROUP)]), inputs), shape.group)
            assert (shared == shared[:, :, :1]).all()
            if before or (name == "pqcache" and shape.q_len == shape.kv_len):
                # Without a context there is nothing to learn codes from, and all keys score alike.
                continue
            assert not torch.equal(shared[:, 0], shared[:, 1])
            apart = by_kv_head(inclusion_of(make([*before, SELECTIVE[name](selection=HEAD)]), inputs), shape.group)
            assert not (apart == apart[:, :, :1]).all()


@selective
def test_with_one_head_a_group_both_are_the_same(name: str) -> None:
    for q_len in (1, 4):
        inputs = make_inputs(Shape(1, q_len, False, F32, 50))
        for make in EXECUTIONS.values():
            head = inclusion_of(make([SELECTIVE[name]()]), inputs)
            assert torch.equal(inclusion_of(make([SELECTIVE[name](selection=GROUP)]), inputs), head)
            for how in GROUP_SCORES if name in SCORED else ():
                assert torch.equal(
                    inclusion_of(make([SELECTIVE[name](selection=GROUP, group_score=how)]), inputs), head
                )


@pytest.mark.parametrize("how", GROUP_SCORES)
def test_scores_are_combined_as_said(how: str) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 6, 3, 10, generator=generator) * 3
    allowed = torch.rand(2, 1, 3, 10, generator=generator) < 0.7
    allowed[1, :, 2] = False
    combined = combine_heads(scores.clone(), 2, how, allowed)
    assert combined.shape == (2, 2, 3, 10)
    for b, g, q in torch.cartesian_prod(torch.arange(2), torch.arange(2), torch.arange(3)).tolist():
        readable = allowed[b, 0, q]
        rows = scores[b, 3 * g : 3 * g + 3, q, readable].double()
        if how == "softmax_mean":
            rows = torch.stack([torch.softmax(row, 0) for row in rows])
        expected = rows.amax(0) if how == "max" else rows.mean(0)
        assert torch.allclose(combined[b, g, q, readable].double(), expected, atol=1e-6)
    assert torch.isfinite(combined).all()
    every = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    assert torch.equal(combine_heads(scores, 2, how), combine_heads(scores, 2, how, every))


@pytest.mark.parametrize("name", ["topk", "quest", "double_sparsity"])
def test_the_way_of_combining_decides(name: str) -> None:
    """One head with a strong wish and two with a weak one: the loudest wins by max, the common wish by softmax."""
    inputs = make_inputs(Shape(3, 1, False, F32, 64, kv_heads=2), batch=1)
    inputs.keys *= 0.01
    inputs.queries[:] = 0
    inputs.queries[:, ::3, :, 0], inputs.queries[:, 1::3, :, 1], inputs.queries[:, 2::3, :, 1] = 100, 10, 10
    inputs.keys[:, :, 10, 0], inputs.keys[:, :, 10, 1] = 1, -20
    inputs.keys[:, :, 40, 1] = 4
    found = {}
    for how in GROUP_SCORES:
        size = {"heavy_size": 1, "group_score": how, "selection": GROUP}
        config = {
            "topk": lambda size=size: TopKMaskerConfig(**size),
            "quest": lambda size=size: QuestTopKMaskerConfig(page_size=1, **size),
            "double_sparsity": lambda size=size: DoubleSparsityTopKMaskerConfig(
                group_factor=1, label_bits=None, **size
            ),
        }[name]
        for make in EXECUTIONS.values():
            inclusion = inclusion_of(make([config()]), inputs)
            (kept,) = inclusion[0, :, 0].unique(dim=0)
            found.setdefault(how, []).append(kept.nonzero().squeeze(-1).tolist())
    assert found == {"mean": [[40], [40]], "max": [[10], [10]], "softmax_mean": [[40], [40]]}


def previous_mask(shape: tuple[int, int, int, int], lists: int) -> Mask:
    order = torch.rand(2, lists, shape[2], 40, generator=torch.Generator().manual_seed(4)).argsort(-1)
    return Mask.from_spans(shape, ((0, 3),)).extend(KeyLists(order[..., :6] + 3))


@pytest.mark.parametrize("name", ["quest", "double_sparsity", "random", "topk"])
@pytest.mark.parametrize("selection", [HEAD, GROUP])
@pytest.mark.parametrize("density", [0.001, 0.25, 0.9])
def test_a_density_is_the_target_of_the_whole_mask(name: str, selection: str, density: float) -> None:
    """Whatever is kept before: nothing, the same for a group, or keys of each head's own.

    Keys of each head's own count for a group as those that any of its heads keeps.
    """
    config = type(SELECTIVE[name]())(density=density, selection=selection)
    for q_len, padded in [(1, False), (1, True), (5, True)]:
        inputs = make_inputs(Shape(3, q_len, padded, F32, 60))
        shape = (2, 6, q_len, 60)
        count = inputs.allowed.sum(-1)
        target = torch.tensor([max(1, round(density * n)) for n in count.flatten().tolist()]).view_as(count)
        for previous in (Mask.empty(shape), previous_mask(shape, 2), previous_mask(shape, 6)):
            kept = (previous.to_dense() > 0) & inputs.allowed
            of_group = any_of_group(kept.expand(shape), 2 if selection == GROUP else 6).sum(-1)
            added = (target - of_group).clamp(min=0)
            expected = kept.expand(shape).sum(-1) + added.repeat_interleave(6 // added.shape[1], 1)
            for make in EXECUTIONS.values():
                (masker,) = make([config]).maskers
                for add in (masker.add_mask, masker.add_indices):
                    mask = add(*inputs.tensors(), inputs.scaling, 0.0, {}, previous, layer_idx=0)
                    assert torch.equal(mask.count(inputs.allowed).expand(shape[:3]), expected)


@selective
def test_a_group_reads_each_key_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are gathered for KV heads, never for each of their query heads; and keys are never repeated."""
    widths: dict[str, set[int]] = {HEAD: set(), GROUP: set()}
    gather = kernel.gather_rows
    inputs = make_inputs(Shape(4, 1, False, F32, 300), batch=1)
    for selection in (HEAD, GROUP):

        def noted(states: Any, indices: torch.Tensor, *more: Any, selection: str = selection, **options: Any) -> Any:
            widths[selection].add(indices.shape[1] // states.shape[1])
            return gather(states, indices, *more, **options)

        monkeypatch.setattr(kernel, "gather_rows", noted)
        config = SELECTIVE[name](selection=selection)
        recipe = [SinkMaskerConfig(), LocalMaskerConfig(window_size=8), config]
        output = attend(efficient(recipe), inputs)
        assert_near(output, naive_attention(inputs, inclusion_of(research(recipe), inputs)))
    assert widths[GROUP] == {1}
    assert 4 in widths[HEAD]


@selective
@pytest.mark.parametrize("selection", [HEAD, GROUP])
def test_masks_of_single_heads_are_obeyed(name: str, selection: str) -> None:
    """A mask that forbids one head what others of its group may read; the interface allows it."""
    for q_len in (1, 3):
        inputs = make_inputs(Shape(3, q_len, False, F32, 40))
        allowed = causal(q_len, 40).repeat(2, 6, 1, 1)
        allowed[:, 1, :, :8] = False
        inputs = replace(inputs, allowed=allowed)
        for before in ([], [SinkMaskerConfig(), LocalMaskerConfig(window_size=2)]):
            recipe = [*before, SELECTIVE[name](selection=selection)]
            inclusion = inclusion_of(research(recipe), inputs)
            assert not (inclusion[:, 1, :, :8] > 0).any()
            expected = naive_attention(inputs, inclusion)
            for make in EXECUTIONS.values():
                assert_near(attend(make(recipe), inputs), expected)


def test_reductions_to_kv_heads() -> None:
    flags = torch.tensor([[True, False], [False, False], [False, False], [False, True]])[None]
    assert any_of_group(flags, 2).tolist() == [[[True, False], [False, True]]]
    numbers = torch.tensor([[3, 5, 1, 2]])
    assert any_of_group(numbers, 2).tolist() == [[5, 2]]
    for unchanged in (numbers[:, :1], numbers[:, :2]):
        assert any_of_group(unchanged, 2) is unchanged


def test_what_keeps_by_group() -> None:
    shape = (1, 6, 1, 20)
    index = torch.zeros(1, 1, 1, 1, dtype=torch.long)
    for lists, expected in [(1, True), (2, True), (6, False)]:
        mask = Mask.from_spans(shape, ((3, 5),)).extend(KeyLists(index.expand(-1, lists, -1, -1)))
        assert keeps_by_group(mask, 2) == expected
    assert keeps_by_group(Mask.empty(shape), 2)
    assert keeps_by_group(Mask.from_dense(shape, torch.ones(1, 1, 1, 20)), 2)
    assert not keeps_by_group(Mask.from_dense(shape, torch.ones(1, 6, 1, 20)), 2)


@pytest.mark.parametrize("name", SELECTIVE)
def test_a_group_after_keys_of_single_heads_is_refused(name: str) -> None:
    """One list for the group would then not be what each of its heads lacks."""
    first = TopPMaskerConfig()
    with pytest.raises(ConfigError, match=rf"masker\.{name}\.selection=group comes after topp"):
        research([first, SELECTIVE[name](selection=GROUP)])
    research([first, SELECTIVE[name](selection=HEAD)])
    research([TopPMaskerConfig(selection=GROUP), SELECTIVE[name](selection=GROUP)])
    research([TopPMaskerConfig(layers=[0]), SELECTIVE[name](selection=GROUP, layers="1-")])


def test_inputs_are_grouped_by_neighbouring_heads() -> None:
    """Heads 0 to r-1 belong to the first KV head, as everywhere in transformers."""
    inputs = make_inputs(Shape(3, 1, False, F32, 30), batch=1)
    inputs.keys[:, 1] += 1000 * inputs.queries[:, 3:4, 0].sign()
    config = TopKMaskerConfig(heavy_size=4, selection=GROUP)
    changed = inclusion_of(research([config]), inputs)
    first = Inputs(inputs.queries[:, :3], inputs.keys[:, :1], inputs.values[:, :1], inputs.allowed, inputs.scaling)
    assert torch.equal(changed[:, :3], inclusion_of(research([config]), first))
