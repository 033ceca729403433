"""Cuts a long text into contexts with their continuations."""

from __future__ import annotations

import re

from sah.data.example import Example, PromptCounter, Question
from sah.data.niah.filling import largest_fitting
from sah.data.prose.config import ProseConfig
from sah.data.prose.text import read_text
from sah.errors import DataError

_TOKENS_A_WORD = 1.4
"""A first guess."""


def load_examples(config: ProseConfig, count_tokens: PromptCounter, window: int | None) -> list[Example]:
    """Cut the text into windows that follow each other without overlap.

    Args:
        config: The settings; not changed.
        count_tokens: Counts a prompt's tokens for the model at hand, without a chat template.
        window: Most tokens that the model takes; None when it sets no limit.

    Returns:
        `config.num_examples` examples, or as many as the text gives.

    Raises:
        DataError: If context and continuation do not fit the window, or the text is too short.
    """
    if window is not None and config.length + config.continuation > window:
        raise DataError(
            f"dataset.length={config.length} and dataset.continuation={config.continuation} are more than the model's "
            f"window of {window} tokens. Write for example: dataset.length={max(16, window - config.continuation)}"
        )
    words = re.findall(r"\S+\s*", read_text(config.path))
    examples: list[Example] = []
    start = 0
    while config.num_examples is None or len(examples) < config.num_examples:
        middle = start + _words(words, start, config.length, count_tokens)
        stop = middle + _words(words, middle, config.continuation, count_tokens)
        if stop >= len(words):
            break
        if start == middle or middle == stop:
            start = stop + 1  # a word with more tokens than were asked for
            continue
        # The blank between them stands before the continuation, where tokenizers put it.
        context, behind = "".join(words[start:middle]).rstrip(), "".join(words[middle:stop]).rstrip()
        blank = re.search(r"\s*\Z", words[middle - 1])
        text = (blank.group() if blank else "") + behind
        question = Question(text=text, answers=(), likelihood=True)
        examples.append(Example(context, (question,), {"window": len(examples), "first_word": start}))
        start = stop
    wanted = config.num_examples
    if not examples or (wanted is not None and len(examples) < wanted):
        place = config.path or "the prose that comes with Python"
        raise DataError(
            f"dataset.num_examples={wanted}: {place} gives {len(examples)} windows of {config.length} and "
            f"{config.continuation} tokens. Write fewer, or null for all, or a smaller dataset.length."
        )
    return examples


def _words(words: list[str], start: int, limit: int, count_tokens: PromptCounter) -> int:
    """Count the words from a place on that fill a number of tokens; those beyond the text count as one each."""

    def count(number: int) -> int:
        beyond = max(0, start + number - len(words))
        return count_tokens("".join(words[start : start + number]).rstrip(), "", "") + beyond

    return largest_fitting(count, limit, _TOKENS_A_WORD)[0]
