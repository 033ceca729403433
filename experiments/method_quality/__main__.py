"""Runs every method in the setting of conf/experiment/method_quality.yaml and writes table and figures: see README.md.

python -m experiments.method_quality
"""

from __future__ import annotations

from pathlib import Path

from experiments.method_quality.bound import bound_line
from experiments.method_quality.methods import DENSITIES, FIXED, ORACLE, OTHERS, PREFILLS
from experiments.pages import draw, point_table
from experiments.points import run_points
from experiments.study import parse_options, write_block
from sah.report.load import ReportPoint


def main() -> None:
    """Run all points in one process, then write the figures and the page's block."""
    methods = {**FIXED, **OTHERS}
    options = parse_options((__doc__ or "").splitlines()[0], Path(__file__).parent, [*methods, *PREFILLS])
    methods, prefills_wanted = (
        {name: lines for name, lines in settings.items() if name not in options.without}
        for settings in (methods, PREFILLS)
    )
    points = run_points("method_quality", options, methods)
    draw(points, options.folder, "quality", ["density", "output-error"])
    page = options.folder / "README.md"
    result = f"{point_table(points)}\n{bounds(points)}"
    if prefills_wanted:
        result += f"\n{point_table(run_points('method_quality', options, prefills_wanted))}"
    write_block(page, "result", result)
    print(f"{result}\n\nPage: {page}")


def bounds(points: list[ReportPoint]) -> str:
    """Compare oracle top-k with the other methods that have a fixed budget, density by density."""
    lines = ["Does oracle top-k bound the other methods with a fixed budget?", ""]
    for density in DENSITIES:
        here = {
            point.label: scores(point)
            for point in points
            if point.label in FIXED and point.summary.density_requested == density
        }
        if ORACLE in here:
            oracle = here.pop(ORACLE)
            lines.append(bound_line(density, oracle, here))
        else:
            lines.append(f"- density {density:g}: topk could not be run.")
    return "\n".join(lines) + "\n"


def scores(point: ReportPoint) -> dict[str, float]:
    """Read the score of each question, by the key of its row."""
    metric = point.summary.metric
    return {pair.key: pair.sparse_scores[metric] for pair in point.pairs() if metric in pair.sparse_scores}


if __name__ == "__main__":
    main()
