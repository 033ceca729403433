"""One line of a point table, read from a point's `metrics.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sah.metrics.fidelity import mean_output_error
from sah.metrics.pareto import MAXIMIZE, MINIMIZE
from sah.report.timing import TimedPoint, timed_point

OBJECTIVES: dict[str, str] = {"score": MAXIMIZE, "density": MINIMIZE, "bytes": MINIMIZE}
"""What a search may optimise, and the direction in which it is better."""


PREFILL = "prefill"

UNITS = {"log_likelihood": "nats a token"}
"""Units of metrics; others are shares of a full score."""


@dataclass(frozen=True)
class Spread:
    """How the contexts of a comparison came out."""

    outcomes: tuple[tuple[float, int, int], ...]
    """See `sah.metrics.compare.Outcome`."""

    span: tuple[float, float] | None
    """Least and greatest possible difference."""


@dataclass(frozen=True)
class PointSummary:
    """The figures of a point that tables and figures show. None means not measured."""

    label: str
    sparse_in: str | None
    """What ran sparse, of prefill, question and decode, with the layers that stayed dense in the latter two; None for a
    dense point."""
    metric: str
    questions: int
    """Questions that both arms answered and scored (dense alone for a dense point)."""
    failed: int
    """Questions without an answer or a score, in either arm."""
    dense: float | None
    sparse: float | None
    difference: float | None
    """Mean of the paired differences, sparse minus dense."""
    density_requested: float | None
    density_measured: float | None
    prefill_seconds: float | None
    """Mean of the prefills that this point's rows did; None where all contexts were there already."""
    question_ms: tuple[float | None, float | None]
    """Dense and sparse: mean milliseconds until the first token."""
    decode_ms: tuple[float | None, float | None]
    """Dense and sparse: milliseconds a further token."""
    timed_together: bool
    """Whether dense and sparse times come from the same run. If not, they must not be compared."""
    output_error: float | None = None
    """Mean relative output error of attention over the queries that were compared with dense attention."""

    decode_kv_bytes: float | None = None
    """Bytes of keys and values, and of what stands for them, that a decoded token reads (`sah.metrics.kv_bytes`)."""

    held_kv_bytes: float | None = None
    """Bytes of keys and values that a cache which follows the method would hold when an answer ends."""

    attention_ms: tuple[float | None, float | None] = (None, None)
    """Dense and sparse: mean milliseconds of attention in an answer that was decoded together with others, as its share
    of its setting's calls; the choice of keys is in it."""

    selection_ms: float | None = None
    """The part of the sparse one that went into choosing keys."""

    timed: TimedPoint | None = None
    """Decode times of the point's timed run (`timing=true`), which stand for `decode_ms` where there are any."""

    low: float | None = None
    """Of the difference's interval, clustered by context; None as `high` where the pairs give none."""

    high: float | None = None
    confidence: float | None = None
    p_value: float | None = None
    """Two-sided, for the difference 0."""

    p_tied: float | None = None
    """For a difference beyond the margin, see `sah.metrics.compare.Comparison`."""

    margin: float | None = None
    verdict: str | None = None
    """Of this comparison alone, see `sah.metrics.verdict`; None for a dense point, and where an older version wrote."""

    contexts: int | None = None
    """Contexts of the questions."""

    contexts_needed: int | None = None
    """For another verdict than `not enough data`."""

    questions_needed: int | None = None
    dense_range: tuple[float | None, float | None] = (None, None)
    """Interval of the dense score itself, on the same questions."""

    sparse_range: tuple[float | None, float | None] = (None, None)
    spread: Spread | None = None
    """What tells how many contexts another confidence needs; None where an older version wrote."""

    fidelity_rows: tuple[int, int] | None = None
    """Questions whose next tokens were compared with dense's, and those of them where that failed."""

    error_queries: tuple[int, int] | None = None
    """Queries behind the output error, in the layer with the fewest and in that with the most."""

    compared: int | None = None
    """Comparisons of the sweep that the next two are corrected for (`sah.report.verdicts`); None outside of a sweep."""

    p_corrected: float | None = None
    verdict_corrected: str | None = None
    contexts_needed_corrected: int | None = None
    """For another verdict than `not enough data` among all these comparisons, whatever the others come to."""

    questions_needed_corrected: int | None = None
    apart: str = ""
    """`sparse_after` where that differs among the points shown together (`sah.report.records.collect_points`)."""

    prefill: str = ""
    """A sparse prefill with what it keeps: `block_topk 0.1`; empty for a dense one."""

    prefill_density: float | None = None
    """Share of a context's (query, key) pairs that a sparse prefill read, mean over layers, heads and contexts."""

    dense_prefill_seconds: float | None = None
    """Beside a sparse prefill: mean of the dense prefills that the dense arm's rows did."""

    @property
    def sparse_after(self) -> str:
        """`sparse_in` without the prefill."""
        return (self.sparse_in or "").removeprefix(PREFILL).removeprefix("+")

    @property
    def behind(self) -> str:
        """What names say of a sparse prefill."""
        return f" + prefill {self.prefill}" if self.prefill else ""

    @property
    def setting(self) -> str:
        """Its label, with a sparse prefill and its phases where others have other ones: `topk in decode`."""
        return (f"{self.label} in {self.apart}" if self.apart else self.label) + self.behind

    @property
    def prefill_speed_up(self) -> float | None:
        """Dense seconds of a prefill divided by sparse ones; None where they were not taken in the same run."""
        dense, sparse = self.dense_prefill_seconds, self.prefill_seconds
        return dense / sparse if dense and sparse and self.timed_together else None

    @property
    def name(self) -> str:
        """What words and figures call it: `topk 0.1`, `topk 0.1 in decode`, `topk 0.1 + prefill block_topk 0.1`."""
        return self.named(" ")

    def named(self, before: str) -> str:
        """Name it with some words of one's own.

        Args:
            before: What stands before the requested density.

        Returns:
            The name.
        """
        density = "" if self.density_requested is None else f"{before}{self.density_requested:g}"
        return f"{self.label}{density}" + (f" in {self.apart}" if self.apart else "") + self.behind

    @property
    def shown_verdict(self) -> str | None:
        """The corrected verdict where there is one, else that of this comparison alone."""
        return self.verdict_corrected or self.verdict

    @property
    def decode_speed_up(self) -> float | None:
        """Dense time a token divided by sparse time a token; None where they were not taken in the same run."""
        if self.timed is not None:
            return self.timed.speed_up
        dense, sparse = self.decode_ms
        return dense / sparse if dense and sparse and self.timed_together else None


