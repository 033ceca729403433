"""Runs every method in the setting of conf/experiment/method_quality.yaml and writes table and figures: see README.md.

python -m experiments.method_quality
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from experiments.method_quality.bound import bound_line
from experiments.method_quality.methods import DENSITIES, FIXED, ORACLE, OTHERS, setting
from experiments.points import DonePoint, run_points
from experiments.study import parse_options, write_block
from sah.report.figures import density_curve, error_curve
from sah.report.table import number

Done = dict[tuple[str, int], DonePoint]
"""The points that worked, by method and number of the setting."""


def main() -> None:
    """Run all points in one process, then write the figures and the page's block."""
    options = parse_options((__doc__ or "").splitlines()[0], Path(__file__).parent)
    methods = {**FIXED, **OTHERS}
    keys = [(name, index) for name, settings in methods.items() for index in range(len(settings))]
    ran = run_points("method_quality", options, [methods[name][index] for name, index in keys])
    done: Done = {key: point for key, point in zip(keys, ran, strict=True) if point is not None}
    if not done:
        raise SystemExit("No point could be run.")
    points = [dataclasses.replace(point.summary, label=name) for (name, _), point in done.items()]
    density_curve(points, options.folder / "score.png")
    error_curve(points, options.folder / "error.png")
    page = options.folder / "README.md"
    result = f"{table(done)}\n{bounds(done)}"
    write_block(page, "result", result)
    print(f"{result}\n\nPage: {page}")


def table(done: Done) -> str:
    """Write one line a point."""
    first = next(iter(done.values())).summary
    lines = [
        f"Dense attention on the same {first.questions} prompts: {number(first.dense, 3)}.",
        "",
        "| method | setting | prompts | score | density measured | output error |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for (name, index), point in done.items():
        summary = point.summary
        prompts = f"{summary.questions}" + (f" ({summary.failed} failed)" if summary.failed else "")
        figures = [number(summary.sparse, 3), number(summary.density_measured, 4), number(summary.output_error, 3)]
        lines.append(f"| {name} | {setting({**FIXED, **OTHERS}[name][index])} | {prompts} | {' | '.join(figures)} |")
    return "\n".join(lines) + "\n"


def bounds(done: Done) -> str:
    """Compare oracle top-k with the other methods that have a fixed budget, density by density."""
    lines = ["Does oracle top-k bound the other methods with a fixed budget?", ""]
    for index, density in enumerate(DENSITIES):
        here = {name: done[name, index].scores for name in FIXED if (name, index) in done}
        if ORACLE in here:
            oracle = here.pop(ORACLE)
            lines.append(bound_line(density, oracle, here))
        else:
            lines.append(f"- density {density:g}: topk could not be run.")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
