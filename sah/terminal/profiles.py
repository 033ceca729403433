"""What a group of points shows beside its table: scores over density, errors over layers, fidelity to dense."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console

from sah.report.curves import dense_band, density_curves, fidelity, main_metric, method_labels
from sah.report.grids import layer_head
from sah.report.load import ReportPoint
from sah.report.table import difference, number, queries_words, terminal_table
from sah.terminal.screen import grid, interval, resampled, show_columns, show_line, show_title, sparkline

_MOST_BLOCKS = 60
_WIDE = 140
_COMPACT = ("setting", "questions", "dense", "sparse", "difference", "verdict", "density")
_MOST_LINES = 24
"""Lines of one kind that are shown; the point table holds all points."""

_FIDELITY = {"kl": ("KL, nats a token", 4), "top1_agreement": ("top-1 agreement", 3)}
_LIKELIHOOD = {"log_likelihood_difference": ("log-likelihood of dense's answer, sparse - dense", 4)}


def show_table(points: Sequence[ReportPoint], title: str, target: Console) -> None:
    """Print the table of points; on a narrow terminal the columns that are needed to judge them.

    Args:
        points: Of one group.
        title: What stands above.
        target: Where to.
    """
    if target.width >= _WIDE:
        target.print(terminal_table([point.summary for point in points], title))
        return
    show_line(target, title, "bold")
    summaries = [point.summary for point in points]
    names = [point.name for point in points if point.is_dense] + [name for name, _ in _named(points)]
    by_name = [p for p in summaries if p.sparse_in is None] + [p for p in summaries if p.sparse_in is not None]
    lines = [
        [
            name,
            str(point.questions) + (f" ({point.failed} failed)" if point.failed else ""),
            number(point.dense, 3),
            number(point.sparse, 3),
            difference(point),
            point.shown_verdict or "-",
            number(point.density_measured, 4),
        ]
        for name, point in zip(names, by_name, strict=True)
    ]
    target.print(grid(_COMPACT, lines, left=(0, 5)))
    show_line(target, f"All columns need a width of {_WIDE}: widen the terminal, or pipe this into less -S.")


def show_curves(points: Sequence[ReportPoint], target: Console) -> None:
    """Draw the score over measured density, one line a method, all on one scale with the dense score.

    Args:
        points: Of one group.
        target: Where to.
    """
    curves = [curve for curve in density_curves(points) if len(curve.points) > 1]
    if not curves:
        return
    dense = dense_band(points)
    scores = [point.y for curve in curves for point in curve.points] + ([] if dense is None else [dense.value])
    low, high = min(scores), max(scores)
    show_title(target, f"{main_metric(points)} by rising density, heights from {low:.3f} to {high:.3f}")
    lines = []
    for curve in curves[:_MOST_LINES]:
        values = resampled([point.y for point in curve.points], _MOST_BLOCKS)
        ends = f"{curve.points[0].y:.3f} to {curve.points[-1].y:.3f}"
        densities = ", ".join(_short(point.x) for point in curve.points[:_MOST_BLOCKS])
        lines.append((curve.label, sparkline(values, low, high), ends, f"at {densities}"))
    if dense is not None:
        lines.append(("dense", sparkline([dense.value], low, high), interval(dense.value, dense.low, dense.high), ""))
    show_columns(target, lines)
    _say_rest(len(curves), target)


def show_layers(points: Sequence[ReportPoint], target: Console) -> None:
    """Draw the relative output error of attention over layers, the mean of each layer's heads, one line a point.

    Args:
        points: Of one group; those in which it was not measured are left out.
        target: Where to.
    """
    profiles = [(name, point, found) for name, point in _named(points) if (found := layer_errors(point))]
    if not profiles:
        return
    known = [value for *_, profile in profiles for value in profile.values() if value is not None]
    low, high = min(known), max(known)
    show_title(target, f"output error of attention over layers, heights from {low:.4f} to {high:.4f}")
    lines = []
    for name, point, profile in profiles[:_MOST_LINES]:
        layer, worst = max(((layer, value or 0.0) for layer, value in profile.items()), key=lambda pair: pair[1])
        blocks = sparkline(resampled(list(profile.values()), _MOST_BLOCKS), low, high)
        first, last = next(iter(profile)), list(profile)[-1]
        told = f"largest {worst:.4f} in layer {layer}"
        queries = point.summary.error_queries
        told += "" if queries is None else f", over {queries_words(queries)}"
        lines.append((name, blocks, f"layers {first} to {last}", told))
    show_columns(target, lines)
    _say_rest(len(profiles), target)


def layer_errors(point: ReportPoint) -> dict[str, float | None]:
    """Average the output error over the heads of each layer.

    Args:
        point: A point.

    Returns:
        Layer to mean error, None where no row was sampled; empty where it was not measured at all.
    """
    errors = layer_head(point, "output_error")
    if errors is None:
        return {}
    means: dict[str, float | None] = {}
    for layer, row in zip(errors.y, errors.cells, strict=True):
        known = [value for value in row if value is not None]
        means[layer] = sum(known) / len(known) if known else None
    return means


def show_fidelity(points: Sequence[ReportPoint], target: Console) -> None:
    """Print how near each point's next tokens are to dense's on dense's own answers, with intervals.

    Args:
        points: Of one group; nothing is printed where it was measured in none.
        target: Where to.
    """
    columns = _FIDELITY | _LIKELIHOOD
    lines = []
    for name, point in _named(points):
        read = {key: fidelity(point, key) for key in columns}
        if any(value is not None for value, _, _ in read.values()):
            cells = [interval(*read[key], digits, sign=key in _LIKELIHOOD) for key, (_, digits) in columns.items()]
            lines.append([name, *cells, questions_compared(point), _tokens(point)])
        elif point.summary.fidelity_rows is not None:
            lines.append([name, *["failed"] * len(columns), questions_compared(point), "-"])
    if lines:
        show_title(target, "Fidelity to dense, next tokens compared along dense's own answers")
        target.print(grid(["setting", *(title for title, _ in columns.values()), "questions", "tokens"], lines))


def questions_compared(point: ReportPoint) -> str:
    """Write over how many questions fidelity was measured, `5 of 8` where it failed for some."""
    rows = point.summary.fidelity_rows
    if rows is None:
        return "-"
    asked, failed = rows
    return f"{asked - failed} of {asked}" if failed else str(asked)


def _named(points: Sequence[ReportPoint]) -> list[tuple[str, ReportPoint]]:
    """Name the sparse points of a group so that their names differ where phases or dense layers do."""
    named = []
    for label, point in zip(method_labels(points), points, strict=True):
        density, behind = point.summary.density_requested, point.summary.behind
        if not point.is_dense:
            told = "" if density is None else f" {density:g}"
            named.append((label.removesuffix(behind) + told + behind, point))
    return named


def _tokens(point: ReportPoint) -> str:
    sparse = point.metrics.get("sparse")
    stored = sparse.get("fidelity") if isinstance(sparse, Mapping) else None
    tokens = stored.get("tokens") if isinstance(stored, Mapping) else None
    return "-" if tokens is None else f"{tokens:,}"


def _say_rest(count: int, target: Console) -> None:
    if count > _MOST_LINES:
        show_line(target, f"  and {count - _MOST_LINES} more")


def _short(value: float) -> str:
    return f"{value:.3g}"
