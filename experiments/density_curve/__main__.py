"""Runs all methods on a needle and on prose and writes tables and figures: see README.md beside this file.

python -m experiments.density_curve
"""

from __future__ import annotations

from pathlib import Path

from experiments.methods import (
    ADAPTIVE,
    ADAPTIVE_SIZES,
    MAGICPIG,
    MAGICPIG_TABLES,
    SNAPKV,
    Settings,
    adaptive,
    magicpig,
    top_p,
    with_densities,
)
from experiments.pages import draw, point_table
from experiments.points import run_points
from experiments.study import FAST_PROSE, parse_options, write_block

DENSITIES = (0.05, 0.1, 0.2, 0.4)
BUDGETED = (
    "topk",
    "quest",
    "double_sparsity",
    "hash_attention",
    "pqcache",
    "socket",
    "h2o",
    "tova",
    "streaming_llm",
    "random",
)

METHODS: Settings = {
    **{name: with_densities(DENSITIES, f"masker={name}") for name in BUDGETED},
    "snapkv": with_densities(DENSITIES, *SNAPKV),
    "topp": top_p(0.75, 0.9, 0.97),
    ADAPTIVE: adaptive(*ADAPTIVE_SIZES),
    MAGICPIG: magicpig(*MAGICPIG_TABLES),
}
"""Every method that exists; the densities of the last three follow from the attention itself."""


def main() -> None:
    """Run, then write the figures and the page's tables."""
    options = parse_options((__doc__ or "").splitlines()[0], Path(__file__).parent)
    needle = run_points("density_curve", options, METHODS)
    draw(needle, options.folder, "needle", ["density"])
    prose = run_points("density_curve_prose", options, METHODS, FAST_PROSE)
    draw(prose, options.folder, "prose", ["perplexity", "kl", "output-error"])
    page = options.folder / "README.md"
    write_block(page, "result", f"### Needle\n\n{point_table(needle)}\n### Prose\n\n{point_table(prose)}")
    print(f"Page: {page}")


if __name__ == "__main__":
    main()