def summarise_point(metrics: Mapping[str, Any]) -> PointSummary:
    """Read the figures of a point.

    Args:
        metrics: Content of `metrics.json`.

    Returns:
        Its line.
    """
    metric = metrics["metrics"][0]
    dense, sparse = metrics["dense"], metrics.get("sparse")
    arms = [arm for arm in (dense, sparse) if arm is not None]
    failed = sum(count for arm in arms for status, count in arm["status"].items() if status != "ok")
    dense_score = dense["scores"].get(metric, {})
    pair = metrics.get("comparison", {}).get("scores", {}).get(metric, {})
    main = sparse if sparse is not None else dense
    prefill = metrics.get("prefill") or ""
    # A sparse prefill is the sparse arm's alone; a dense one is shared, and whichever arm came first did it.
    prefills = [arm["prefill"] for arm in ([main] if prefill else arms) if arm["prefill"]["count"]]
    # Older rows were compared while they were answered, which their times hold.
    output_error = None if sparse is None else sparse["measures"].get("output_error")
    untouched = sparse if output_error is None else None
    if sparse is not None and output_error is None:
        output_error = mean_output_error(sparse.get("attention_by_head"))
    return PointSummary(
        label=metrics["label"],
        sparse_in=None if sparse is None else _sparse_in(metrics),
        metric=metric,
        questions=pair.get("pairs", 0) if sparse is not None else dense_score.get("count", 0),
        failed=failed,
        dense=pair.get("dense") if sparse is not None else dense_score.get("mean"),
        sparse=pair.get("sparse"),
        difference=pair.get("difference"),
        density_requested=metrics.get("density_requested"),
        density_measured=main["measures"].get("density_measured"),
        prefill_seconds=prefills[0]["seconds"] if prefills else None,
        question_ms=(_milliseconds(dense, "question_seconds"), _milliseconds(untouched, "question_seconds")),
        timed_together=metrics.get("comparison", {}).get("timed_together", False),
        decode_ms=(dense["decode_ms_per_token"], None if untouched is None else untouched["decode_ms_per_token"]),
        output_error=output_error,
        attention_ms=(_attention_ms(dense), _attention_ms(sparse)),
        selection_ms=_milliseconds(sparse, "selection_seconds"),
        decode_kv_bytes=main.get("decode_kv_bytes"),
        held_kv_bytes=main.get("held_kv_bytes"),
        timed=timed_point(metrics["timing"]) if "timing" in metrics else None,
        low=pair.get("low"),
        high=pair.get("high"),
        confidence=pair.get("confidence"),
        p_value=pair.get("p_value"),
        p_tied=pair.get("p_tied"),
        margin=pair.get("margin"),
        verdict=pair.get("verdict"),
        contexts=pair.get("contexts") if sparse is not None else dense.get("contexts"),
        contexts_needed=pair.get("contexts_needed"),
        questions_needed=pair.get("questions_needed"),
        dense_range=_range(dense, metric) if sparse is None else _pair_range(pair, "dense", dense, metric),
        sparse_range=(None, None) if sparse is None else _pair_range(pair, "sparse", sparse, metric),
        spread=_spread(pair),
        fidelity_rows=_fidelity_rows(sparse),
        error_queries=_error_queries(sparse),
        prefill=prefill,
        prefill_density=main["prefill"].get("density") if prefill else None,
        dense_prefill_seconds=dense["prefill"]["seconds"] if prefill else None,
    )


