"""Milliseconds a decoded token, dense and sparse in turn, split into attention, selection and the rest.

    python -m benchmarks.decode [--tokens 8000] [--new-tokens 16] [--repeats 3] [--density 0.05]
                                [--model embedded:smollm2-135m-instruct]

One thread, medians over tokens and rounds. All arms decode the same ids over one prefilled context.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict

import torch

from benchmarks.adapter import QUESTIONS, context_of
from sah.adapters.factory import create_adapter
from sah.adapters.timing import ArmTimes, time_decoding
from sah.errors import SahError
from sah.report.timing import timed_point, verdict
from sah.sparse_attention import EfficientAttentionConfig, QuestTopKMaskerConfig, StreamingLLMMaskerConfig

COLUMNS = ["milliseconds a token", "CPU", "attention", "selection", "rest", "wall", "density", "state ms"]
DENSE = {"own": "dense, own attention", "grouped": "dense, grouped"}


def methods(density: float) -> dict[str, EfficientAttentionConfig]:
    """The sparse arms by name."""
    return {
        "quest": EfficientAttentionConfig([QuestTopKMaskerConfig(density=density)]),
        "quest (group)": EfficientAttentionConfig([QuestTopKMaskerConfig(density=density, selection="group")]),
        "streaming_llm": EfficientAttentionConfig([StreamingLLMMaskerConfig(density=density)]),
    }


def line(name: str, arm: ArmTimes) -> list[str]:
    """Write the figures of one arm, in the order of `COLUMNS`."""
    cpu = arm.cpu
    times = [f"{value:.2f}" for value in (cpu.token, cpu.attention, cpu.selection, cpu.rest, arm.wall.token)]
    density = "-" if arm.density is None else f"{arm.density:.4f}"
    return [name, *times, density, f"{1000 * arm.state_seconds:.1f}"]


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=8000, help="length of the context")
    parser.add_argument("--new-tokens", type=int, default=16, help="tokens that each arm decodes in a round")
    parser.add_argument("--repeats", type=int, default=3, help="timed rounds")
    parser.add_argument("--density", type=float, default=0.05)
    parser.add_argument("--model", default="embedded:smollm2-135m-instruct")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        dense = create_adapter(options.model)
        sparse = {name: dense.with_sparse_attention(config) for name, config in methods(options.density).items()}
        cache = dense.prefill(context_of(dense, options.tokens))
        timed = time_decoding(dense, sparse, cache, QUESTIONS[0], new_tokens=options.new_tokens, rounds=options.repeats)
    except SahError as error:
        raise SystemExit(str(error)) from None
    print(
        f"{options.model}, context {timed.context_tokens} tokens, question {timed.question_tokens}, "
        f"{len(timed.token_ids)} new tokens, rounds {timed.rounds}, density {options.density:g}, one thread"
    )
    for name, *cells in [COLUMNS, *(line(DENSE.get(name, name), arm) for name, arm in timed.arms.items())]:
        print(f"{name:22}{''.join(f'{cell:>11}' for cell in cells)}")
    figures = {"arms": {name: asdict(arm) for name, arm in timed.arms.items()}}
    for name in sparse:
        print(f"{verdict(name, timed_point(figures, name, 'cpu'))}.")


if __name__ == "__main__":
    main()
