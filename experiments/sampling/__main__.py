"""Runs samplers and oracle top-k at densities that come out equal, and compares them: see README.md beside this file.

python -m experiments.sampling
"""

from __future__ import annotations

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
    setting,
    with_densities,
)
from experiments.pages import Pair, draw, pair_table, point_table
from experiments.points import run_points
from experiments.study import FAST, FAST_PROSE, parse_options, write_block
from sah.report.load import ReportPoint

DENSITIES = (0.05, 0.1, 0.2)
TOPK = "topk"

SETTINGS: Settings = {
    TOPK: with_densities(DENSITIES, "masker=topk"),
    ADAPTIVE: adaptive(*ADAPTIVE_SIZES),
    MAGICPIG: magicpig(*MAGICPIG_TABLES),
    RANDOM: with_densities(DENSITIES, "masker=[sink,local,random]", *FEW_FIXED),
}
"""Each method's settings belong to the densities in turn; those of the two in the middle were chosen to come near."""

MARGINS = {"needle": 0.1, "prose": 0.05}
"""As the presets have them."""


def main() -> None:
    """Run, then write the figures and the page's tables."""
    options = parse_options((__doc__ or "").splitlines()[0], Path(__file__).parent)
    parts = []
    for title, preset, fast in (("needle", "sampling", FAST), ("prose", "sampling_prose", FAST_PROSE)):
        points = run_points(preset, options, SETTINGS, fast)
        draw(points, options.folder, title, ["density"] if title == "needle" else ["perplexity", "kl", "output-error"])
        compared = pair_table(pairs(points), TOPK, "sampled", MARGINS[title])
        parts.append(f"### {title.capitalize()}\n\n{compared}\n{point_table(points)}")
    page = options.folder / "README.md"
    write_block(page, "result", "\n".join(parts))
    print(f"Page: {page}")


def pairs(points: Sequence[ReportPoint]) -> list[Pair]:
    """Pair each sampler's setting with top-k at the density that it was chosen for."""
    done = {(point.label, setting(point.overrides)): point for point in points}
    found = []
    for name, settings in SETTINGS.items():
        for largest, overrides in zip(SETTINGS[TOPK], settings, strict=True):
            first, second = done.get((TOPK, setting(largest))), done.get((name, setting(overrides)))
            if name != TOPK and first is not None and second is not None:
                found.append(Pair(name, first, second))
    return found


if __name__ == "__main__":
    main()
