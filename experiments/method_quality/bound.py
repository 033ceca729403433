"""Whether oracle top-k bounds the methods that have the same budget."""

from __future__ import annotations

import math
from collections.abc import Mapping

Scores = Mapping[str, float]
"""Score of each prompt, by the key of its row."""

NOISE = 0.05
"""A difference that a fair coin gives at least this often is noise."""


def bound_line(density: float, oracle: Scores, others: Mapping[str, Scores]) -> str:
    """Say for one density which methods score above the oracle, and by how much.

    Args:
        density: The density, which all share.
        oracle: Scores of oracle top-k.
        others: Scores of the other methods, by name; prompts that only one of the two answered do not count.

    Returns:
        One line of Markdown.
    """
    found = []
    for name, scores in others.items():
        pairs = [(scores[key], oracle[key]) for key in oracle if key in scores]
        ahead = sum(theirs > best for theirs, best in pairs)
        behind = sum(theirs < best for theirs, best in pairs)
        difference = sum(theirs - best for theirs, best in pairs)
        if difference > 0:
            chance = sign_test(ahead, behind)
            verdict = "within noise" if chance >= NOISE else "more than noise"
            found.append(
                f"{name} by {difference:g} of {len(pairs)} prompts (better in {ahead}, worse in {behind}; sign test "
                f"{chance:.3f}: {verdict})"
            )
    text = "above topk: " + "; ".join(found) if found else "no method with this budget scores above topk"
    return f"- density {density:g}: {text}."


def sign_test(ahead: int, behind: int) -> float:
    """Compute how often a fair coin is ahead at least as often.

    Args:
        ahead: Prompts that favour the method.
        behind: Prompts that favour the other one.

    Returns:
        The one-sided probability; 1 without any prompt.
    """
    tosses = ahead + behind
    return float(sum(math.comb(tosses, heads) for heads in range(ahead, tosses + 1)) / 2**tosses)
