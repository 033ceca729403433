"""Context ids plus question ids are the template's own ids, with one BOS, whatever stands at the seam."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sah.adapters.prompt import PromptFormatter
from sah.adapters.sources.tiny_tokenizer import build_tokenizer
from sah.errors import DataError
from tests.support.tokenizers import gemma_like, llama2_like, llama3_like, without_bos

TOKENIZERS = {"llama3": llama3_like, "gemma": gemma_like, "llama2": llama2_like, "bytes": lambda: build_tokenizer()}
with_template = pytest.mark.parametrize("scheme", TOKENIZERS)
plain = pytest.mark.parametrize("scheme", ["llama3", "gemma", "llama2"])

ENDINGS = [
    "",
    " ",
    "  ",
    "\n",
    "\n\n",
    " \n ",
    "\t",
    ".",
    "...",
    "'",
    '"',
    "don",
    "12",
    "1234567",
    "<tab",
    "é",
    "e",
    "漢字",
    "\r\n",
    "\u00a0",
    "\u200b",
    "\U0001f600",
    "-",
    "the",
    " \n" * 9,
    "_",
    "</",
    "##",
    "\u0301",
    "\x1c",
]
STARTS = [
    "what",
    " what",
    "\nwhat",
    "\n\nwhat",
    "'t",
    "'ll",
    "5",
    "678",
    "le>",
    "\u0301x",
    "字",
    "  x",
    "\t\tx",
    ".",
    "!\n",
    "s",
    "?",
    "\u200dx",
    "ing it",
    "\r\nwhat",
    "-",
    "\U0001f3fdx",
    "_x",
    "h1>",
    "#",
]
words = st.sampled_from(
    [
        "the",
        "attribute",
        "class",
        "of",
        "a",
        "don't",
        "42",
        "12345",
        "x",
        "=",
        "[1,",
        "2]",
        "漢字",
        "世界。",
        "__init__",
        "(e.g.",
        '"quoted"',
        "café",
        "😀",
        "it's",
    ]
)
blanks = st.sampled_from([" ", "  ", "\n", "\n\n", "\t", " \n", ", ", "", "   \n"])


@st.composite
def texts(draw: st.DrawFn) -> str:
    pieces = draw(st.lists(st.tuples(words, blanks), min_size=1, max_size=12))
    return "".join(word + blank for word, blank in pieces)


contexts = st.builds(lambda text, ending: text + ending, texts(), st.sampled_from(ENDINGS))
questions = st.builds(
    lambda start, text, ending: start + text + ending, st.sampled_from(STARTS), texts(), st.sampled_from(ENDINGS)
)
wild = st.text(min_size=1, max_size=40).filter(
    lambda text: bool(text.strip()) and not any("\ud800" <= c <= "\udfff" for c in text)
)


def template_ids(tokenizer: Any, message: str) -> list[int]:
    encoded = tokenizer.apply_chat_template(
        [{"role": "user", "content": message}], tokenize=True, add_generation_prompt=True, return_dict=True
    )
    return encoded["input_ids"]


def check(tokenizer: Any, context: str, question: str, prefix: str = "") -> None:
    prompts = PromptFormatter(tokenizer)
    prompt = prompts.context_prompt(context)
    ids = prompt.ids + prompts.question_ids(prompt, question, prefix)
    if tokenizer.chat_template:
        if not prefix:
            assert ids == template_ids(tokenizer, context + question)
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": context + question}], tokenize=False, add_generation_prompt=True
        )
        assert ids == tokenizer(text + prefix, add_special_tokens=False)["input_ids"]
    else:
        assert ids == tokenizer(context + question + prefix)["input_ids"]
    assert ids == prompts.prompt_ids(context, question, prefix)
    if tokenizer.bos_token not in context + question:
        assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id
    assert len(prompt.ids) >= 1
    assert len(ids) > len(prompt.ids)


@with_template
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(context=contexts, question=questions)
def test_ids_are_the_template_s_own(scheme: str, context: str, question: str) -> None:
    check(TOKENIZERS[scheme](), context, question)


@plain
@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(context=wild, question=wild)
def test_any_text_at_all(scheme: str, context: str, question: str) -> None:
    check(TOKENIZERS[scheme](), context, question)


@with_template
@pytest.mark.parametrize("start", STARTS, ids=repr)
def test_every_ending_meets_every_start(scheme: str, start: str) -> None:
    tokenizer = TOKENIZERS[scheme]()
    for ending in ENDINGS:
        check(tokenizer, "Read the notes on attribute access" + ending, start + " comes next?")
        check(tokenizer, "notes" + ending, start)


LONG_ENDINGS = {
    "spaces": " " * 300,
    "newlines": "\n" * 300,
    "tabs": "\t" * 300,
    "mixed": " \n" * 200,
    "digits": "7" * 600,
    "letters": "abcdefghij" * 60,
    "cjk": "漢字世界你好" * 100,
    "emoji": "\U0001f600\u200d" * 200,
    "punctuation": "!?" * 300,
    "dashes": "-" * 600,
}


@plain
@pytest.mark.parametrize("ending", LONG_ENDINGS)
@pytest.mark.parametrize(
    "start", ["what?", " what?", "     what?", "\nwhat?", "7 what?", "世", "-", "!", "\t?"], ids=repr
)
def test_long_runs_at_the_seam(scheme: str, ending: str, start: str) -> None:
    check(TOKENIZERS[scheme](), "Some words first. " + LONG_ENDINGS[ending], start)
    check(
        TOKENIZERS[scheme](),
        LONG_ENDINGS[ending] + " x" if ending in ("spaces", "newlines", "tabs", "mixed") else LONG_ENDINGS[ending],
        start,
    )


@pytest.mark.parametrize("scheme", ["llama3", "gemma", "llama2"])
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(context=contexts, question=questions)
def test_without_a_template_ids_are_the_plain_text_s(scheme: str, context: str, question: str) -> None:
    """The tokenizer's own BOS, once."""
    check({"llama3": llama3_like, "gemma": gemma_like, "llama2": llama2_like}[scheme](False), context, question)


