"""Runs samplers, and other methods at the densities that these turned out to read: see README.md beside this file.

python -m experiments.sampling
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from experiments.methods import (
    ADAPTIVE,
    ADAPTIVE_SIZES,
    FEW_FIXED,
    MAGICPIG,
    MAGICPIG_TABLES,
    RANDOM,
    Settings,
    adaptive,
    magicpig,
    with_densities,
)
from experiments.pages import Pair, draw, pair_table, point_table
from experiments.points import corrected, run_points
from experiments.study import FAST, FAST_PROSE, Options, parse_options, write_block
from sah.report.load import ReportPoint

TOPK = "topk"
SAMPLERS: Settings = {ADAPTIVE: adaptive(*ADAPTIVE_SIZES), MAGICPIG: magicpig(*MAGICPIG_TABLES)}
"""Their density follows from the attention itself."""

MARGINS = {"needle": 0.1, "prose": 0.05}
"""As the presets have them."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """The study's points on one data set."""

    points: list[ReportPoint]
    pairs: list[Pair]
    """Top-k, and what is sampled at the same density."""


def main() -> None:
    """Run, then write the figures and the page's tables."""
    options = parse_options((__doc__ or "").splitlines()[0], Path(__file__).parent)
    parts = []
    for title, preset, fast in (("needle", "sampling", FAST), ("prose", "sampling_prose", FAST_PROSE)):
        found = measure(preset, options, fast)
        slugs = ["density"] if title == "needle" else ["perplexity", "kl", "output-error"]
        draw(found.points, options.folder, title, slugs)
        compared = pair_table(found.pairs, TOPK, "sampled", MARGINS[title])
        parts.append(f"### {title.capitalize()}\n\n{compared}\n{point_table(found.points)}")
    page = options.folder / "README.md"
    write_block(page, "result", "\n".join(parts))
    print(f"Page: {page}")


def measure(preset: str, options: Options, fast: Sequence[str]) -> Measured:
    """Run the samplers, and then the others at the densities that were measured."""
    samplers = run_points(preset, options, SAMPLERS, fast)
    densities = [round(point.summary.density_measured or 1.0, 4) for point in samplers]
    different = sorted(set(densities))
    others = run_points(
        preset,
        options,
        {
            TOPK: with_densities(different, "masker=topk"),
            RANDOM: with_densities(different, "masker=[sink,local,random]", *FEW_FIXED),
        },
        fast,
    )
    at = {(point.label, point.summary.density_requested): point for point in others}
    sampled = [*zip(samplers, densities, strict=True), *((at[RANDOM, d], d) for d in different if (RANDOM, d) in at)]
    pairs = [Pair(point.label, at[TOPK, density], point) for point, density in sampled if (TOPK, density) in at]
    return Measured(corrected([*others, *samplers]), pairs)


if __name__ == "__main__":
    main()
