"""Generates the examples of the needle-in-a-haystack task."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Sequence

from sah.data.example import Example, PromptCounter, Question
from sah.data.niah import wording
from sah.data.niah.config import NiahConfig, resolve_depths
from sah.data.niah.filling import largest_fitting
from sah.data.niah.haystack import Haystack, load_haystack
from sah.data.niah.layout import Needle, lay_out
from sah.data.niah.needles import draw_pairs
from sah.errors import DataError

FILL_FLOOR = 0.90
"""Smallest share of `dataset.length` that a prompt may fill."""
FILL_TARGET = 0.95
"""Whole lines, then whole sentences, are preferred as long as they fill this share."""
_CHARACTERS_PER_TOKEN = 4
_LENGTH_STEP = 64


def generate_examples(config: NiahConfig, count_tokens: PromptCounter, window: int | None) -> list[Example]:
    """Generate the examples that a config asks for.

    Args:
        config: The settings; not changed.
        count_tokens: Counts a prompt's tokens for the model at hand.
        window: Most tokens that the model takes, prompt and answer together; None when it sets no limit.

    Returns:
        `config.num_examples` examples with one question each.

    Raises:
        DataError: If `length` does not fit the window, or the needles do not fit into `length`.
        ModelError: If the essays are asked for and cannot be fetched.
    """
    check_window(config.length, config.max_new_tokens, window)
    haystack = load_haystack(config.haystack)
    return [generate_example(config, index, haystack, count_tokens) for index in range(config.num_examples or 0)]


def check_window(length: int, max_new_tokens: int | None, window: int | None) -> None:
    """Refuse prompts that leave no room for the answer.

    Args:
        length: Tokens of a prompt.
        max_new_tokens: Answer tokens, None when the run decides (one is then counted).
        window: Most tokens that the model takes; None when it sets no limit.

    Raises:
        DataError: If prompt and answer are longer than the window.
    """
    answer = max_new_tokens or 1
    if window is None or length + answer <= window:
        return
    room = window - answer
    instead = f"Write dataset.length={room} or less" if room > 0 else "Write a smaller dataset.max_new_tokens"
    raise DataError(
        f"dataset.length={length} and {answer} answer tokens are more than the model's window of {window} "
        f"tokens. "
        f"{instead}, or choose a model with a larger window."
    )


def generate_example(config: NiahConfig, index: int, haystack: Haystack, count_tokens: PromptCounter) -> Example:
    """Generate one example. It depends on the config, its own index and the tokenizer alone.

    Args:
        config: The settings; not changed.
        index: Number of the example, from 0.
        haystack: The text to hide needles in.
        count_tokens: Counts a prompt's tokens for the model at hand.

    Returns:
        The example with its one question.

    Raises:
        DataError: If the needles do not fit into `config.length`.
    """
    depths = resolve_depths(config.depths)
    depth = depths[index % len(depths)]
    rng = random.Random(hashlib.sha256(f"niah:{config.seed}:{index}".encode()).digest())
    needles = _draw_needles(config, rng, depth, haystack)
    start = 0 if haystack.is_noise else rng.randrange(len(haystack.sentences))
    asked = needles[: config.needle_counts()[1]]
    text, answer_prefix = wording.question(config.needle, [needle.key for needle in asked])
    introduction = wording.introduction(config.needle, len(asked))

    def count(pieces: Sequence[str]) -> int:
        context = introduction + lay_out(haystack, pieces, needles)[0]
        return count_tokens(context, text, answer_prefix)

    pieces, tokens = _fill(config, haystack, start, count)
    body, measured = lay_out(haystack, pieces, needles)
    answer = answer_prefix + " " + ", ".join(needle.value for needle in asked)
    _check_answer(config, count_tokens(introduction + body, text, answer) - tokens)
    found = [{"key": needle.key, "depth": round(where, 4)} for needle, where in zip(needles, measured, strict=True)]
    question = Question(
        text=text,
        answers=tuple(needle.value for needle in asked),
        answer_prefix=answer_prefix,
        max_new_tokens=config.max_new_tokens,
        metadata={"depth": depth, "needles": found[: len(asked)]},
    )
    metadata = {
        "index": index,
        "task": config.task,
        "needle": config.needle,
        "haystack": config.haystack,
        "length": config.length,
        "prompt_tokens": tokens,
        "depth": depth,
        "needles": found,
    }
    return Example(context=introduction + body, questions=(question,), metadata=metadata)


def _draw_needles(config: NiahConfig, rng: random.Random, depth: float, haystack: Haystack) -> list[Needle]:
    """Draw all needles: the first at `depth`, each other one within an equal share of the haystack."""
    keys, _ = config.needle_counts()
    pairs = draw_pairs(rng, config.needle, keys, haystack.text)
    shares = list(range(keys - 1))
    rng.shuffle(shares)
    depths = [depth, *((share + rng.random()) / (keys - 1) for share in shares)]
    return [
        Needle(key, value, wording.needle_sentence(config.needle, key, value), where)
        for (key, value), where in zip(pairs, depths, strict=True)
    ]


def _fill(
    config: NiahConfig, haystack: Haystack, start: int, count: Callable[[Sequence[str]], int]
) -> tuple[list[str], int]:
    """Take as much of the haystack as fits into `config.length`: whole lines, else sentences, else words.

    Args:
        config: The settings.
        haystack: The text.
        start: First sentence to take.
        count: Tokens of the whole prompt with these pieces of haystack.

    Returns:
        The pieces, and the tokens of the prompt.
    """
    length = config.length
    least = count(haystack.slice(start, 1))
    if count([]) > length or (haystack.is_noise and least > length):
        raise _does_not_fit(config, least)
    rate = len(haystack.text) / len(haystack.sentences) / _CHARACTERS_PER_TOKEN
    number, tokens = largest_fitting(lambda n: count(haystack.slice(start, n)), length, max(1.0, rate))
    pieces = haystack.slice(start, number)
    lines = number - number % haystack.per_line
    if 0 < lines < number:
        line_tokens = count(pieces[:lines])
        if line_tokens >= FILL_TARGET * length:
            return pieces[:lines], line_tokens
    if tokens < FILL_TARGET * length:
        words = haystack.slice(start + number, 1)[0].split(" ")
        cut, tokens = largest_fitting(
            lambda n: count([*pieces, " ".join(words[:n])] if n else pieces), length, rate=1.0
        )
        pieces += [" ".join(words[:cut])] if cut else []
    if not pieces or tokens < FILL_FLOOR * length:
        raise _does_not_fit(config, least)
    return pieces, tokens


def _check_answer(config: NiahConfig, tokens: int) -> None:
    """Refuse a limit of answer tokens that no right answer could keep."""
    if config.max_new_tokens is not None and tokens > config.max_new_tokens:
        raise DataError(
            f"dataset.max_new_tokens={config.max_new_tokens} cannot hold the answer, which takes {tokens} "
            "tokens of this model's tokenizer. "
            f"Write dataset.max_new_tokens={math.ceil(tokens * 1.5)} or more."
        )


def _does_not_fit(config: NiahConfig, least: int) -> DataError:
    """Build the error for a length that cannot hold the needles and one sentence of haystack."""
    enough = math.ceil(least * 1.1 / _LENGTH_STEP) * _LENGTH_STEP
    keys, _ = config.needle_counts()
    what = "the needle" if keys == 1 else f"{keys} needles"
    return DataError(
        f"dataset.length={config.length} has no room for {what}: introduction, {what}, one sentence of "
        f"haystack, "
        f"question, answer prefix and chat template take {least} tokens of this model's tokenizer. "
        f"Write dataset.length={enough} or more."
    )
