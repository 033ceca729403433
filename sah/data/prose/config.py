"""Settings of the prose whose likelihood is measured. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from sah.config.values import check_count
from sah.data.config import LOG_LIKELIHOOD, DatasetConfig
from sah.data.prose.text import read_text, text_hash
from sah.errors import bad_value


@dataclass
class ProseConfig(DatasetConfig):
    """A long text in consecutive windows: each begins with a context, whose continuation is read, not answered.

    Attributes:
        path: A text file in UTF-8; None takes the prose of Python's own language reference.
        length: Tokens of a context, filled to 99 % or more.
        continuation: Tokens of the text behind it, likewise.
    """

    name: ClassVar[str] = "prose"
    loader: ClassVar[str] = "sah.data.prose.loading.load_examples"
    likelihood: ClassVar[bool] = True
    chat_template: ClassVar[bool] = False

    path: str | None = None
    length: int = 1024
    continuation: int = 128
    num_examples: int | None = 8
    metrics: list[str] = field(default_factory=lambda: [LOG_LIKELIHOOD])

    def validate(self) -> None:
        """Check all fields. Whether the file exists is checked when it is read.

        Raises:
            ConfigError: If a value cannot be used.
        """
        super().validate()
        if self.path is not None and (not isinstance(self.path, str) or not self.path.strip()):
            raise bad_value("dataset.path", self.path, "null or the path of a text file", "dataset.path=book.txt")
        check_count("dataset.length", self.length, minimum=16)
        check_count("dataset.continuation", self.continuation, minimum=8)
        if list(self.metrics) != [LOG_LIKELIHOOD]:
            raise bad_value(
                "dataset.metrics",
                self.metrics,
                f"[{LOG_LIKELIHOOD}], since no answers are generated",
                f"dataset.metrics=[{LOG_LIKELIHOOD}]",
            )

    def identity(self) -> dict[str, Any]:
        """Tell what decides what an example is.

        Returns:
            The hash of the text, and how it is cut.

        Raises:
            DataError: If the file cannot be read.
        """
        return {
            "name": self.name,
            "text_sha256": text_hash(read_text(self.path)),
            "length": self.length,
            "continuation": self.continuation,
        }
