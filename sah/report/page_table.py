"""The columns of the page's table of points."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sah.report import curves
from sah.report.load import ReportPoint

Value = str | float | int | None


@dataclass(frozen=True)
class Column:
    """A column of the table."""

    key: str
    head: str
    about: str
    """What it means, with its unit; shown where one points at the head."""
    digits: int | None
    """Decimals; None for text and whole numbers."""
    read: Callable[[ReportPoint], Value]
    signed: bool = False
    low: Callable[[ReportPoint], float | None] | None = None
    high: Callable[[ReportPoint], float | None] | None = None
    """Ends of the interval, written behind the value."""


def _first(point: ReportPoint, read: Callable[[ReportPoint], curves.Interval]) -> float | None:
    return None if point.is_dense else read(point)[0]


def _end(point: ReportPoint, place: int, read: Callable[[ReportPoint], curves.Interval]) -> float | None:
    return None if point.is_dense else read(point)[place]


def _measured(
    key: str, head: str, about: str, digits: int, read: Callable[[ReportPoint], curves.Interval], signed: bool = False
) -> Column:
    return Column(
        key, head, about, digits, partial(_first, read=read), signed, partial(_end, place=1, read=read),
        partial(_end, place=2, read=read),
    )  # fmt: skip


COLUMNS: tuple[Column, ...] = (
    Column("density", "density measured", "keys kept over keys allowed, mean over layers, heads and sparse queries", 4,
           lambda p: p.summary.density_measured),
    Column("prefill", "prefill", "a sparse prefill, with what it keeps", None, lambda p: p.summary.prefill or None),
    Column("prefill_density", "prefill density", "share of a context's (query, key) pairs that its prefill read", 4,
           lambda p: p.summary.prefill_density),
    Column("prefill_s", "prefill s", "seconds of a context's sparse prefill, mean over those that the point did", 2,
           lambda p: p.summary.prefill_seconds if p.summary.prefill else None),
    Column("dense_prefill_s", "dense prefill s", "seconds of a context's dense prefill beside it", 2,
           lambda p: p.summary.dense_prefill_seconds),
    Column("dense", "dense score", "score of dense attention on the same questions", 3, lambda p: p.summary.dense),
    _measured("sparse", "sparse score", "score of sparse attention, with its 95 % interval", 3, curves.score),
    _measured("difference", "difference", "mean paired difference, sparse minus dense, with its 95 % interval", 3,
              curves.difference, True),
    Column("p_value", "p", "probability of such a difference by chance where there is none, corrected for the number "
           "of comparisons", 4, lambda p: p.summary.p_corrected if p.summary.compared else p.summary.p_value),
    Column("contexts", "contexts", "distinct contexts of these questions; intervals are clustered by them", None,
           lambda p: p.summary.contexts),
    _measured("kl", "KL", "divergence of next-token distributions from dense, nats a token", 4,
              partial(curves.fidelity, name="kl")),
    _measured("top1", "top-1", "share of tokens whose likeliest next token is dense's", 3,
              partial(curves.fidelity, name="top1_agreement")),
    Column("output_error", "output error", "relative output error of attention (norm over norm)", 4,
           lambda p: p.summary.output_error),
    Column("error_queries", "queries compared", "queries behind the output error, in the layer with the fewest", None,
           lambda p: (p.summary.error_queries or (None, None))[0]),
    Column("perplexity", "perplexity", "of the text's own tokens; lower is better", 3,
           lambda p: curves.perplexity(p)[0]),
    Column("bytes", "KV bytes a token", "bytes of keys and values, and of what stands for them, that a decoded token "
           "reads", 0, lambda p: curves.number(p.summary.decode_kv_bytes)),
    Column("held", "KV bytes held", "bytes of keys and values that a cache which follows the method would hold when an "
           "answer ends", 0, lambda p: curves.number(p.summary.held_kv_bytes)),
    Column("question_ms", "question ms", "milliseconds until the first token", 0, lambda p: _time(p, "question")),
    Column("decode_ms", "decode ms a token", "milliseconds a further token; timed runs where there are any", 1,
           lambda p: _time(p, "decode")),
    Column("speed_up", "decode speed-up", "dense time a token over sparse time a token, both of the same run", 2,
           lambda p: p.summary.decode_speed_up),
    Column("attention_ms", "attention ms", "milliseconds of attention an answer, its share of a batch; choosing "
           "keys is in it", 0, lambda p: p.summary.attention_ms[0 if p.is_dense else 1]),
    Column("selection_ms", "choosing keys ms", "the part of it that went into choosing keys", 0,
           lambda p: p.summary.selection_ms),
    Column("density_requested", "density asked", "share of allowed keys that the recipe aims at", 4,
           lambda p: p.summary.density_requested),
    Column("sparse_in", "sparse in", "phases that ran sparse, with layers that stayed dense", None,
           lambda p: p.summary.sparse_in),
    Column("questions", "questions", "answered and scored by both arms", None, lambda p: p.summary.questions),
    Column("failed", "failed", "questions without an answer or a score, in either arm", None,
           lambda p: p.summary.failed),
    Column("fidelity_failed", "fidelity failed", "questions whose next tokens could not be compared with dense's; KL "
           "and top-1 leave them out", None, lambda p: (p.summary.fidelity_rows or (None, None))[1]),
)  # fmt: skip


def _time(point: ReportPoint, phase: str) -> float | None:
    summary, arm = point.summary, 0 if point.is_dense else 1
    if phase == "question":
        return summary.question_ms[arm]
    if summary.timed is not None:
        times = summary.timed.dense if point.is_dense else summary.timed.sparse
        return None if times is None else times.token
    return summary.decode_ms[arm]


def columns_of(points: Sequence[ReportPoint]) -> tuple[list[Column], list[Column]]:
    """Part the columns into those that any point has a value in, and those that were measured nowhere."""
    filled: list[Column] = []
    empty: list[Column] = []
    for column in COLUMNS:
        (filled if any(column.read(point) is not None for point in points) else empty).append(column)
    return filled, empty


def cells(point: ReportPoint, columns: Sequence[Column]) -> dict[str, Any]:
    """Read a point's cells.

    Returns:
        Column key to value, or to value and interval where there is one; what was not measured is absent.
    """
    found: dict[str, Any] = {}
    for column in columns:
        value = column.read(point)
        if value is None:
            continue
        low = None if column.low is None else column.low(point)
        high = None if column.high is None else column.high(point)
        found[column.key] = value if low is None or high is None else [value, low, high]
    return found


def heads(columns: Sequence[Column]) -> list[Mapping[str, Any]]:
    """Describe columns for the page."""
    return [{"key": c.key, "head": c.head, "about": c.about, "digits": c.digits, "signed": c.signed} for c in columns]
