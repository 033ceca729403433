"""HashAttention's signatures on SmolLM2-135M-Instruct: trained on prose, they find the best keys of needle prompts."""

from __future__ import annotations

import pytest

from benchmarks.hash_recall import averages, needle_prompts, recalls
from sah.adapters.factory import create_adapter
from sah.adapters.hash_fit import FitOptions, fit_layer
from sah.adapters.hash_training import QUERY_EVERY, training_ids
from sah.adapters.recording import record_states

pytestmark = pytest.mark.e2e

LAYERS = (3, 26)
STEPS, BITS, MARGIN = 40, 32, 0.1


def test_learned_signatures_find_more_of_the_best_keys_than_random_planes(capsys: pytest.CaptureFixture[str]) -> None:
    adapter = create_adapter("embedded:smollm2-135m-instruct")
    states = record_states(adapter, training_ids(adapter)[0][:1024], every=QUERY_EVERY)
    options = FitOptions(BITS, STEPS, every=QUERY_EVERY)
    layers = {layer: fit_layer([states[layer]], layer, options) for layer in LAYERS}
    found = recalls(adapter, layers, BITS, needle_prompts(adapter, 1024, 1))
    with capsys.disabled():
        print(f"\nSmolLM2, {STEPS} steps, {BITS} bits, recall of the best keys of a needle prompt: {averages(found)}")
    for density, recall in averages(found).items():
        assert recall["learned"] > recall["random"] + MARGIN, density
    for layer, values in found.items():
        assert all(recall["learned"] > recall["random"] for recall in values.values()), layer