def objective_values(summary: PointSummary, objectives: Sequence[str]) -> tuple[float, ...] | None:
    """Read what a search optimises.

    Args:
        summary: The figures of a point.
        objectives: Names out of `OBJECTIVES`.

    Returns:
        The values in the same order; None if one of them was not measured. `score` is that of the point's own setting,
        `density` the measured one, 1 for a dense point, `bytes` is `decode_kv_bytes`.
    """
    is_dense = summary.sparse_in is None
    known = {
        "score": summary.dense if is_dense else summary.sparse,
        "density": 1.0 if is_dense else summary.density_measured,
        "bytes": summary.decode_kv_bytes,
    }
    values = [value for name in objectives if (value := known[name]) is not None]
    return tuple(values) if len(values) == len(objectives) else None


def _range(arm: Mapping[str, Any], metric: str) -> tuple[float | None, float | None]:
    found = arm["scores"].get(metric, {})
    return found.get("low"), found.get("high")


def _pair_range(
    pair: Mapping[str, Any], name: str, arm: Mapping[str, Any], metric: str
) -> tuple[float | None, float | None]:
    """Read the interval of an arm's score over the pairs; over all its rows where these are the pairs."""
    if f"{name}_low" in pair:
        return pair[f"{name}_low"], pair[f"{name}_high"]
    same = arm["scores"].get(metric, {}).get("count") == pair.get("pairs")
    return _range(arm, metric) if same else (None, None)


def _spread(pair: Mapping[str, Any]) -> Spread | None:
    if not pair.get("outcomes"):
        return None
    span = pair.get("span")
    outcomes = tuple((float(total), int(questions), int(alike)) for total, questions, alike in pair["outcomes"])
    return Spread(outcomes, None if span is None else (span[0], span[1]))


def _fidelity_rows(sparse: Mapping[str, Any] | None) -> tuple[int, int] | None:
    stored = (sparse or {}).get("fidelity")
    if not isinstance(stored, Mapping):
        return None
    failed = int(stored.get("failed") or 0)
    return int(stored.get("questions") or 0) + failed, failed


def _error_queries(sparse: Mapping[str, Any] | None) -> tuple[int, int] | None:
    rows = ((sparse or {}).get("attention_by_head") or {}).get("rows")
    return (min(rows), max(rows)) if rows else None


def _sparse_in(metrics: Mapping[str, Any]) -> str:
    dense = metrics["dense_layers"]
    parts = [*([PREFILL] if metrics.get("prefill") else []), *metrics["phases"]]
    return "+".join(parts) + (f" ({dense} dense)" if dense else "")


def _attention_ms(arm: Mapping[str, Any] | None) -> float | None:
    attention, selection = (_milliseconds(arm, f"{part}_seconds") for part in ("attention", "selection"))
    return None if attention is None else attention + (selection or 0.0)


def _milliseconds(arm: Mapping[str, Any] | None, measure: str) -> float | None:
    seconds = None if arm is None else arm["measures"].get(measure)
    return None if seconds is None else 1000 * seconds
