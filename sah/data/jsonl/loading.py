"""Turns the rows of a file into examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sah.data.example import Example, PromptCounter, Question
from sah.data.jsonl.config import JsonlConfig
from sah.data.jsonl.reading import is_blank, read_rows
from sah.errors import DataError

_MOST_NAMED = 5


def load_examples(config: JsonlConfig, count_tokens: PromptCounter, window: int | None) -> list[Example]:
    """Read a file and make its examples.

    Args:
        config: The settings; not changed.
        count_tokens: Counts a prompt's tokens for the model at hand.
        window: Most tokens that the model takes, prompt and answer together; None when it sets no limit.

    Returns:
        The first `config.num_examples` examples in the file's order, or all.

    Raises:
        DataError: If the file is missing or broken, a row lacks something, or a prompt is longer than the
            window.
        ConfigError: If the package `datasets` is not installed.
    """
    rows = read_rows(str(config.path), config.num_examples)
    examples = [(place, make_example(config, place, row)) for place, row in rows]
    if window is not None:
        _check_window(examples, count_tokens, window)
    return [example for _, example in examples]


def make_example(config: JsonlConfig, place: str, row: Mapping[str, Any]) -> Example:
    """Make one example.

    Args:
        config: The settings.
        place: Where the row stands, for the messages.
        row: The row's fields.

    Returns:
        The example.

    Raises:
        DataError: If a field is missing, empty or of the wrong kind; the message begins with the place.
    """
    reader = _Row(config, place, row)
    context = reader.text(config.fields.context)
    texts, several = reader.questions()
    answers = reader.answers(len(texts), several)
    prefixes = reader.optional(config.fields.answer_prefix, len(texts), several, str, config.answer_prefix)
    limits = reader.optional(config.fields.max_new_tokens, len(texts), several, int, config.max_new_tokens)
    try:
        questions = tuple(
            Question(config.separator + text, answer, prefix, limit)
            for text, answer, prefix, limit in zip(texts, answers, prefixes, limits, strict=True)
        )
        return Example(context, questions, metadata={"place": place.rpartition(", ")[2]})
    except DataError as error:
        raise DataError(f"{place}: {error}") from error


class _Row:
    """Reads the fields of one row and says what is wrong with them."""

    def __init__(self, config: JsonlConfig, place: str, row: Mapping[str, Any]) -> None:
        self._config = config
        self._place = place
        self._row = row

    def _get(self, name: str) -> Any:
        value = self._row.get(name)
        return None if is_blank(value) else value

    def _error(self, message: str) -> DataError:
        return DataError(f"{self._place}: {message}")

    def _missing(self, what: str, key: str) -> DataError:
        present = ", ".join(sorted(self._row)) or "none"
        return self._error(
            f"{what} missing. Fields there: {present}. Add it, or name the right one: dataset.fields.{key}=its_name"
        )

    def text(self, name: str) -> str:
        """Read a field that must hold text."""
        value = self._get(name)
        if value is None:
            raise self._missing(f"the field {name!r} is", "context")
        return self._text(value, f"the field {name!r}")

    def _text(self, value: Any, what: str) -> str:
        if not isinstance(value, str):
            raise self._error(f"{what} must be a text, found {type(value).__name__} {value!r}.")
        if not value.strip():
            raise self._error(f"{what} is empty. Give it some text.")
        return value

    def questions(self) -> tuple[list[str], bool]:
        """Read the question or the list of questions, and tell which of the two it was."""
        names = self._config.fields
        one, many = self._get(names.question), self._get(names.questions)
        if one is None and many is None:
            raise self._missing(f"the field {names.question!r} (or {names.questions!r}) is", "question")
        if one is not None and many is not None:
            raise self._error(f"both {names.question!r} and {names.questions!r} are there. Keep one of them.")
        if one is not None:
            return [self._text(one, f"the field {names.question!r}")], False
        if not isinstance(many, list) or not many:
            raise self._error(f"the field {names.questions!r} must be a list of at least one text, found {many!r}.")
        return [self._text(item, f"entry {i} of {names.questions!r}") for i, item in enumerate(many, start=1)], True

    def answers(self, count: int, several: bool) -> list[tuple[str, ...]]:
        """Read each question's reference answers."""
        name = self._config.fields.answers
        value = self._get(name)
        if value is None:
            raise self._missing(f"the field {name!r} is", "answers")
        if not several:
            return [self._alternatives(value, f"the field {name!r}")]
        entries = self._one_each(value, name, count)
        return [self._alternatives(entry, f"entry {i} of {name!r}") for i, entry in enumerate(entries, start=1)]

    def _one_each(self, value: Any, name: str, count: int) -> list[Any]:
        if not isinstance(value, list) or len(value) != count:
            found = f"{len(value)} entries" if isinstance(value, list) else f"{type(value).__name__} {value!r}"
            raise self._error(
                f"the field {name!r} must be a list with one entry for each of {count} questions, found {found}."
            )
        return value

    def _alternatives(self, value: Any, what: str) -> tuple[str, ...]:
        entries = [value] if isinstance(value, str) else value
        if not isinstance(entries, list) or not entries or not all(isinstance(entry, str) for entry in entries):
            raise self._error(
                f"{what} must be a text or a list of at least one text, found {value!r}. Put numbers in quotes."
            )
        return tuple(self._text(entry, what) for entry in entries)

    def optional(self, name: str, count: int, several: bool, kind: type, default: Any) -> list[Any]:
        """Read an optional field, one value or a list with one for each question; null is the default."""
        value = self._get(name)
        entries = self._one_each(value, name, count) if several and isinstance(value, list) else [value] * count
        checked = []
        for entry in entries:
            if is_blank(entry):
                checked.append(default)
                continue
            whole = int(entry) if kind is int and isinstance(entry, float) and entry.is_integer() else entry
            if not isinstance(whole, kind) or isinstance(whole, bool):
                wanted = "a text" if kind is str else "a whole number"
                raise self._error(f"the field {name!r} must be {wanted}, found {entry!r}.")
            checked.append(whole)
        return checked


def _check_window(examples: list[tuple[str, Example]], count_tokens: PromptCounter, window: int) -> None:
    """Refuse prompts that the model cannot take whole: nothing is ever cut silently."""
    too_long = []
    for place, example in examples:
        needed = max(
            count_tokens(example.context, question.text, question.answer_prefix) + (question.max_new_tokens or 1)
            for question in example.questions
        )
        if needed > window:
            too_long.append(f"{place}: {needed} tokens")
    if too_long:
        named = "; ".join(too_long[:_MOST_NAMED]) + ("; ..." if len(too_long) > _MOST_NAMED else "")
        raise DataError(
            f"{len(too_long)} of {len(examples)} prompts with their answers are longer than the model's "
            f"window of "
            f"{window} tokens: {named}. Shorten them, remove them, or choose a model with a larger window."
        )
