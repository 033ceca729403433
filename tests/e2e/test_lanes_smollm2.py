"""Forty lanes of SmolLM2 over one context of 512 tokens: each gives the logits that it gives alone."""

from __future__ import annotations

import pytest

from benchmarks.sweep_lanes import SETTINGS
from sah.adapters.factory import create_adapter
from sah.adapters.huggingface import ModelAdapterHF
from sah.adapters.lanes import Lane
from tests.e2e.test_agreement_smollm2 import NEEDLE, NOISE
from tests.support.lanes import assert_agree, run_alone, setting
from tests.support.models import end_tokens

pytestmark = pytest.mark.e2e

TOKENS, STEPS = 512, 8
QUESTIONS = [
    "Why",
    "\nWhat is the special magic number for quiet-harbor mentioned in the provided text?",
    "\nWhat colour is the sky?",
    "\nRead the text above once more with care, leave out everything on grass, sky and sun, and then write down in one "
    "short sentence which special magic number it gives, and for whom. The number is",
]


def settings_of(dense: ModelAdapterHF) -> list[ModelAdapterHF]:
    """Those that `benchmarks/sweep.py` measures."""
    return [setting(dense, recipe or None) for recipe in SETTINGS.values()]


def context_of(dense: ModelAdapterHF, tokens: int) -> str:
    """A text with a needle that leaves so many tokens in the cache."""
    words = f"Memorize the number.\n{NOISE * 9}{NEEDLE}{NOISE * 30}".split(" ")
    count = next(n for n in range(300, 600) if len(dense.prompts.context_prompt(" ".join(words[:n])).ids) >= tokens)
    return " ".join(words[:count])


def test_forty_lanes_agree_with_each_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """Every token of a lane, given the keys that its run alone has behind the context.

    A step is one call of one layer, of which a token has 30, each with 9 heads that choose. Left to themselves, all
    tokens behind a tie may differ: there the first query that keeps other keys has to tie.
    """
    dense = create_adapter("embedded:smollm2-135m-instruct")
    cache = dense.prefill(context_of(dense, TOKENS))
    assert cache.length == TOKENS
    assert len({len(dense.prompts.question_ids(cache.prompt, question)) for question in QUESTIONS}) == 4
    lanes = [Lane(own, question, max_new_tokens=STEPS) for own in settings_of(dense) for question in QUESTIONS]
    assert len(lanes) == 40
    with end_tokens(dense.model, [10**6]):
        alone = [run_alone(cache, lane) for lane in lanes]
        assert len({tuple(run.answer.token_ids) for run in alone}) > 10, "settings and questions differ"
        found = assert_agree(cache, lanes, alone, same_state=True)
        free = assert_agree(cache, lanes, alone)
    with capsys.disabled():
        ties = f"\n{len(found.ties)} of {found.steps} tokens have a tie, {len(free.ties)} have one or follow one"
        print(f"{ties}; {found.steps * dense.num_layers} steps")
    assert found.steps == free.steps == 40 * STEPS
    assert len(found.ties) <= 0.001 * found.steps * dense.num_layers
    assert len(free.ties) <= 0.1 * free.steps
    dense.close()
