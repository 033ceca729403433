"""Compares the evicting methods with kvpress's presses on SmolLM2 and writes golden files and the page: see README.md.

python -m experiments.kvpress_agreement
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from experiments.kvpress_agreement import environment
from experiments.kvpress_agreement.compare import compare_sets, largest_difference, means
from experiments.kvpress_agreement.golden import (
    BUDGETS,
    FOLDER,
    KERNEL,
    SCORE_LAYERS,
    SINKS,
    WINDOW,
    Golden,
    keys_of,
    load,
)
from experiments.kvpress_agreement.ours import kept, method_adapter, scores
from experiments.kvpress_agreement.texts import TEXTS
from experiments.study import write_block
from sah.adapters.factory import create_adapter
from sah.adapters.huggingface import ModelAdapterHF

PAGE = Path(__file__).with_name("README.md")
MODEL = "embedded:smollm2-135m-instruct"
METHODS = ("snapkv", "tova", "streaming_llm")


def main() -> None:
    """Make the golden files, unless the stored ones are asked for, and compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--stored", action="store_true", help="compare with the golden files as they are; no kvpress")
    parser.add_argument("--golden", type=Path, default=FOLDER, help="where the golden files lie")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page that takes the result")
    options = parser.parse_args()
    torch.set_num_threads(1)
    adapter = create_adapter(MODEL)
    if not options.stored:
        make_golden(adapter, options.golden)
    lines = [
        "| context | keys | method | keys kept | sets identical | keys that differ | of them ties | scores differ by |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    further = []
    for name in TEXTS:
        golden = load(name, options.golden)
        lines += [f"| {name} | {len(golden.ids)} | {line} |" for line in rows(adapter, golden)]
        further += [f"- {name}, {line}" for line in further_lines(adapter, golden)]
    versions = ", ".join(
        f"{name} {version}" for name, version in sorted(load("needle", options.golden).versions.items())
    )
    text = "\n".join([f"kvpress's side: {versions}.", "", *lines, "", *further])
    write_block(options.page, "result", text)
    print(text)


def make_golden(adapter: ModelAdapterHF, folder: Path) -> None:
    """Let kvpress read every context and write what its presses keep."""
    folder.mkdir(parents=True, exist_ok=True)
    contexts = {}
    for name, text in TEXTS.items():
        ids = adapter.prompts.context_prompt(text).ids
        contexts[name] = {"text": text, "ids": ids, "keys": {f"{b:g}": keys_of(b, len(ids)) for b in BUDGETS}}
    job = {
        "model": adapter.model_name,
        "contexts": contexts,
        "window": WINDOW,
        "kernel": KERNEL,
        "sinks": SINKS,
        "score_layers": SCORE_LAYERS,
        "folder": str(folder.resolve()),
    }
    python = environment.ensure()
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "job.json"
        file.write_text(json.dumps(job), encoding="utf-8")
        environment.run([str(python), str(Path(__file__).with_name("presses.py")), str(file)])
    umask = os.umask(0)
    os.umask(umask)
    for name in TEXTS:
        (folder / f"{name}.safetensors").chmod(0o666 & ~umask)


def rows(dense: ModelAdapterHF, golden: Golden) -> Iterator[str]:
    """Compare every method at every budget with what kvpress keeps of a context."""
    settings = [(method, budget) for method in METHODS for budget in BUDGETS]
    keys = {budget: keys_of(budget, len(golden.ids)) for budget in BUDGETS}
    adapters = [method_adapter(dense, method, keys[budget]) for method, budget in settings]
    cache = dense.prefill(golden.text, observers=adapters)
    check_ids(cache.prompt.ids, golden)
    for (method, budget), adapter in zip(settings, adapters, strict=True):
        chosen, started, apart = kept(adapter, cache), None, "-"
        if method != "streaming_llm":
            started = scores(adapter, cache)
            theirs = golden.scores(method, chosen.shape[1])
            apart = f"{largest_difference(started[list(SCORE_LAYERS)], theirs):.1e}"
        found = compare_sets(chosen, golden.kept(method, budget, *chosen.shape[:2]), started)
        fast = method_adapter(dense, method, keys[budget], "efficient")
        if not torch.equal(kept(fast, cache), chosen):
            raise SystemExit(f"{method}: execution=efficient keeps other keys than execution=research")
        ties = "-" if not found.differing else "all" if not found.unexplained else f"all but {found.unexplained}"
        same = f"{found.identical} of {found.sets} | {found.differing} of {found.keys}"
        yield f"{method} | {keys[budget]} | {same} | {ties} | {apart}"


def further_lines(dense: ModelAdapterHF, golden: Golden) -> Iterator[str]:
    """Compare H2O's sums and keys with kvpress's averages, and see where the context's last key stands for TOVA."""
    keys = {budget: keys_of(budget, len(golden.ids)) for budget in BUDGETS}
    adapters = {budget: method_adapter(dense, "h2o", keys[budget]) for budget in BUDGETS}
    tova = method_adapter(dense, "tova", 1)
    cache = dense.prefill(golden.text, observers=[*adapters.values(), tova])
    sums = scores(adapters[BUDGETS[0]], cache)[list(SCORE_LAYERS)]
    theirs = golden.scores("h2o", sums.shape[1])
    yield f"H2O: sums made averages differ from kvpress's scores by {largest_difference(means(sums), theirs):.1e}"
    for budget, adapter in adapters.items():
        chosen = kept(adapter, cache)[list(SCORE_LAYERS)]
        same = chosen.gather(-1, theirs.topk(keys[budget], dim=-1).indices).float().mean()
        yield f"H2O: {same:.0%} of {keys[budget]} keys are among those with the largest averages"
    last = scores(tova, cache)
    place = int((last > last[..., -1:]).sum(-1).max()) + 1
    yield f"TOVA: the context's last key has place {place} of {len(golden.ids)} or a better one in every layer"


def check_ids(ids: list[int], golden: Golden) -> None:
    """Check that both sides read the same tokens."""
    if ids != golden.ids:
        raise SystemExit("The tokenizer gives other ids than those in the golden files. Run without --stored.")


if __name__ == "__main__":
    main()
