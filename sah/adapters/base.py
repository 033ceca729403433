"""The interfaces of an adapter: a model with a sparse attention, and what one asks of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from sah.config.values import DEFAULT_MAX_NEW_TOKENS, check_count
from sah.errors import DataError
from sah.sparse_attention.base import SparseAttention
from sah.sparse_attention.config import SparseAttentionConfig


@dataclass(frozen=True)
class Request:
    """One context and the questions about it.

    The prompt of a question is `context + question`, joined exactly as given: bring your own newline or space. Where
    the tokenizer has a chat template, that text is the user's message.
    """

    context: str
    """Text that is prefilled once, with dense attention."""

    questions: str | list[str]
    """One question, or a list of them; each is answered as if it were the only one."""

    answer_prefix: str = ""
    """Text that the answer starts with; it is given to the model and is no part of the response."""

    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    """Most tokens to generate for a question."""

    def __post_init__(self) -> None:
        questions = [self.questions] if isinstance(self.questions, str) else self.questions
        if not isinstance(questions, list):
            raise DataError(f"questions is {questions!r}. Allowed: a text, or a list of texts.")
        if not isinstance(self.answer_prefix, str):
            raise DataError(f"answer_prefix is {self.answer_prefix!r}. Allowed: a text; write '' for none.")
        for name, text in [("context", self.context), *((f"questions[{i}]", q) for i, q in enumerate(questions))]:
            check_text(name, text)
        check_count("max_new_tokens", self.max_new_tokens, minimum=1)


@dataclass(frozen=True)
class RequestResponse:
    """The answers to a request."""

    responses: str | list[str]
    """A string where the request held one, else a list of the same length and order."""


def check_text(name: str, text: object) -> None:
    """Check that a context or question is a text with something in it.

    Args:
        name: What it is, for the message.
        text: The value.

    Raises:
        DataError: If it is no string, or empty, or blank.
    """
    if not isinstance(text, str) or not text.strip():
        raise DataError(
            f"{name} is {text!r}. Allowed: a text with at least one visible character. "
            "Give it some text, or leave it out."
        )


class ModelHubAdapterInterface(ABC):
    """What a model hub's library must be adapted to."""

    @abstractmethod
    def create_model(self, model_name: str, **kwargs: Any) -> Any:
        """Load a model.

        Args:
            model_name: The library's name of the model, or a local folder.
            **kwargs: What the library wants to know.

        Returns:
            The library's model object.
        """

    @abstractmethod
    def process_request(self, request: Request) -> RequestResponse:
        """Answer a request: context dense and once, questions and answers sparse.

        Args:
            request: Context and questions.

        Returns:
            The answers.
        """


class SparseAttentionAdapterInterface(ABC):
    """What makes a sparse attention usable by an external library."""

    @abstractmethod
    def get_custom_attention_function(self, sparse_attention: SparseAttention) -> Callable[..., Any]:
        """Wrap a sparse attention in the signature that the library wants.

        Args:
            sparse_attention: The attention to wrap.

        Returns:
            The function.
        """


class ModelAdapter(SparseAttentionAdapterInterface, ModelHubAdapterInterface, ABC):
    """Owns one model and one sparse attention. Knows of no library.

    Args:
        sparse_attention_config: The sparse attention, or None for an adapter that always runs dense.
        model_name: The model to load.
        **kwargs: Passed on to `create_model`.
    """

    def __init__(self, sparse_attention_config: SparseAttentionConfig | None, model_name: str, **kwargs: Any) -> None:
        self.sparse_attention_config = sparse_attention_config
        self.sparse_attention = _create(sparse_attention_config)
        self.model_name = model_name
        self.model = self.create_model(model_name, **kwargs)

    @abstractmethod
    def enable_sparse_mode(self) -> AbstractContextManager[None]:
        """Run the model with the sparse attention inside the `with` block."""

    @abstractmethod
    def enable_dense_mode(self) -> AbstractContextManager[None]:
        """Run the model with the attention it was loaded with inside the `with` block, also inside sparse mode."""


def _create(config: SparseAttentionConfig | None) -> SparseAttention | None:
    return None if config is None else SparseAttention.create_from_config(config)
