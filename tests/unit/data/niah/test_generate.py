from __future__ import annotations

import copy
import random
from pathlib import Path

import pytest

from sah.data.example import Example, PromptCounter
from sah.data.niah.config import NiahConfig
from sah.data.niah.haystack import load_haystack
from sah.errors import DataError

TASKS = ["single", "multikey", "multiquery"]
LINE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."


def load(config: NiahConfig, counter: PromptCounter, window: int | None = None) -> list[Example]:
    return list(config.load(counter, window))


def settings(task: str, **changes: object) -> NiahConfig:
    return NiahConfig(**{"task": task, "length": 2048, "max_new_tokens": 200, **changes})  # type: ignore[arg-type]


@pytest.mark.usefixtures("essays_wheel")
@pytest.mark.parametrize("haystack", ["noise", "essays", "prose"])
@pytest.mark.parametrize("needle", ["number", "word"])
@pytest.mark.parametrize("task", TASKS)
def test_prompts_fill_the_length_and_hold_the_answers(
    task: str, needle: str, haystack: str, counter: PromptCounter
) -> None:
    examples = load(settings(task, needle=needle, haystack=haystack, num_examples=5), counter)
    assert len(examples) == 5
    for example in examples:
        (question,) = example.questions
        tokens = counter(example.context, question.text, question.answer_prefix)
        assert 0.9 * 2048 <= tokens <= 2048
        assert tokens == example.metadata["prompt_tokens"]
        assert len(question.answers) == (4 if task == "multiquery" else 1)
        for answer, asked in zip(question.answers, question.metadata["needles"], strict=True):
            assert example.context.count(answer) == 1
            assert f"for {asked['key']} is: {answer}." in example.context
            assert asked["key"] in question.text and asked["key"] in question.answer_prefix
            assert answer not in question.text + question.answer_prefix


@pytest.mark.parametrize("length", [150, 200, 300, 500, 777, 1024, 4096])
@pytest.mark.parametrize("haystack", ["noise", "prose"])
def test_any_length_is_filled(haystack: str, length: int, count_words: PromptCounter) -> None:
    for example in load(settings("single", haystack=haystack, length=length, num_examples=12), count_words):
        assert 0.9 * length <= example.metadata["prompt_tokens"] <= length


def test_bytes_as_tokens_need_about_four_hundred(counter: PromptCounter) -> None:
    for example in load(settings("single", length=480, num_examples=8), counter):
        assert 0.9 * 480 <= example.metadata["prompt_tokens"] <= 480


def test_examples_are_reproducible_and_decided_by_seed(count_words: PromptCounter) -> None:
    first, again = (load(settings("multiquery", haystack="prose"), count_words) for _ in range(2))
    assert first == again
    other = load(settings("multiquery", haystack="prose", seed=1), count_words)
    assert not {example.key for example in first} & {example.key for example in other}
    assert len({example.key for example in first}) == len(first)


@pytest.mark.parametrize("task", TASKS)
def test_an_example_does_not_depend_on_their_number(task: str, count_words: PromptCounter) -> None:
    few = load(settings(task, num_examples=3, haystack="prose"), count_words)
    many = load(settings(task, num_examples=7, haystack="prose"), count_words)
    assert [example.key for example in few] == [example.key for example in many[:3]]


def test_nothing_is_mutated_and_the_global_generator_is_left_alone(count_words: PromptCounter) -> None:
    config = settings("multikey", depths=[0.1, 0.9])
    before, state = copy.deepcopy(config), random.getstate()
    load(config, count_words)
    assert config == before
    assert random.getstate() == state


@pytest.mark.parametrize("haystack", ["noise", "prose"])
@pytest.mark.parametrize("task", TASKS)
def test_the_asked_needle_lies_at_its_depth(task: str, haystack: str, count_words: PromptCounter) -> None:
    config = settings(task, haystack=haystack, length=4096, depths=[0.0, 0.1, 0.5, 0.77, 1.0], num_examples=10)
    for index, example in enumerate(load(config, count_words)):
        depth = [0.0, 0.1, 0.5, 0.77, 1.0][index % 5]
        (question,) = example.questions
        assert example.metadata["depth"] == depth
        haystack_text = example.context.partition("afterwards.\n")[2]
        for needle in example.metadata["needles"][1:]:
            start = haystack_text.index(f"One of the special magic numbers for {needle['key']} is")
            end = haystack_text.index(".", start) + 2
            haystack_text = haystack_text[:start] + haystack_text[end:]
        sentence = f"One of the special magic numbers for {question.metadata['needles'][0]['key']} is"
        position = haystack_text.index(sentence)
        measured = position / (len(haystack_text) - len(sentence) - len(": 1234567. "))
        assert measured == pytest.approx(depth, abs=0.02)
        assert question.metadata["needles"][0]["depth"] == pytest.approx(depth, abs=0.02)


def test_depth_zero_and_one_are_the_very_ends(count_words: PromptCounter) -> None:
    first, last = load(settings("single", depths=2, num_examples=2), count_words)
    assert first.context.partition("afterwards.\n")[2].startswith("One of the special magic numbers for")
    assert last.context.endswith(f"is: {last.questions[0].answers[0]}.")


