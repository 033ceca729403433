"""Runs the sweep of conf/experiment/niah_forms.yaml and writes dense scores by form and length: see README.md.

python -m experiments.niah_forms
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from experiments.study import parse_options, run_preset, write_block

LOWEST_USEFUL = 0.9
"""Below this dense score a form says more about the model than about sparsity."""


def main() -> None:
    """Run, then write the page's table."""
    options = parse_options((__doc__ or "").splitlines()[0], Path(__file__).parent)
    scores: dict[tuple[str, str, str], dict[int, float | None]] = defaultdict(dict)
    for point, overrides in run_preset("niah_forms", options):
        given = dict(override.lstrip("+").split("=", 1) for override in overrides)
        form = (given["dataset"], given["dataset.needle"], given["dataset.haystack"])
        scores[form][int(given["dataset.length"])] = point.dense
    lengths = sorted({length for by_length in scores.values() for length in by_length})
    lines = [
        f"| data set | needle | haystack | {' | '.join(f'{n:,}' for n in lengths)} | works dense |",
        f"| --- | --- | --- | {' | '.join('---:' for _ in lengths)} | --- |",
    ]
    for form, by_length in scores.items():
        cells = ["-" if by_length.get(n) is None else f"{by_length[n]:.2f}" for n in lengths]
        works = all((by_length.get(n) or 0) >= LOWEST_USEFUL for n in lengths)
        lines.append(f"| {' | '.join([*form, *cells])} | {'yes' if works else 'no'} |")
    page = options.folder / "README.md"
    write_block(page, "result", "\n".join(lines))
    print(f"Page: {page}")


if __name__ == "__main__":
    main()
