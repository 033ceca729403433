"""Messages to the user's terminal."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.text import Text


def print_error(message: str) -> None:
    """Print an error in red on stderr; plain text where that is no terminal.

    Args:
        message: What went wrong and what can be done.
    """
    Console(file=sys.stderr, soft_wrap=True, highlight=False).print(Text(message, style="red"))
