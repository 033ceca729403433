from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from sah.data.example import Example, PromptCounter
from sah.data.jsonl.config import FieldNames, JsonlConfig
from sah.errors import ConfigError, DataError

ROOT = Path(__file__).parents[4]
ROW = {"context": "A text.", "question": "Who?", "answers": "Ada"}


def count(context: str, question: str, answer_prefix: str) -> int:
    return len((context + question + answer_prefix).split())


def write(path: Path, *rows: dict[str, Any] | str) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def load(path: Path, window: int | None = None, counter: PromptCounter = count, **settings: Any) -> list[Example]:
    return list(JsonlConfig(path=str(path), **settings).load(counter, window))


def test_the_example_file() -> None:
    one, two, three = load(ROOT / "tests/data/qa.jsonl")
    assert one.questions[0].text == "\n\nWho kept the lighthouse?"
    assert one.questions[0].answers == ("Marta Lund", "Lund")
    assert one.questions[0].max_new_tokens == 12
    assert [question.answers for question in two.questions] == [
        ("twenty minutes", "20 minutes"),
        ("6 grams",),
    ]
    assert [question.answer_prefix for question in two.questions] == ["The dough rests for", "The salt is"]
    assert three.questions[0].answers == ("09:00",)
    assert [example.metadata["place"] for example in (one, two, three)] == ["line 1", "line 2", "line 3"]


def test_mixed_rows_and_blank_lines(tmp_path: Path) -> None:
    rows = (
        ROW,
        "",
        {"context": "B", "questions": ["p", "q"], "answers": [["x", "y"], "z"], "extra": {"deep": [1, "a"]}},
        {**ROW, "answers": ["Ada", "Eve"], "answer_prefix": None, "max_new_tokens": 7, "extra": 3},
    )
    one, two, three = load(write(tmp_path / "a.jsonl", *rows))
    assert one.questions[0].answers == ("Ada",)
    assert [question.answers for question in two.questions] == [("x", "y"), ("z",)]
    assert two.metadata["place"] == "line 3"
    assert three.questions[0].max_new_tokens == 7


@pytest.mark.parametrize("answers", ["2020-01-01", ["2020-01-01 10:00:00"], "007", "1e5", "true"])
def test_answers_that_look_like_something_else_stay_text(tmp_path: Path, answers: str | list[str]) -> None:
    rows = [{**ROW, "context": "2020-01-01", "answers": answers}] * 2
    for example in load(write(tmp_path / "a.jsonl", *rows)):
        assert example.context == "2020-01-01"
        assert example.questions[0].answers == ((answers,) if isinstance(answers, str) else tuple(answers))


def test_text_arrives_exactly(tmp_path: Path) -> None:
    context = "  Zwölf Boxkämpfer\r\n\tjagen \u2028 “Viktor” \U0001f600 \\n  "
    (example,) = load(write(tmp_path / "a.ndjson", {**ROW, "context": context}), separator="\n")
    assert example.context == context
    assert example.questions[0].text == "\nWho?"


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(ROW).encode() + b"\n")
    assert load(file)[0].context == "A text."


