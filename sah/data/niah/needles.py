"""Draws the keys and values of needles: adjective-noun pairs and seven-digit numbers, as RULER does."""

from __future__ import annotations

import importlib.metadata
import random
from functools import cache

from sah.errors import ConfigError

_LOWEST, _HIGHEST = 1_000_000, 9_999_999
_WORDS_PACKAGE = "wonderwords"


def draw_pairs(rng: random.Random, kind: str, count: int, haystack: str) -> list[tuple[str, str]]:
    """Draw keys with their values.

    No key or value is contained in another one or in the haystack's text, so a prediction can only match the
    needle it was meant to match.

    Args:
        rng: Source of the draws.
        kind: `number` or `word`, what the values are.
        count: How many pairs.
        haystack: Text that must not hold them.

    Returns:
        Pairs (key, value).

    Raises:
        ConfigError: If the word list's package is not installed.
    """
    taken: list[str] = []

    def fresh(what: str) -> str:
        while True:
            drawn = _draw(rng, what)
            if drawn not in haystack and not any(drawn in other or other in drawn for other in taken):
                taken.append(drawn)
                return drawn

    return [(fresh("word"), fresh(kind)) for _ in range(count)]


def _draw(rng: random.Random, kind: str) -> str:
    if kind == "number":
        return str(rng.randint(_LOWEST, _HIGHEST))
    adjectives, nouns = _word_lists()
    return f"{rng.choice(adjectives)}-{rng.choice(nouns)}"


@cache
def _word_lists() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Read adjectives and nouns: plain lower-case words only, profanities left out, in alphabetical order."""
    try:
        from wonderwords import RandomWord, is_profanity
    except ImportError as error:
        raise _no_words() from error
    source = RandomWord(enhanced_prefixes=False)

    def words(category: str) -> tuple[str, ...]:
        listed: list[str] = source.filter(include_categories=[category], regex="[a-z]+")
        return tuple(sorted({word for word in listed if not is_profanity(word)}))

    return words("adjective"), words("noun")


def words_version() -> str:
    """Tell which word list needles are drawn from.

    Returns:
        Package name and version.

    Raises:
        ConfigError: If the package is not installed.
    """
    try:
        return f"{_WORDS_PACKAGE} {importlib.metadata.version(_WORDS_PACKAGE)}"
    except importlib.metadata.PackageNotFoundError as error:
        raise _no_words() from error


def _no_words() -> ConfigError:
    return ConfigError(
        f"dataset=niah needs the package {_WORDS_PACKAGE!r}, which is not installed. Run: pip install {_WORDS_PACKAGE}"
    )