@pytest.mark.parametrize("word", ["paragraph", "changes,", "meet", "__new__()", "attribute"])
def test_a_context_of_half_a_word_without_bos_works_or_is_refused_at_once(word: str) -> None:
    """With no BOS the only token may change with the question; that must not come out after the prefill."""
    tokenizer = without_bos()
    prompts = PromptFormatter(tokenizer)
    for cut in range(1, len(word)):
        try:
            prompt = prompts.context_prompt(word[:cut])
        except DataError:
            continue
        assert prompt.ids + prompts.question_ids(prompt, word[cut:]) == tokenizer(word)["input_ids"]


@with_template
@pytest.mark.parametrize("prefix", ["Answer:", " The", "\n", "7", "It's the "], ids=repr)
def test_the_answer_prefix_follows_the_assistant_s_header(scheme: str, prefix: str) -> None:
    check(TOKENIZERS[scheme](), "A context of some words.", "\nWhat is it?", prefix)


@with_template
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(context=contexts, asked=st.lists(questions, min_size=2, max_size=4))
def test_the_seam_depends_on_the_context_alone(scheme: str, context: str, asked: list[str]) -> None:
    prompts = PromptFormatter(TOKENIZERS[scheme]())
    prompt = prompts.context_prompt(context)
    for question in asked:
        assert prompts.prompt_ids(context, question)[: len(prompt.ids)] == prompt.ids
        assert prompts.context_prompt(context).ids == prompt.ids


@with_template
def test_nearly_all_of_a_long_context_is_on_the_context_s_side(scheme: str) -> None:
    prompts = PromptFormatter(TOKENIZERS[scheme]())
    context = "The quick brown fox reads the manual. " * 50
    whole = len(prompts.prompt_ids(context, "?"))
    assert len(prompts.context_prompt(context).ids) >= whole - 40


@with_template
@pytest.mark.parametrize("text", ["", " ", "\n\t "], ids=repr)
def test_empty_texts_are_refused(scheme: str, text: str) -> None:
    prompts = PromptFormatter(TOKENIZERS[scheme]())
    with pytest.raises(DataError, match="context"):
        prompts.context_prompt(text)
    with pytest.raises(DataError, match="question"):
        prompts.question_ids(prompts.context_prompt("some words"), text)
