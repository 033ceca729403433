"""Runs methods with question and answer sparse, and with the answer alone, and compares the two: see README.md.

python -m experiments.phases
"""

from __future__ import annotations

from pathlib import Path

from experiments.methods import Settings, with_densities
from experiments.pages import Pair, draw, pair_table, point_table
from experiments.points import run_points
from experiments.study import parse_options, write_block

DENSITIES = (0.05, 0.1, 0.2)
METHODS = ("topk", "quest", "double_sparsity", "streaming_llm")
PHASES = {"question and answer": "phases=[question,decode]", "answer": "phases=[decode]"}
MARGIN = 0.1

SETTINGS: Settings = {
    name: [
        [*overrides, phases] for overrides in with_densities(DENSITIES, f"masker={name}") for phases in PHASES.values()
    ]
    for name in METHODS
}


def main() -> None:
    """Run, then write the figure and the page's tables."""
    options = parse_options((__doc__ or "").splitlines()[0], Path(__file__).parent)
    points = run_points("phases", options, SETTINGS)
    draw(points, options.folder, "phases", ["density"])
    both, answer = ([point for point in points if phases in point.overrides] for phases in PHASES.values())
    at_first = {(point.label, point.summary.density_requested): point for point in both}
    pairs = [
        Pair(point.label, first, point)
        for point in answer
        if (first := at_first.get((point.label, point.summary.density_requested))) is not None
    ]
    first_name, second_name = PHASES
    result = f"{pair_table(pairs, first_name, second_name, MARGIN)}\n{point_table(points)}"
    page = options.folder / "README.md"
    write_block(page, "result", result)
    print(f"Page: {page}")


if __name__ == "__main__":
    main()
