"""What every data set yields: a context, the questions asked about it, and their reference answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from sah.errors import DataError


class PromptCounter(Protocol):
    """Counts the tokens of a prompt as the model at hand will see it, chat template included."""

    def __call__(self, context: str, question: str, answer_prefix: str) -> int:
        """Count one prompt.

        Args:
            context: Text of the context.
            question: Text appended to the context as it stands.
            answer_prefix: Start of the answer, placed after the template's assistant header.

        Returns:
            Tokens of the whole templated prompt.
        """
        ...


@dataclass(frozen=True)
class Question:
    """One question about a context.

    Attributes:
        text: Appended to the context without anything between, so it carries its own leading newline.
        answers: Reference answers. What they mean together (all wanted, or alternatives) is the metric's
            business.
        answer_prefix: Start of the answer that the model is given, "" for none.
        max_new_tokens: This question's own limit of answer tokens, None to leave it to the run.
        metadata: Facts about the question for the results, JSON values only; not part of its identity.
        likelihood: The text is a continuation of the context that is read, not answered: its likelihood is the score.
    """

    text: str
    answers: tuple[str, ...]
    answer_prefix: str = ""
    max_new_tokens: int | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)
    likelihood: bool = False

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise DataError(
                'The question is empty. Write for example: Question(text="\\nWho wrote it?", answers=("Ada",))'
            )
        if isinstance(self.answers, str) or (not self.answers and not self.likelihood):
            raise DataError(
                f"answers={self.answers!r} of the question {self.text.strip()!r} is not allowed. "
                'Allowed: a tuple of at least one string. Write for example: answers=("Ada",)'
            )
        if any(not answer.strip() for answer in self.answers):
            raise DataError(
                f"answers={self.answers!r} of the question {self.text.strip()!r} holds an empty answer, which any "
                'prediction would match. Remove it, or write for example: answers=("Ada",)'
            )
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise DataError(
                f"max_new_tokens={self.max_new_tokens} of the question {self.text.strip()!r} is not allowed. "
                "Allowed: a whole number of at least 1, or None. Write for example: max_new_tokens=50"
            )


@dataclass(frozen=True)
class Example:
    """One context with its questions.

    Attributes:
        context: Prefilled once and shared by all questions.
        questions: At least one.
        metadata: Facts about the example for the results, JSON values only; not part of its identity.
    """

    context: str
    questions: tuple[Question, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not self.context.strip():
            raise DataError(
                'The context is empty. Write for example: Example(context="A text to read.", questions=(question,))'
            )
        if not self.questions:
            raise DataError("The example has no question. Write for example: Example(context, questions=(question,))")

    @cached_property
    def key(self) -> str:
        """Sixteen hex digits that name the example's content: context and questions, without metadata."""
        content = {
            "context": self.context,
            "questions": [
                {
                    "text": question.text,
                    "answers": list(question.answers),
                    "answer_prefix": question.answer_prefix,
                    "max_new_tokens": question.max_new_tokens,
                    **({"likelihood": True} if question.likelihood else {}),
                }
                for question in self.questions
            ],
        }
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(canonical.encode("ascii")).hexdigest()[:16]
