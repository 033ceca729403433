"""What every command has in common: how it is called, how its mistakes are told, and how it ends."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from sah.console import print_error
from sah.errors import SahError

COMMANDS: tuple[str, ...] = ("validate", "show", "compare", "ls", "doctor", "help")
"""Each is the module of its name in this package, with a function `main(arguments) -> int`."""

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells count it."""


def run(name: str, arguments: Sequence[str]) -> int:
    """Run a command.

    Args:
        name: One of `COMMANDS`.
        arguments: What follows it on the command line.

    Returns:
        The exit code: 0, or 1 after the message of a mistake, or what the command gives.
    """
    for stream in (sys.stdout, sys.stderr):
        # A terminal that knows ASCII alone shows question marks in place of what it lacks.
        getattr(stream, "reconfigure", lambda **_: None)(errors="replace")
    try:
        code: int = import_module(f"sah.terminal.{name}").main(list(arguments))
        sys.stdout.flush()
    except SahError as error:
        print_error(str(error))
        return 1
    except BrokenPipeError:
        # `sah show outputs | head`: nobody reads on. Python would complain once more while it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print_error("Interrupted.")
        return INTERRUPTED
    return code


def parser(name: str, description: str, examples: str) -> argparse.ArgumentParser:
    """Make the parser of a command's arguments, with examples below its help.

    Args:
        name: The command.
        description: What it does, in a sentence or two.
        examples: One a line.

    Returns:
        The parser, without arguments.
    """
    return argparse.ArgumentParser(
        prog=f"sah {name}",
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
