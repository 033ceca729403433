"""The sentences of RULER's needle-in-a-haystack prompts, word for word.

Source: NVIDIA/RULER (Apache-2.0), scripts/data/synthetic/constants.py and niah.py, arXiv 2404.06654.
RULER's template is one text; here it is cut where the context ends: introduction and haystack are the
context, the question follows with its own newline, and the answer prefix keeps RULER's leading space.
"""

from __future__ import annotations

from collections.abc import Sequence


def needle_sentence(kind: str, key: str, value: str) -> str:
    """Write the sentence that hides a value, in the plural even for a single needle, as in RULER.

    Args:
        kind: `number` or `word`.
        key: What the question names.
        value: What it asks for.

    Returns:
        The sentence.
    """
    return f"One of the special magic {kind}s for {key} is: {value}."


def introduction(kind: str, queries: int) -> str:
    """Write what stands before the haystack.

    Args:
        kind: `number` or `word`.
        queries: Needles asked for; RULER uses the singular for one, however many are hidden.

    Returns:
        The introduction with its closing newline.
    """
    if queries == 1:
        subject, noun = f"A special magic {kind} is hidden", kind
    else:
        subject, noun = f"Some special magic {kind}s are hidden", f"{kind}s"
    return (
        f"{subject} within the following text. Make sure to memorize it. I will quiz you about the {noun} afterwards.\n"
    )


def question(kind: str, keys: Sequence[str]) -> tuple[str, str]:
    """Write the question and the start of its answer.

    Args:
        kind: `number` or `word`.
        keys: The keys asked for, at least one.

    Returns:
        The question with its leading newline, and the answer prefix with its leading space.
    """
    if len(keys) == 1:
        subject = f"special magic {kind} for {keys[0]} mentioned in the provided text"
        return f"\nWhat is the {subject}?", f" The {subject} is"
    asked = ", ".join(keys[:-1]) + ", and " + keys[-1]
    subject = f"special magic {kind}s for {asked} mentioned in the provided text"
    return f"\nWhat are all the {subject}?", f" The {subject} are"
