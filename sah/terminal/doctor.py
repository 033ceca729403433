"""`sah doctor`: whether this machine can run sah, and what to do where it cannot."""

from __future__ import annotations

import argparse
import dataclasses
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from sah.terminal.command import parser
from sah.terminal.health import OK, PROBLEM, WARNING, Check, Result, guarded
from sah.terminal.points import OUTPUTS
from sah.terminal.screen import console, show_json, show_line

_EXAMPLES = """\
  sah doctor
  sah doctor --quick               without loading the embedded model
  sah doctor --output-dir /data/outputs --json"""

NETWORK_SECONDS = 12.0
"""How long all checks that ask a server may take together, name resolution included."""

_STYLES = {OK: "green", WARNING: "yellow", PROBLEM: "red"}


def main(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: What follows `sah doctor`.

    Returns:
        The exit code: 1 if there is a problem; warnings are none.
    """
    given = _parse(arguments)
    return tell(examine(given.output_dir, load=not given.quick), as_json=given.json)


def tell(results: Sequence[Result], *, as_json: bool = False) -> int:
    """Print what was found.

    Args:
        results: Of the checks.
        as_json: Whether machines read it.

    Returns:
        The exit code: 1 if there is a problem.
    """
    problems = sum(result.status == PROBLEM for result in results)
    warnings = sum(result.status == WARNING for result in results)
    if as_json:
        show_json({"problems": problems, "warnings": warnings, "checks": [dataclasses.asdict(r) for r in results]})
        return 1 if problems else 0
    target = console()
    width = max(len(result.name) for result in results)
    for result in results:
        target.print(f"{result.status:<8}", style=_STYLES[result.status], end="")
        first, *rest = result.text.splitlines() or [""]
        show_line(target, f"{result.name:<{width}}  {first}")
        for line in (*rest, *filter(None, [result.advice])):
            show_line(target, f"{'':<{8 + width}}  {line}")
    told = [f"{count} {name}{'' if count == 1 else 's'}" for count, name in ((problems, PROBLEM), (warnings, WARNING))]
    show_line(target, ", ".join(told), "bold red" if problems else "bold")
    return 1 if problems else 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    built = parser(
        "doctor",
        "Check versions, processor, network, tracker, disk and the embedded model. Each line is ok, a warning or a "
        "problem, with what to do; the exit code is 1 if there is a problem.",
        _EXAMPLES,
    )
    built.add_argument("--quick", action="store_true", help="do not load the embedded model")
    built.add_argument(
        "--output-dir", type=Path, default=OUTPUTS, metavar="DIR", help="the output folder to check (outputs)"
    )
    built.add_argument("--json", action="store_true", help="the checks as JSON")
    return built.parse_args(arguments)


def examine(output_dir: Path, *, load: bool = True, network_seconds: float = NETWORK_SECONDS) -> list[Result]:
    """Run all checks. A check that fails itself is a problem of that name, and stops no other one.

    Args:
        output_dir: The output folder.
        load: Whether to load the embedded model and let it answer.
        network_seconds: How long to wait for checks that ask a server.

    Returns:
        Their results, in the order of the output.
    """
    from sah.terminal import health, servers

    asked = _begin({"hub": servers.hub, "wandb": servers.wandb})
    first: list[tuple[str, Check]] = [
        ("python", health.python),
        ("sah", health.code),
        ("packages", health.packages),
        ("tested set", health.tested_set),
        ("extras", health.extras),
        ("config", health.config),
        ("processor", health.processor),
        ("device", health.device),
    ]
    results = [result for name, check in first for result in guarded(name, check)]
    results += asked(network_seconds)
    results += guarded("output folder", lambda: health.disk("output folder", output_dir, "output_dir=PATH"))
    results += guarded("cache folder", health.cache_folder)
    results += guarded("embedded model", lambda: health.embedded(load=load))
    return results


def _begin(checks: dict[str, Check]) -> Callable[[float], list[Result]]:
    """Start checks that may never end in threads that can be left behind; give a function that collects them."""
    found: dict[str, list[Result]] = {}
    threads = []
    for name, check in checks.items():
        thread = threading.Thread(
            target=lambda n=name, c=check: found.__setitem__(n, guarded(n, c)), name=f"sah-{name}", daemon=True
        )
        thread.start()
        threads.append(thread)

    def collect(seconds: float) -> list[Result]:
        results: list[Result] = []
        for name, thread in zip(checks, threads, strict=True):
            thread.join(seconds)
            late = Result(name, WARNING, f"no answer within {seconds:.0f} s", "Check the network, or go on offline.")
            results += found.get(name, [late])
        return results

    return collect
