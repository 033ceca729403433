"""The console script `sah`: `sah run ...`, overrides alone (`sah masker=topk`), `sah plan ...` and `sah fetch NAME`."""

from __future__ import annotations

import argparse
import re
import sys

from sah.console import print_error
from sah.errors import SahError

ESSAYS = "essays"
"""What `sah fetch` downloads beside models: the text of the haystack."""

_USAGE_EXIT = 2


def main() -> None:
    """Run the command in `sys.argv`. Without arguments the help is shown."""
    program, *arguments = sys.argv
    if arguments and arguments[0] == "fetch":
        raise SystemExit(fetch(arguments[1:]))
    if arguments and arguments[0] == "plan":
        from sah.plan import main as plan

        sys.argv = [program, *arguments[1:]]
        plan()
        return
    if arguments and arguments[0] == "run":
        arguments = arguments[1:]
    elif not arguments:
        arguments = ["--help"]
    elif re.fullmatch(r"[\w-]+", arguments[0]) and not arguments[0].startswith("-"):
        print_error(
            f"There is no command {arguments[0]!r}. Allowed: run, plan, fetch, or settings such as masker=topk. "
            "See: sah --help"
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
