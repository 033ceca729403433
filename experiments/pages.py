"""Tables and figures of a study's page, of what `sah.report` computes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from experiments.methods import setting
from sah.metrics.compare import Comparison, compare_scores
from sah.metrics.scorers import score_bounds
from sah.metrics.verdict import CONFIDENCE, Claim, correct
from sah.report.curves import Interval, dense_band, dense_perplexity, fidelity, output_error, perplexity, score
from sah.report.load import ReportPoint
from sah.report.pictures import draw_plot, drawing
from sah.report.plots import LinePlot, Plot, group_plots
from sah.report.table import difference, number
from sah.report.verdicts import correction_note
from sah.terminal.paired import PairedPoints

_WORDS = frozenset({"method", "setting", "sparse in", "verdict"})
"""Columns of words; all others hold numbers."""


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two settings that a study compares with each other instead of with dense."""

    name: str
    """Of what both have in common."""
    first: ReportPoint
    second: ReportPoint


def point_table(points: Sequence[ReportPoint]) -> str:
    """Write the dense score and one line a point.

    Args:
        points: From `run_points`, of one model and data set.

    Returns:
        Markdown.
    """
    first = points[0].summary
    prose = dense_perplexity(points)
    band = dense_band(points)
    dense = "-" if band is None else between((band.value, band.low, band.high), 3)
    told = "" if prose is None else f", perplexity {prose.value:.2f}"
    heads = [
        "method",
        "setting",
        "sparse in",
        "density measured",
        "prefill density measured",
        "score" if prose is None else "perplexity",
        "difference",
        "verdict",
        "KL (nats a token)",
        "top-1 agreement",
        "output error",
    ]
    rows = []
    for point in points:
        summary = point.summary
        value = score(point) if prose is None else perplexity(point)
        rows.append(
            [
                point.label,
                setting(point.overrides) + (f" ({summary.failed} failed)" if summary.failed else ""),
                summary.sparse_in or "-",
                number(summary.density_measured, 4),
                number(summary.prefill_density, 4),
                number(value[0], 3 if prose is None else 2),
                difference(summary),
                summary.shown_verdict or "-",
                between(fidelity(point, "kl"), 3),
                number(fidelity(point, "top1_agreement")[0], 3),
                number(output_error(point)[0], 3),
            ]
        )
    # What no point has, and phases that all share, are left out.
    shown = [place for place in range(len(heads)) if _tells(heads[place], {row[place] for row in rows})]
    lines = [
        f"Dense attention on the same {first.questions} texts: {first.metric} {dense}{told}.",
        "",
        line([heads[place] for place in shown]),
        line(["---" if heads[place] in _WORDS else "---:" for place in shown]),
        *(line([row[place] for place in shown]) for row in rows),
    ]
    return "\n".join([*lines, "", correction_note([point.summary for point in points])]).rstrip() + "\n"


def _tells(head: str, cells: set[str]) -> bool:
    return len(cells) > 1 if head == "sparse in" else cells != {"-"}


def pair_table(pairs: Sequence[Pair], first: str, second: str, margin: float) -> str:
    """Compare settings with each other, question by question, with verdicts on the second ones.

    Args:
        pairs: What to compare.
        first: What the first settings are called.
        second: What the second ones are called.
        margin: Difference within which two settings are tied.

    Returns:
        Markdown.
    """
    compared = [_compare(pair, margin) for pair in pairs]
    claims = [Claim(result.difference, result.p_value, result.p_tied) for result in compared]
    heads = ["method", "setting", f"density {first}", f"density {second}", first, second, "difference", "verdict"]
    lines = [line(heads), line(["---", "---", *["---:"] * 5, "---"])]
    for pair, result, judged in zip(pairs, compared, correct(claims), strict=True):
        densities = [number(point.summary.density_measured, 4) for point in (pair.first, pair.second)]
        means = [number(value, 3) for value in (result.dense, result.sparse)]
        gain = between((result.difference, result.low, result.high), 3, sign=True)
        lines.append(line([pair.name, setting(pair.second.overrides), *densities, *means, gain, judged.verdict]))
    note = (
        f"Differences: {second} minus {first}, on the same questions, with their {100 * CONFIDENCE:g} % intervals "
        f"clustered by context; tied means within {margin:g}. Verdicts are corrected for {len(pairs)} comparisons by "
        "Holm's method."
    )
    return "\n".join([*lines, "", note]) + "\n"


def draw(points: Sequence[ReportPoint], folder: Path, prefix: str, slugs: Sequence[str]) -> None:
    """Draw some of a report's figures of points.

    Args:
        points: Of one model and data set.
        folder: Of the page.
        prefix: Begins the files' names.
        slugs: Which of the figures, see `sah.report.plots.group_plots`.
    """
    draw_plots([_scaled(plot) for plot in group_plots(points) if plot.slug in slugs], folder, prefix)


def _scaled(plot: Plot) -> Plot:
    """Draw what spans orders of magnitude on a logarithmic scale, which has no place for the divergence 0 of dense."""
    if isinstance(plot, LinePlot) and plot.slug in ("perplexity", "kl"):
        return dataclasses.replace(plot, y_log=True, band=None if plot.slug == "kl" else plot.band)
    return plot


def draw_plots(plots: Sequence[Plot], folder: Path, prefix: str) -> None:
    """Draw figures as PNG files named by prefix and slug."""
    folder.mkdir(parents=True, exist_ok=True)
    with drawing():
        for plot in plots:
            stem = folder / f"{prefix}-{plot.slug}"
            draw_plot(plot, stem)
            stem.with_suffix(".svg").unlink()


def between(value: Interval, digits: int, *, sign: bool = False) -> str:
    """Write a value with its interval, where it has one."""
    mean, low, high = (number(part, digits, sign=sign) for part in value)
    return f"{mean} [{low}, {high}]" if value[1] is not None and value[2] is not None else mean


def _compare(pair: Pair, margin: float) -> Comparison:
    a, b = pair.first.main, pair.second.main
    metric = pair.first.summary.metric
    keys = PairedPoints(pair.first, pair.second).common_questions()
    return compare_scores(
        [a.scores[key].scores[metric] for key in keys],
        [b.scores[key].scores[metric] for key in keys],
        [a.predictions[key].example_key for key in keys],
        bounds=score_bounds(metric),
        margin=margin,
    )


def line(cells: Sequence[str]) -> str:
    """Write a line of a Markdown table."""
    return f"| {' | '.join(cells)} |"