def test_other_needles_are_spread_through_the_haystack(count_words: PromptCounter) -> None:
    for example in load(settings("multikey", num_keys=6, length=4096, num_examples=6), count_words):
        depths = sorted(needle["depth"] for needle in example.metadata["needles"][1:])
        for share, depth in enumerate(depths):
            assert share / 5 - 0.02 <= depth <= (share + 1) / 5 + 0.02


def test_the_single_prompt_is_rulers_word_for_word(count_words: PromptCounter) -> None:
    (example,) = load(settings("single", length=1024, depths=[0.5], num_examples=1), count_words)
    (question,) = example.questions
    key, value = question.metadata["needles"][0]["key"], question.answers[0]
    lines = example.context.split("\n")
    assert lines[0] == (
        "A special magic number is hidden within the following text. Make sure to memorize it. "
        "I will quiz you about the number afterwards."
    )
    needle = f"One of the special magic numbers for {key} is: {value}."
    assert lines[1:].count(needle) == 1
    assert {line for line in lines[1:] if line != needle} == {LINE}
    assert question.text == f"\nWhat is the special magic number for {key} mentioned in the provided text?"
    assert question.answer_prefix == f" The special magic number for {key} mentioned in the provided text is"
    assert len(value) == 7 and value.isdigit()


def test_the_multiquery_prompt_is_rulers_word_for_word(count_words: PromptCounter) -> None:
    config = settings("multiquery", needle="word", num_queries=3, num_examples=1)
    (example,) = load(config, count_words)
    (question,) = example.questions
    a, b, c = (needle["key"] for needle in question.metadata["needles"])
    assert example.context.startswith(
        "Some special magic words are hidden within the following text. Make sure to memorize it. "
        "I will quiz you about the words afterwards.\n"
    )
    asked = f"special magic words for {a}, {b}, and {c} mentioned in the provided text"
    assert question.text == f"\nWhat are all the {asked}?"
    assert question.answer_prefix == f" The {asked} are"
    assert example.context.count("One of the special magic words for") == 4


def test_multikey_asks_in_the_singular_as_ruler_does(count_words: PromptCounter) -> None:
    (example,) = load(settings("multikey", num_examples=1), count_words)
    assert example.context.startswith("A special magic number is hidden")
    assert example.questions[0].text.startswith("\nWhat is the special magic number for")


def test_examples_start_at_different_places_of_a_text(count_words: PromptCounter) -> None:
    starts = {
        example.context.partition("afterwards.\n")[2][:40]
        for example in load(settings("single", haystack="prose", depths=[1.0], num_examples=6), count_words)
    }
    assert len(starts) == 6


def test_a_text_starts_over_when_it_ends(essays_wheel: Path, count_words: PromptCounter) -> None:
    assert essays_wheel.exists()
    sentences = load_haystack("essays").sentences
    (example,) = load(settings("single", haystack="essays", length=6000, num_examples=1), count_words)
    assert example.metadata["prompt_tokens"] >= 5400
    assert all(example.context.count(sentence) >= 2 for sentence in sentences)


def test_few_calls_of_the_tokenizer_are_needed() -> None:
    from sah.data.niah.config import NiahConfig as Config

    class Counter:
        calls = 0

        def __call__(self, context: str, question: str, answer_prefix: str) -> int:
            self.calls += 1
            return len((context + question + answer_prefix).split())

    counter = Counter()
    load(Config(length=100_000, haystack="prose", num_examples=4), counter)
    assert counter.calls <= 15 * 4


@pytest.mark.parametrize("haystack", ["noise", "prose"])
@pytest.mark.parametrize("task", TASKS)
def test_a_needle_that_does_not_fit_is_refused_with_a_length_that_does(
    task: str, haystack: str, count_words: PromptCounter
) -> None:
    with pytest.raises(DataError, match=r"dataset.length=60 has no room for .*Write dataset.length=\d+") as caught:
        load(settings(task, haystack=haystack, length=60), count_words)
    enough = int(str(caught.value).rpartition("dataset.length=")[2].split()[0])
    assert len(load(settings(task, haystack=haystack, length=enough), count_words)) == 8


def test_a_length_beyond_the_window_is_refused_with_one_that_fits(count_words: PromptCounter) -> None:
    config = settings("single", length=2048, max_new_tokens=16)
    with pytest.raises(
        DataError,
        match=r"dataset.length=2048 and 16 answer tokens are more than the model's window of 2048 tokens. "
        r"Write dataset.length=2032 or less",
    ):
        load(config, count_words, window=2048)
    assert load(config, count_words, window=2064)
    with pytest.raises(DataError, match=r"Write a smaller dataset.max_new_tokens"):
        load(config, count_words, window=16)


def test_a_limit_that_cannot_hold_the_answer_is_refused(count_words: PromptCounter) -> None:
    config = settings("multiquery", max_new_tokens=16)
    with pytest.raises(DataError, match=r"max_new_tokens=16 cannot hold the answer, which takes 31 tokens") as caught:
        load(config, count_words)
    config.max_new_tokens = int(str(caught.value).rpartition("max_new_tokens=")[2].split()[0])
    assert load(config, count_words)


def test_a_tokenizer_that_truncates_is_noticed() -> None:
    def truncating(context: str, question: str, answer_prefix: str) -> int:
        return min(400, len((context + question + answer_prefix).split()))

    with pytest.raises(DataError, match="seems to truncate"):
        load(settings("single", length=2048), truncating)