def test_parquet_gives_the_same_examples(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [
        {"context": "A", "question": "q", "answers": ["x", "y"], "max_new_tokens": 5},
        {"context": "B", "question": "r", "answers": ["2020-01-01"], "max_new_tokens": None},
    ]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    table = load(tmp_path / "a.parquet")
    lines = load(write(tmp_path / "a.jsonl", *rows))
    assert [example.key for example in table] == [example.key for example in lines]
    assert table[1].metadata["place"] == "row 2"


def test_fields_may_have_other_names(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", {"passage": "A text.", "ask": "Who?", "gold": "Ada"})
    (example,) = load(file, fields=FieldNames(context="passage", question="ask", answers="gold"))
    assert example.key == load(write(tmp_path / "b.jsonl", ROW))[0].key


def test_defaults_for_rows_that_give_none(tmp_path: Path) -> None:
    rows = (ROW, {**ROW, "answer_prefix": "It was", "max_new_tokens": 3})
    one, two = load(write(tmp_path / "a.jsonl", *rows), answer_prefix="It is", max_new_tokens=9)
    assert (one.questions[0].answer_prefix, one.questions[0].max_new_tokens) == ("It is", 9)
    assert (two.questions[0].answer_prefix, two.questions[0].max_new_tokens) == ("It was", 3)


def test_num_examples_takes_the_first(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", *({**ROW, "context": str(number)} for number in range(5)))
    assert [example.context for example in load(file, num_examples=2)] == ["0", "1"]
    assert len(load(file, num_examples=50)) == 5


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            '{"context": "A", ',
            r"a.jsonl, line 3: broken JSON at column \d+: .*Write one complete JSON object",
        ),
        ("[1, 2]", r"line 3: expected a JSON object, found list"),
        ('{"context": "A", "context": "B"}', r"line 3: the field 'context' occurs twice"),
        ('{"context": NaN}', r"line 3: NaN is no JSON"),
        (
            {"question": "q", "answers": "a"},
            r"line 3: the field 'context' is missing. Fields there: answers, question. ",
        ),
        (
            {**ROW, "question": None},
            r"line 3: the field 'question' \(or 'questions'\) is missing. Fields there: answers",
        ),
        (
            {"context": "A", "question": "q"},
            r"line 3: the field 'answers' is missing.*dataset.fields.answers=",
        ),
        ({**ROW, "context": " "}, r"line 3: the field 'context' is empty"),
        ({**ROW, "context": 5}, r"line 3: the field 'context' must be a text, found int 5"),
        ({**ROW, "question": ""}, r"line 3: the field 'question' is empty"),
        ({**ROW, "questions": ["q"]}, r"line 3: both 'question' and 'questions' are there"),
        (
            {**ROW, "answers": []},
            r"line 3: the field 'answers' must be a text or a list of at least one text",
        ),
        (
            {**ROW, "answers": 7},
            r"line 3: the field 'answers' must be a text .*found 7. Put numbers in quotes",
        ),
        ({**ROW, "answers": ["x", ""]}, r"line 3: the field 'answers' is empty"),
        (
            {**ROW, "max_new_tokens": "9"},
            r"line 3: the field 'max_new_tokens' must be a whole number, found '9'",
        ),
        (
            {**ROW, "max_new_tokens": 1.5},
            r"line 3: the field 'max_new_tokens' must be a whole number, found 1.5",
        ),
        ({**ROW, "max_new_tokens": 0}, r"line 3: max_new_tokens=0 of the question 'Who\?' is not allowed"),
        ({**ROW, "answer_prefix": 3}, r"line 3: the field 'answer_prefix' must be a text"),
        (
            {"context": "A", "questions": [], "answers": []},
            r"line 3: the field 'questions' must be a list of at least",
        ),
        (
            {"context": "A", "questions": ["q", " "], "answers": ["a", "b"]},
            r"line 3: entry 2 of 'questions' is empty",
        ),
        (
            {"context": "A", "questions": ["q", "r"], "answers": ["a"]},
            r"one entry for each of 2 questions, found 1 entr",
        ),
        (
            {"context": "A", "questions": ["q", "r"], "answers": "a"},
            r"for each of 2 questions, found str 'a'",
        ),
        (
            {"context": "A", "questions": ["q", "r"], "answers": ["a", []]},
            r"line 3: entry 2 of 'answers' must be",
        ),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, bad: dict[str, Any] | str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(write(tmp_path / "a.jsonl", ROW, "", bad, ROW))


def test_a_line_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(json.dumps(ROW).encode() + b'\n{"context": "\xff"}\n')
    with pytest.raises(DataError, match=r"a.jsonl, line 2: not UTF-8"):
        load(file)


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(DataError, match="a.jsonl holds no rows"):
        load(tmp_path / "a.jsonl")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dataset.path=.*none.jsonl does not exist"):
        load(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="does not exist"):
        JsonlConfig(path=str(tmp_path / "none.jsonl")).identity()
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(DataError, match="is a folder"):
        load(tmp_path / "folder.jsonl")


def test_a_broken_parquet_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match=r"a.parquet cannot be read as parquet: "):
        load(tmp_path / "a.parquet")


def test_prompts_beyond_the_window_are_named(tmp_path: Path) -> None:
    rows = [ROW, {**ROW, "context": "word " * 90}, {**ROW, "context": "word " * 200}]
    file = write(tmp_path / "a.jsonl", *rows)
    with pytest.raises(
        DataError, match=r"2 of 3 prompts .* window of 100 tokens: .*a.jsonl, line 2: 101 tokens; .*line 3"
    ):
        load(file, window=100, max_new_tokens=10)
    assert len(load(file, window=100, max_new_tokens=10, num_examples=1)) == 1
    assert len(load(file, window=300)) == 3


def test_a_missing_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "a.jsonl", ROW)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"dataset=jsonl needs the package 'datasets'.*pip install 'sah\[data\]'"):
        load(file)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": None}, r"dataset.path=None is not allowed. Allowed: a file that ends in .jsonl"),
        ({"path": "a.csv"}, r"dataset.path='a.csv' is not allowed"),
        ({"max_new_tokens": 0}, "dataset.max_new_tokens=0"),
        ({"separator": None}, "dataset.separator=None"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        JsonlConfig(**{"path": "a.jsonl", **settings})


def test_field_names_must_differ() -> None:
    with pytest.raises(
        ConfigError, match=r"dataset.fields.question and dataset.fields.context both read the field 'x'"
    ):
        FieldNames(context="x", question="x")
    with pytest.raises(ConfigError, match=r"dataset.fields.answers=''"):
        FieldNames(answers="")


def test_identity_follows_the_content_and_not_the_path(tmp_path: Path) -> None:
    here, there = write(tmp_path / "a.jsonl", ROW), write(tmp_path / "b.jsonl", ROW)
    identity = JsonlConfig(path=str(here)).identity()
    assert identity == JsonlConfig(path=str(there), num_examples=1, metrics=["exact_match"]).identity()
    assert str(tmp_path) not in json.dumps(identity)
    assert JsonlConfig(path=str(write(there, ROW, ROW))).identity() != identity
    assert JsonlConfig(path=str(here), separator="\n").identity() != identity


def test_nothing_is_mutated_or_left_behind(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "a.jsonl", ROW)
    config = JsonlConfig(path=str(file))
    before, text = copy.deepcopy(config), file.read_text()
    config.load(count, None)
    assert config == before and file.read_text() == text
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.jsonl"]
    assert "Generating" not in capfd.readouterr().err
