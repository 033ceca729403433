from __future__ import annotations

import pickle

import pytest

from sah.data import Example, Question
from sah.errors import DataError


def example(**changes: object) -> Example:
    question = {"text": "\nWho?", "answers": ("Ada",), "answer_prefix": "It is", "max_new_tokens": 4}
    context = changes.pop("context", "A text.")
    return Example(str(context), (Question(**{**question, **changes}),))  # type: ignore[arg-type]


def test_the_key_names_the_content() -> None:
    assert example().key == example().key
    assert len(example().key) == 16 and int(example().key, 16) >= 0
    assert pickle.loads(pickle.dumps(example())).key == example().key


@pytest.mark.parametrize(
    "change",
    [
        {"context": "A text"},
        {"text": "\nWho"},
        {"answers": ("Ada", "Eve")},
        {"answer_prefix": ""},
        {"max_new_tokens": None},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_key_changes_with_every_part_of_the_content(change: dict[str, object]) -> None:
    assert example(**change).key != example().key


def test_the_key_ignores_metadata() -> None:
    assert example(metadata={"depth": 0.5}).key == example().key


def test_an_example_is_frozen_and_hashable() -> None:
    assert hash(example()) == hash(example())
    with pytest.raises(AttributeError):
        example().context = "another"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": " \n"}, r"The context is empty.*Write for example: Example\(context="),
        ({"text": "\n"}, r"The question is empty.*Write for example: Question\(text="),
        ({"answers": ()}, r"at least one string.*Write for example: answers=\("),
        ({"answers": "Ada"}, "a tuple of at least one string"),
        ({"answers": ("Ada", " ")}, "empty answer"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
    ],
)
def test_empty_parts_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        example(**change)


def test_an_example_without_questions_is_refused() -> None:
    with pytest.raises(DataError, match="no question"):
        Example("A text.", ())
