"""From texts to token ids: chat template, answer prefix, and the seam between context and question."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from sah.adapters.base import check_text
from sah.errors import DataError, StateError

_SENTINEL = "\u2063sah-seam\u2063"
_PROBES = ("a", " ", "\n", ".", "1", "\u0301")
_LONGEST_STEP_BACK = 256
"""Characters: how far the seam may move back in a text without blanks."""
_TAIL = 1024
"""Characters: the end of a long context in which the seam is looked for."""
_TAIL_WORDS = 8


@dataclass(frozen=True)
class ContextPrompt:
    """The part of a prompt that depends on the context alone."""

    context: str
    ids: list[int]
    """Token ids that stand at the start of every prompt over this context."""


class PromptFormatter:
    """Turns context, question and answer prefix into ids.

    The ids are those of the whole prompt: of the chat template with `context + question` as the user's message and the
    answer prefix behind the assistant's header, or of the plain text with the tokenizer's own special tokens. They are
    cut in two where no token can span the cut, so that joining the two parts gives the whole again.

    Args:
        tokenizer: A Hugging Face tokenizer.
        use_template: Whether its chat template, if it has one, is put around the text.
    """

    def __init__(self, tokenizer: Any, use_template: bool = True) -> None:
        self.tokenizer = tokenizer
        self.has_template = use_template and bool(getattr(tokenizer, "chat_template", None))

    def prompt_ids(self, context: str, question: str, answer_prefix: str = "") -> list[int]:
        """Return the ids of a whole prompt.

        Args:
            context: The context.
            question: The question, joined to the context as it is.
            answer_prefix: Start of the answer.

        Returns:
            Token ids.
        """
        return self._encode(self._render(context + question, answer_prefix))

    def context_prompt(self, context: str) -> ContextPrompt:
        """Return the ids that every prompt over a context starts with.

        The last word of the context, with the blanks around it, is left to the question: only there can a tokenizer's
        merges reach across the seam. What remains is compared under a set of continuations and the common start taken.

        Args:
            context: The context.

        Returns:
            Its prompt part; a function of the context alone.

        Raises:
            DataError: If the context is empty, or too short for one token that no question could change.
        """
        check_text("context", context)
        head = self._render(context + _SENTINEL, "").partition(_SENTINEL)[0]
        whole = self._encode(head)
        # Merges stay within a word. In a tail of several words, whose first may be cut, the last tokens are those of
        # the whole text, and what a continuation can change of them shows there as well, at a fraction of the cost.
        tail = head[-_TAIL:]
        length = len(whole) - self._unstable_tokens(tail if len(tail.split()) > _TAIL_WORDS else head)
        if length == 0:
            raise DataError(
                f"context={context!r} is too short to be prefilled: its only word may be split differently before a "
                "question. Allowed: a context of at least two words."
            )
        return ContextPrompt(context, whole[:length])

    def question_ids(self, prompt: ContextPrompt, question: str, answer_prefix: str = "") -> list[int]:
        """Return the ids that follow the context's.

        Args:
            prompt: The context's part.
            question: The question.
            answer_prefix: Start of the answer.

        Returns:
            Token ids; with the context's before them they are the ids of the whole prompt.

        Raises:
            DataError: If the question is empty.
            StateError: If the tokenizer splits the context differently before this question.
        """
        check_text("question", question)
        ids = self.prompt_ids(prompt.context, question, answer_prefix)
        length = len(prompt.ids)
        if ids[:length] != prompt.ids:
            raise StateError(
                f"The tokenizer splits the context differently before the question {question[:60]!r}, so its prefilled "
                "cache cannot be used. Put a newline between context and question."
            )
        return ids[length:]

    def _unstable_tokens(self, text: str) -> int:
        """Count the tokens at a text's end that may change with what follows."""
        words = text.rstrip()
        last_word = re.search(r"\s*\S*\Z", words[-_LONGEST_STEP_BACK:])
        stable = words[: len(words) - len(last_word.group())] if last_word else words
        ids = self._encode(text)
        common = _common_start(ids, self._encode(stable), *(self._encode(text + probe) for probe in _PROBES))
        return len(ids) - common

    def _render(self, message: str, answer_prefix: str) -> str:
        if not self.has_template:
            return message + answer_prefix
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": message}], tokenize=False, add_generation_prompt=True
        )
        return f"{text}{answer_prefix}"

    def _encode(self, text: str) -> list[int]:
        # A template writes its special tokens itself; adding the tokenizer's own would double the BOS.
        ids: list[int] = self.tokenizer(text, add_special_tokens=not self.has_template, verbose=False)["input_ids"]
        return ids


def _common_start(first: list[int], *others: list[int]) -> int:
    length = len(first)
    for other in others:
        length = min(length, len(other))
        for position in range(length):
            if first[position] != other[position]:
                length = position
                break
    return length
