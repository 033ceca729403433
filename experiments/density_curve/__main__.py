"""Runs the sweep of conf/experiment/density_curve.yaml and writes its table and figure: see README.md beside this file.

python -m experiments.density_curve
"""

from __future__ import annotations

from pathlib import Path

from experiments.study import parse_options, run_preset, write_block
from sah.report.figures import density_curve
from sah.report.table import markdown_table, speed_note


def main() -> None:
    """Run, then write the figure and the page's table."""
    options = parse_options((__doc__ or "").splitlines()[0], Path(__file__).parent)
    points = [point for point, _ in run_preset("density_curve", options)]
    options.folder.mkdir(parents=True, exist_ok=True)
    density_curve(points, options.folder / "density_curve.png")
    page = options.folder / "README.md"
    write_block(page, "result", f"{markdown_table(points)}\n{speed_note(points)}")
    print(f"Page: {page}")


if __name__ == "__main__":
    main()
