"""What the adapter costs over a plain loop, and what further questions cost over the first.

    python -m benchmarks.adapter [--tokens 2000] [--repeats 3] [--model embedded:smollm2-135m-instruct]

One thread, CPU time, medians of interleaved rounds.
"""

from __future__ import annotations

import argparse
import pydoc_data.topics

import torch
from transformers import DynamicCache

from benchmarks.timing import interleaved
from sah.adapters.base import Request
from sah.adapters.factory import create_adapter
from sah.adapters.huggingface import ModelAdapterHF
from sah.sparse_attention import EfficientAttentionConfig, TopKMaskerConfig

QUESTIONS = [
    "\n\nDescribe at length what the text above is about.",
    "\n\nList every topic of the text above, one a line.",
    "\n\nExplain the text above to a beginner, step by step.",
]
NEW_TOKENS = 16


def context_of(adapter: ModelAdapterHF, tokens: int) -> str:
    """Cut the standard library's reference prose to a number of tokens."""
    prose = "\n".join(pydoc_data.topics.topics.values())
    ids = adapter.tokenizer(prose[: tokens * 10], add_special_tokens=False, verbose=False)["input_ids"][:tokens]
    return str(adapter.tokenizer.decode(ids))


@torch.no_grad()
def plain_loop(adapter: ModelAdapterHF, context: str, question: str) -> list[int]:
    """Answer with nothing but the model and its own cache: the loop that one would write by hand."""
    prompt = adapter.prompts.context_prompt(context)
    model, cache = adapter.model, DynamicCache(config=adapter.model.config)
    model(input_ids=torch.tensor([prompt.ids]), past_key_values=cache, use_cache=True, logits_to_keep=1)
    ids, answer = adapter.prompts.question_ids(prompt, question), []
    while len(answer) < NEW_TOKENS:
        logits = model(input_ids=torch.tensor([ids]), past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        ids = [int(logits[0, -1].argmax())]
        answer += ids
    return answer


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=2000, help="length of the context")
    parser.add_argument("--repeats", type=int, default=3, help="timed rounds")
    parser.add_argument("--model", default="embedded:smollm2-135m-instruct")
    options = parser.parse_args()
    dense = create_adapter(options.model)
    # An end token would make the arms differ in work; without one every answer has all its tokens.
    dense.model.generation_config.eos_token_id = -1
    sparse = dense.with_sparse_attention(EfficientAttentionConfig([TopKMaskerConfig(density=0.1)]))
    context = context_of(dense, options.tokens)

    def ask(adapter: ModelAdapterHF, count: int) -> list[str]:
        response = adapter.process_request(Request(context, QUESTIONS[:count], max_new_tokens=NEW_TOKENS))
        return list(response.responses)

    same = dense.tokenizer.decode(plain_loop(dense, context, QUESTIONS[0]), skip_special_tokens=True)
    if ask(dense, 1) != [same]:
        raise SystemExit("The adapter's dense answer differs from the plain loop's: no times are reported.")
    seconds = interleaved(
        {
            "plain loop, 1 question": lambda: plain_loop(dense, context, QUESTIONS[0]),
            "dense adapter, 1 question": lambda: ask(dense, 1),
            "dense adapter, 3 questions": lambda: ask(dense, 3),
            "topk 0.1 adapter, 1 question": lambda: ask(sparse, 1),
            "topk 0.1 adapter, 3 questions": lambda: ask(sparse, 3),
        },
        options.repeats,
    )
    print(f"{options.model}, context {options.tokens} tokens, {NEW_TOKENS} new tokens a question, one thread")
    for name, value in seconds.items():
        print(f"{name:32} {value:7.2f} CPU s")
    base = seconds["plain loop, 1 question"]
    print(f"dense adapter / plain loop: {seconds['dense adapter, 1 question'] / base:.3f}")
    for name in ("dense", "topk 0.1"):
        ratio = seconds[f"{name} adapter, 3 questions"] / seconds[f"{name} adapter, 1 question"]
        print(f"{name}: 3 questions / 1 question: {ratio:.3f}")


if __name__ == "__main__":
    main()
