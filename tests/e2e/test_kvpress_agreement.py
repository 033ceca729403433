"""The evicting methods keep on SmolLM2 what kvpress's presses keep, as its golden files in tests/data/kvpress say.

`python -m experiments.kvpress_agreement` makes the files; kvpress is not needed here.
"""

from __future__ import annotations

import pytest
import torch

from experiments.kvpress_agreement.compare import TIE, SetComparison, compare_sets, largest_difference, means
from experiments.kvpress_agreement.golden import BUDGETS, FOLDER, KERNEL, SCORE_LAYERS, WINDOW, Golden, keys_of, load
from experiments.kvpress_agreement.ours import EXECUTIONS, kept, method_adapter, scores
from experiments.kvpress_agreement.texts import TEXTS
from sah.adapters.factory import create_adapter
from sah.adapters.huggingface import ModelAdapterHF
from tests.support import evicting

pytestmark = pytest.mark.e2e

LAYERS, KV_HEADS = 30, 3
SCORED = ("snapkv", "tova")
texts = pytest.mark.parametrize("name", TEXTS)


@pytest.fixture(scope="module")
def dense() -> ModelAdapterHF:
    return create_adapter("embedded:smollm2-135m-instruct")


def theirs(golden: Golden, method: str, budget: float) -> torch.Tensor:
    return golden.kept(method, budget, LAYERS, KV_HEADS)


def check(found: SetComparison, window_ties: bool = False) -> None:
    """Every set is the same, but where more keys are kept before all others than the budget holds."""
    assert found.unexplained == 0
    assert found.sets == LAYERS * KV_HEADS
    assert window_ties or found.identical == found.sets, f"{found.differing} of {found.keys} keys tie"


def beyond_budget(method: str, golden: Golden, budget: float) -> bool:
    return method == "snapkv" and keys_of(budget, len(golden.ids)) < WINDOW


@texts
def test_the_plain_form_keeps_the_same_keys_for_the_same_scores(dense: ModelAdapterHF, name: str) -> None:
    golden = load(name)
    seen = evicting.seen_by_layer(dense.model, golden.ids)
    found = {
        "snapkv": torch.stack([evicting.snapkv_scores(layer, WINDOW, KERNEL) for layer in seen]),
        "tova": torch.stack([evicting.tova_scores(layer) for layer in seen]),
    }
    for method, ours in found.items():
        assert largest_difference(ours[list(SCORE_LAYERS)], golden.scores(method, KV_HEADS)) <= TIE
        for budget in BUDGETS:
            chosen = torch.zeros_like(ours, dtype=torch.bool)
            chosen.scatter_(-1, evicting.largest(ours, keys_of(budget, len(golden.ids))), True)
            check(compare_sets(chosen, theirs(golden, method, budget), ours), beyond_budget(method, golden, budget))
    sums = torch.stack([evicting.h2o_scores(seen[layer]) for layer in SCORE_LAYERS])
    assert largest_difference(means(sums), golden.scores("h2o", KV_HEADS)) <= TIE


@texts
def test_both_executions_keep_what_kvpress_keeps(dense: ModelAdapterHF, name: str) -> None:
    golden = load(name)
    settings = [(method, budget) for method in (*SCORED, "streaming_llm") for budget in BUDGETS]
    adapters = {
        (execution, method, budget): method_adapter(dense, method, keys_of(budget, len(golden.ids)), execution)
        for execution in EXECUTIONS
        for method, budget in settings
    }
    h2o = method_adapter(dense, "h2o", 100)
    cache = dense.prefill(golden.text, observers=[*adapters.values(), h2o])
    assert cache.prompt.ids == golden.ids
    for (_, method, budget), adapter in adapters.items():
        started = scores(adapter, cache) if method in SCORED else None
        if started is not None:
            assert largest_difference(started[list(SCORE_LAYERS)], golden.scores(method, KV_HEADS)) <= TIE
        found = compare_sets(kept(adapter, cache), theirs(golden, method, budget), started)
        check(found, beyond_budget(method, golden, budget))
    averages = means(scores(h2o, cache)[list(SCORE_LAYERS)])
    assert largest_difference(averages, golden.scores("h2o", KV_HEADS)) <= TIE


def test_a_set_that_differs_by_more_than_a_tie_is_found() -> None:
    known = torch.tensor([0.5, 0.2, 0.2 * (1 + TIE / 2), 0.1, torch.inf, torch.inf])[None, None]
    ours = torch.tensor([True, True, False, False, True, True])[None, None]
    tie, other = torch.tensor([0, 2, 4, 5])[None, None], torch.tensor([0, 3, 4, 5])[None, None]
    assert compare_sets(ours, tie, known) == SetComparison(1, 0, 4, 1, 0)
    assert compare_sets(ours, other, known) == SetComparison(1, 0, 4, 1, 1)
    assert compare_sets(ours, tie) == SetComparison(1, 0, 4, 1, 2), "a pattern has no ties"
    with pytest.raises(ValueError, match="keeps"):
        compare_sets(ours, tie[..., :3], known)


def test_the_golden_files_are_small() -> None:
    files = list(FOLDER.glob("*.safetensors"))
    assert {file.stem for file in files} == set(TEXTS)
    assert sum(file.stat().st_size for file in files) < 500_000
