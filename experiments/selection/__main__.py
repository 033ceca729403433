"""Runs methods that choose keys by query head and by KV head, and compares the two: see README.md beside this file.

python -m experiments.selection
"""

from __future__ import annotations

from pathlib import Path

from experiments.methods import Settings, with_densities
from experiments.pages import Pair, draw, pair_table, point_table
from experiments.points import run_points
from experiments.study import FAST_PROSE, parse_options, write_block
from sah.report.load import ReportPoint

DENSITIES = (0.05, 0.1, 0.2, 0.4)
METHODS = ("topk", "quest", "double_sparsity")
GROUP = "group"
MARGIN = 0.05
"""As the preset has it."""

SETTINGS: Settings = {
    **{name: with_densities(DENSITIES, f"masker={name}") for name in METHODS},
    **{
        f"{name} {GROUP}": with_densities(DENSITIES, f"masker={name}", f"masker.{name}.selection={GROUP}")
        for name in METHODS
    },
}


def main() -> None:
    """Run, then write the figures and the page's tables."""
    options = parse_options((__doc__ or "").splitlines()[0], Path(__file__).parent)
    points = run_points("selection", options, SETTINGS, FAST_PROSE)
    draw(points, options.folder, "prose", ["perplexity", "kl", "output-error"])
    result = f"{pair_table(pairs(points), 'by query head', 'by KV head', MARGIN)}\n{point_table(points)}"
    page = options.folder / "README.md"
    write_block(page, "result", result)
    print(f"Page: {page}")


def pairs(points: list[ReportPoint]) -> list[Pair]:
    """Pair each choice by KV head with the one by query head at the same density."""
    by_head = {(f"{point.label} {GROUP}", point.summary.density_requested): point for point in points}
    return [
        Pair(first.label, first, point)
        for point in points
        if (first := by_head.get((point.label, point.summary.density_requested))) is not None
    ]


if __name__ == "__main__":
    main()
