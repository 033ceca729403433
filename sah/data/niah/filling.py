"""Finds how much text fills a number of tokens, with few calls of the tokenizer."""

from __future__ import annotations

from collections.abc import Callable

from sah.errors import DataError

_CLOSE_ENOUGH = 0.99
_BISECT_EVERY = 3


def largest_fitting(count: Callable[[int], int], limit: int, rate: float) -> tuple[int, int]:
    """Find how many pieces of text fit into a number of tokens.

    Interpolates between the counts seen so far, and bisects now and then so that uneven pieces do no harm.
    Ends early once 99 % of the limit are filled.

    Args:
        count: Tokens with so many pieces; never falls as the pieces become more.
        limit: Most tokens; `count(0)` must not exceed it.
        rate: A guess of the tokens a piece, above 0.

    Returns:
        Number of pieces, and their tokens.

    Raises:
        DataError: If the count does not grow with the text, as when a tokenizer truncates.
    """
    low, low_count = 0, count(0)
    base = low_count
    high: int | None = None
    high_count = 0
    step = 0
    while low_count < _CLOSE_ENOUGH * limit and (high is None or high - low > 1):
        step += 1
        if low and high is None:
            rate = max((low_count - base) / low, rate / 16)
        elif high is not None:
            rate = max((high_count - low_count) / (high - low), 1e-6)
        probe = low + max(1, int((limit - low_count) / rate))
        if high is not None:
            probe = (low + high) // 2 if step % _BISECT_EVERY == 0 else min(probe, high - 1)
        elif probe > 16 * (limit + 16):
            raise DataError(
                f"{low} sentences count as {low_count} tokens only: the tokenizer seems to truncate. "
                "Load it without truncation (model.tokenizer_kwargs)."
            )
        tokens = count(probe)
        if tokens <= limit:
            low, low_count = probe, tokens
        else:
            high, high_count = probe, tokens
    return low, low_count
