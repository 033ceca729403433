"""`sah validate OVERRIDES...`: all mistakes of a command line at once, and what it would run."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from sah.terminal.command import parser
from sah.terminal.screen import console, show_columns, show_json, show_line

_EXAMPLES = """\
  sah validate masker=topk density=0.1
  sah validate -m masker=topk,quest,random density=0.05,0.1
  sah validate +experiment=density_curve
  sah validate -m 'masker=topk,[sink,local,topk]' masker.topk.heavy_size=64 --json"""

_MOST_NAMES = 12


def main(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: What follows `sah validate`.

    Returns:
        The exit code: 1 if there is any mistake.
    """
    given = _parse(arguments)
    from sah.terminal.checked import check_command

    checked = check_command(given.overrides, multirun=given.multirun, config_dir=given.config_dir)
    facts = _facts(checked.experiments)
    if given.json:
        show_json(
            {
                "ok": not checked.mistakes,
                "mistakes": checked.mistakes,
                "points": checked.jobs,
                "different": checked.different,
                "trials": checked.trials,
                **{name: list(values) for name, values in facts.items()},
            }
        )
        return 1 if checked.mistakes else 0
    target = console()
    if checked.mistakes:
        count = len(checked.mistakes)
        show_line(target, f"{count} mistake{'' if count == 1 else 's'}:", "bold red")
        for place, message in enumerate(checked.mistakes, start=1):
            first, *rest = message.splitlines()
            show_line(target, f"  {place}. {first}", "red")
            for line in rest:
                show_line(target, f"     {line.strip()}")
        if checked.jobs > 1:
            show_line(target, f"{len(checked.experiments)} of {checked.jobs} points are right.")
        return 1
    show_line(target, f"Right: {_counted(checked.jobs, checked.different, checked.trials)}.", "bold green")
    show_columns(target, [(name, _listed(values)) for name, values in facts.items()])
    written = shlex.join([*(["-m"] if given.multirun else []), *given.overrides])
    show_line(target, f"Run it:   python -m sah.run {written}".rstrip())
    show_line(target, f"Plan it:  sah plan {written}".rstrip() + "  (what is left, how long, does the model fit)")
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    built = parser(
        "validate",
        "Compose and check all points of a command line, without loading a model or computing anything. All mistakes "
        "are told at once; the exit code is 1 if there are any.",
        _EXAMPLES,
    )
    built.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="as for python -m sah.run")
    built.add_argument("-m", "--multirun", action="store_true", help="a sweep")
    built.add_argument(
        "-cd", "--config-dir", type=Path, metavar="DIR", help="your own groups, as for python -m sah.run"
    )
    built.add_argument("--json", action="store_true", help="the result as JSON")
    return built.parse_intermixed_args(arguments)


def _facts(experiments: Iterable[object]) -> dict[str, list[str]]:
    """List the different models, data sets, recipes and so on of the points."""
    from sah.config.experiment import Experiment

    facts: dict[str, dict[str, None]] = {}
    for one in experiments:
        if not isinstance(one, Experiment):
            continue
        told = {
            "models": one.model.label or one.model.name,
            "data sets": one.dataset.name,
            "recipes": one.label,
            "prefill": one.prefill_label or "dense",
            "densities": f"{one.density:g}",
            "sparse in": "+".join(one.phases),
            "seeds": str(one.seed),
            "tracker": one.tracker.name,
            "output folder": str(one.output_dir),
        }
        for name, value in told.items():
            facts.setdefault(name, {})[value] = None
    return {name: list(values) for name, values in facts.items()}


def _counted(jobs: int, different: int, trials: int | None) -> str:
    points = f"{jobs} point{'' if jobs == 1 else 's'}"
    if trials is not None:
        return f"a search of up to {trials} trials; {points} with every value of every axis composed"
    if different < jobs:
        return f"{points}, {jobs - different} of them equal to another one and run once"
    return points


def _listed(values: Sequence[str]) -> str:
    more = f" and {len(values) - _MOST_NAMES} more" if len(values) > _MOST_NAMES else ""
    return ", ".join(values[:_MOST_NAMES]) + more
