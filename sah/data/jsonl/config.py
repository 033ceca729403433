"""Settings of the loader for JSON-lines and parquet files. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from sah.config.base import ValidatedConfig
from sah.config.values import check_count
from sah.data.config import DatasetConfig
from sah.data.jsonl.file import LINE_SUFFIXES, TABLE_SUFFIXES, content_hash
from sah.errors import ConfigError, bad_value


@dataclass
class FieldNames(ValidatedConfig):
    """What the file calls its fields.

    Attributes:
        context: The text that is prefilled once.
        question: One question; either this or `questions`.
        questions: A list of questions about the same context.
        answers: Reference answers: a string or a list of strings; with `questions` a list with one of these
            each.
        answer_prefix: Optional start of the answer; with `questions` also a list.
        max_new_tokens: Optional limit of answer tokens; with `questions` also a list.
    """

    context: str = "context"
    question: str = "question"
    questions: str = "questions"
    answers: str = "answers"
    answer_prefix: str = "answer_prefix"
    max_new_tokens: str = "max_new_tokens"

    def validate(self) -> None:
        """Check that every field has a name of its own.

        Raises:
            ConfigError: If a name is empty, or used twice.
        """
        super().validate()
        seen: dict[str, str] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if not isinstance(value, str) or not value:
                raise bad_value(
                    f"dataset.fields.{item.name}",
                    value,
                    "a field's name",
                    f"dataset.fields.{item.name}={item.name}",
                )
            if value in seen:
                raise ConfigError(
                    f"dataset.fields.{item.name} and dataset.fields.{seen[value]} both read the field "
                    f"{value!r}. "
                    "Give each a field of its own."
                )
            seen[value] = item.name


@dataclass
class JsonlConfig(DatasetConfig):
    """Contexts with questions and reference answers from a file, one example a line or row.

    Attributes:
        path: A `.jsonl`, `.ndjson` or `.parquet` file.
        fields: What the file calls its fields.
        separator: Put between context and question, since prompts are the two texts joined.
        answer_prefix: Start of the answer for rows that give none, "" for none.
        max_new_tokens: Limit of answer tokens for rows that give none, None to leave it to the run.
    """

    name: ClassVar[str] = "jsonl"
    loader: ClassVar[str] = "sah.data.jsonl.loading.load_examples"

    path: str | None = None
    fields: FieldNames = field(default_factory=FieldNames)
    separator: str = "\n\n"
    answer_prefix: str = ""
    max_new_tokens: int | None = None
    metrics: list[str] = field(default_factory=lambda: ["string_match_any", "token_f1", "exact_match"])

    def validate(self) -> None:
        """Check all fields. Whether the file exists is checked when it is read.

        Raises:
            ConfigError: If a value cannot be used.
        """
        super().validate()
        allowed = LINE_SUFFIXES + TABLE_SUFFIXES
        if not isinstance(self.path, str) or Path(self.path).suffix.lower() not in allowed:
            raise bad_value(
                "dataset.path",
                self.path,
                f"a file that ends in {', '.join(allowed)}",
                "dataset.path=qa.jsonl",
            )
        for key in ("separator", "answer_prefix"):
            if not isinstance(getattr(self, key), str):
                raise bad_value(f"dataset.{key}", getattr(self, key), "a text", f"dataset.{key}=''")
        if self.max_new_tokens is not None:
            check_count("dataset.max_new_tokens", self.max_new_tokens, minimum=1)

    def identity(self) -> dict[str, Any]:
        """Tell what decides what an example is.

        Returns:
            The hash of the file's content in the place of its path, and how it is read.

        Raises:
            DataError: If the file is missing.
        """
        return {
            "name": self.name,
            "content_sha256": content_hash(str(self.path)),
            "fields": {item.name: getattr(self.fields, item.name) for item in fields(self.fields)},
            "separator": self.separator,
            "answer_prefix": self.answer_prefix,
            "max_new_tokens": self.max_new_tokens,
        }
