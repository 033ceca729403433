"""Hides a needle at many depths of texts of four lengths and draws where each method finds it: see README.md.

python -m experiments.depth_length
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from experiments.methods import Settings
from experiments.pages import between, draw_plots, line
from experiments.points import run_points
from experiments.study import parse_options, write_block
from sah.metrics.compare import Comparison, compare_scores
from sah.metrics.scorers import score_bounds
from sah.metrics.verdict import Claim, correct
from sah.report.grids import depth_length
from sah.report.load import ReportPoint
from sah.report.plots import grid_plot
from sah.report.table import number

LENGTHS = (512, 1024, 2048, 4096)
METHODS = ("topk", "double_sparsity", "quest", "streaming_llm")
MARGIN = 0.1
SETTINGS: Settings = {name: [[f"masker={name}", f"dataset.length={length}"] for length in LENGTHS] for name in METHODS}
FAST = ["model=tiny", "dataset.num_examples=2", "dataset.depths=2"]
"""Of the fast form, which keeps all lengths."""


def main() -> None:
    """Run, then write the heatmaps and the page's table."""
    options = parse_options((__doc__ or "").splitlines()[0], Path(__file__).parent)
    points = run_points("depth_length", options, SETTINGS, FAST)
    by_method = {name: [point for point in points if point.label == name] for name in METHODS}
    methods = {name: members for name, members in by_method.items() if members}
    first = next(iter(methods.values()))
    grids = [("dense", depth_length(first, "dense")), *((name, depth_length(m)) for name, m in methods.items())]
    named = [dataclasses.replace(grid, title=title) for title, grid in grids if grid is not None]
    title = f"Score by depth and length of the needle, density {first[0].summary.density_requested:g}"
    draw_plots([grid_plot("needle", title, "", named)], options.folder, "depth-length")
    page = options.folder / "README.md"
    write_block(page, "result", table(methods))
    print(f"Page: {page}")


def table(methods: dict[str, list[ReportPoint]]) -> str:
    """Write mean scores by length, and each method compared with dense over all lengths."""
    compared = [compare(points) for points in methods.values()]
    claims = [Claim(result.difference, result.p_value, result.p_tied) for result in compared]
    heads = ["method", *(f"{length:,}" for length in LENGTHS), "all", "difference from dense", "verdict"]
    lines = [line(heads), line(["---", *["---:"] * (len(heads) - 2), "---"])]
    first = next(iter(methods.values()))
    lines.append(line(["dense", *means(first, dense=True), number(compared[0].dense, 2), "", ""]))
    for (name, points), result, judged in zip(methods.items(), compared, correct(claims), strict=True):
        gain = between((result.difference, result.low, result.high), 2, sign=True)
        lines.append(line([name, *means(points, dense=False), number(result.sparse, 2), gain, judged.verdict]))
    note = (
        f"{compared[0].contexts} texts a method. Differences are paired, with 95 % intervals, tied within {MARGIN:g}; "
        f"verdicts are corrected for {len(methods)} comparisons by Holm's method."
    )
    return "\n".join([*lines, "", note]) + "\n"


def means(points: Sequence[ReportPoint], *, dense: bool) -> list[str]:
    """Write the mean score at each length; a dash where a point failed."""
    found = {point.main.identity["dataset"]["length"]: point.summary for point in points}
    scores = [(s.dense if dense else s.sparse) if (s := found.get(length)) else None for length in LENGTHS]
    return [number(score, 2) for score in scores]


def compare(points: Sequence[ReportPoint]) -> Comparison:
    """Compare a method with dense over the texts of all lengths."""
    metric = points[0].summary.metric
    pairs = [pair for point in points for pair in point.pairs() if metric in pair.sparse_scores]
    return compare_scores(
        [pair.dense_scores[metric] for pair in pairs],
        [pair.sparse_scores[metric] for pair in pairs],
        [pair.row.example_key for pair in pairs],
        bounds=score_bounds(metric),
        margin=MARGIN,
    )


if __name__ == "__main__":
    main()
