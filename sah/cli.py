"""The console script `sah`: `sah run ...`, overrides alone (`sah masker=topk`), and the commands below."""

from __future__ import annotations

import argparse
import re
import sys

from sah.config.values import closest
from sah.console import print_error
from sah.errors import SahError
from sah.terminal.command import COMMANDS as TERMINAL_COMMANDS
from sah.terminal.command import run as run_terminal

ESSAYS = "essays"
"""What `sah fetch` downloads beside models: the text of the haystack."""

COMMANDS = ("run", "plan", *TERMINAL_COMMANDS, "report", "fetch", "train-hash", "convert-hash")
"""Words that may stand first; each is imported when it is asked for."""

_USAGE_EXIT = 2


def main() -> None:
    """Run the command in `sys.argv`. Without arguments the help is shown."""
    program, *arguments = sys.argv
    if arguments in ([], ["-h"], ["--help"]):
        raise SystemExit(run_terminal("help", []))
    if arguments and arguments[0] == "fetch":
        raise SystemExit(fetch(arguments[1:]))
    if arguments and arguments[0] in TERMINAL_COMMANDS:
        raise SystemExit(run_terminal(arguments[0], arguments[1:]))
    if arguments and arguments[0] == "report":
        from sah.report.__main__ import main as report

        sys.argv = [program, *arguments[1:]]
        report()
        return
    if arguments and arguments[0] == "plan":
        from sah.plan import main as plan

        sys.argv = [program, *arguments[1:]]
        plan()
        return
    if arguments and arguments[0] == "train-hash":
        from sah.train_hash import main as train_hash

        sys.argv = [program, *arguments[1:]]
        train_hash()
        return
    if arguments and arguments[0] == "convert-hash":
        from sah.convert_hash import main as convert_hash

        raise SystemExit(convert_hash(arguments[1:]))
    if arguments and arguments[0] == "run":
        arguments = arguments[1:]
    elif re.fullmatch(r"[\w-]+", arguments[0]) and not arguments[0].startswith("-"):
        meant = closest(arguments[0], COMMANDS)
        print_error(
            f"There is no command {arguments[0]!r}. Allowed: {', '.join(COMMANDS)}, or settings such as masker=topk. "
            f"{f'Did you mean: sah {meant}? ' if meant else ''}See: sah --help"
        )
        raise SystemExit(_USAGE_EXIT)
    from sah.run import main as run

    sys.argv = [program, *arguments]
    run()


def fetch(arguments: list[str]) -> int:
    """Make a model or the essays ready in the user's cache folder.

    Args:
        arguments: What follows `sah fetch` on the command line.

    Returns:
        The exit code: 0, or 1 with a message if the download failed.
    """
    from sah.adapters.sources import fetch as fetch_model
    from sah.adapters.sources import fetchable

    parser = argparse.ArgumentParser(
        prog="sah fetch",
        description="Make something ready in the user's cache folder, for later use without a network.",
    )
    parser.add_argument(
        "name", choices=[ESSAYS, *fetchable()], help="a model that sah brings itself, or the essays of the haystack"
    )
    name = parser.parse_args(arguments).name
    try:
        if name == ESSAYS:
            from sah.data.niah.haystack import fetch_essays

            fetch_essays()
        else:
            fetch_model(name)
    except SahError as error:
        print_error(str(error))
        return 1
    return 0


if __name__ == "__main__":
    main()
