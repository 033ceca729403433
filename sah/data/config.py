"""The base of every data set's config."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from sah.config.base import ValidatedConfig
from sah.config.lookup import named
from sah.config.values import check_count
from sah.data.example import Example, PromptCounter
from sah.errors import bad_value

LOG_LIKELIHOOD = "log_likelihood"
"""The metric of texts that are read: mean log-likelihood of a token, in nats. Perplexity is exp of its negative."""


@dataclass
class DatasetConfig(ValidatedConfig, ABC):
    """What all data sets share.

    A data set is a subclass with a `name` of its own in a module called `config.py` or `*_config.py` below
    `sah.data`; nothing else lists it. That module imports nothing heavy: `loader` is the dotted path of the
    function that makes the examples.

    Attributes:
        num_examples: How many examples to use, None for all there are. Asking for more later keeps the
            earlier ones.
        metrics: Names of the scores to compute, the first one being the primary.
    """

    name: ClassVar[str] = ""
    loader: ClassVar[str] = ""
    likelihood: ClassVar[bool] = False
    """Whether its texts are read instead of being answered, and their likelihood is the score."""
    chat_template: ClassVar[bool] = True
    """Whether the model's chat template, if it has one, is put around its prompts."""

    num_examples: int | None = None
    metrics: list[str] = field(default_factory=lambda: ["string_match_all"])

    def validate(self) -> None:
        """Check the fields that all data sets share.

        Raises:
            ConfigError: If one of them cannot be used.
        """
        super().validate()
        if self.num_examples is not None:
            check_count("dataset.num_examples", self.num_examples, minimum=1)
        named = isinstance(self.metrics, Sequence) and not isinstance(self.metrics, str)
        if not named or not self.metrics or not all(isinstance(name, str) and name for name in self.metrics):
            raise bad_value(
                "dataset.metrics",
                self.metrics,
                "a list of at least one metric name, the first being the primary one",
                "dataset.metrics=[string_match_all]",
            )
        if len(set(self.metrics)) < len(self.metrics):
            raise bad_value(
                "dataset.metrics",
                self.metrics,
                "every metric once",
                "dataset.metrics=[" + ",".join(dict.fromkeys(self.metrics)) + "]",
            )

    def load(self, count_tokens: PromptCounter, window: int | None) -> Sequence[Example]:
        """Make or read the examples by calling `loader` with this config and the arguments.

        Args:
            count_tokens: Counts a prompt's tokens for the model at hand.
            window: Most tokens that the model takes, prompt and answer together; None when it sets no limit.

        Returns:
            The examples, `num_examples` of them where it is set and so many exist.

        Raises:
            DataError: If an example cannot be made, read, or used with this model.
        """
        examples: Sequence[Example] = named(self.loader)(self, count_tokens, window)
        return examples

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Tell what decides what an example is, for a point's id.

        Returns:
            JSON values; without `num_examples`, `metrics` and paths, which change no example.

        Raises:
            DataError: If it cannot be told, e.g. because a file is missing.
        """
