"""The figures of a report as plain data: curves, fronts and bars. Grids are in `sah.report.grids`.

What was not measured is None or left out, and never zero. Points of one call belong to one group of
`ReportData.groups()`, the only ones whose scores compare.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sah.metrics.pareto import pareto_front
from sah.report.load import ReportPoint
from sah.report.summary import OBJECTIVES
from sah.report.timing import DecodeTimes

Interval = tuple[float | None, float | None, float | None]
"""A value with the ends of its interval; None where there is none."""

LOG_LIKELIHOOD = "log_likelihood"
"""The metric of prose, nats a token; its exponential with the sign turned is the perplexity."""

_NOTHING: Interval = (None, None, None)


@dataclass(frozen=True)
class CurvePoint:
    """A point of a curve."""

    x: float
    """Measured density."""
    y: float
    low: float | None
    high: float | None
    """Ends of the 95 % interval of y, where one was computed."""
    name: str
    """Of the report's point."""
    place: int
    """Place of the report's point in the sequence given."""


@dataclass(frozen=True)
class Curve:
    """One method over measured density, by rising x."""

    label: str
    points: tuple[CurvePoint, ...]


@dataclass(frozen=True)
class Band:
    """The dense score with its 95 % interval."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class FrontPoint:
    """A point of a Pareto scatter."""

    label: str
    """Of the method; `dense` for the baseline."""
    name: str
    x: float
    """Measured density, or bytes of keys and values that a decoded token reads."""
    y: float
    """Score."""
    on_front: bool
    place: int | None
    """Place of the report's point in the sequence given; None for the baseline, where no point of its own is there."""


@dataclass(frozen=True)
class TimeBar:
    """Milliseconds of one arm of a point, in parts that add up to the bar."""

    name: str
    place: int | None
    """Place of the report's point; None for the dense baseline."""
    parts: Mapping[str, float]
    """Part to milliseconds; what was not measured is absent."""
    same_run: bool = True
    """Whether the run that took them took dense ones too. If not, they must not be compared with the dense bar."""


@dataclass(frozen=True)
class TimeSplit:
    """Bars of one kind, the only ones that compare."""

    kind: str
    """`answer`: answers decoded one by one, milliseconds an answer. `shared`: answers decoded together, of which only
    their share of attention is known, milliseconds an answer. `token`: timed runs, milliseconds a decoded token."""
    bars: tuple[TimeBar, ...]


def method_labels(points: Sequence[ReportPoint]) -> list[str]:
    """Name each point's method, as legends do: points with the same name differ in their density alone.

    Args:
        points: Of one group.

    Returns:
        A label a point: the short one, with the phases and dense layers where these differ between points, and with a
        sparse prefill.
    """
    apart = len({point.summary.sparse_after for point in points} - {""}) > 1
    return [
        (f"{label} in {point.summary.sparse_after}" if apart and point.summary.sparse_after else label)
        + point.summary.behind
        for point, label in zip(points, short_labels(points), strict=True)
    ]


def short_labels(points: Sequence[ReportPoint]) -> list[str]:
    """Name each point's recipe by its label, without the settings that all points of that recipe share."""
    shared: dict[str, set[str]] = {}
    for point in points:
        recipe, *words = point.label.split()
        shared[recipe] = shared.get(recipe, set(words)) & set(words)
    labels = []
    for point in points:
        recipe, *words = point.label.split()
        labels.append(" ".join([recipe, *(w.removeprefix("masker.") for w in words if w not in shared[recipe])]))
    return labels


def main_metric(points: Sequence[ReportPoint]) -> str:
    """Name the metric of most points; `score` without points."""
    counts = Counter(point.summary.metric for point in points)
    return counts.most_common(1)[0][0] if counts else "score"


def density_curves(
    points: Sequence[ReportPoint], value: Callable[[ReportPoint], Interval] | None = None
) -> list[Curve]:
    """Lay a value out over measured density, one curve a method.

    Args:
        points: Of one group. Dense points and those without value or measured density are left out.
        value: Reads the value; the score on the main metric if None. See `score`, `difference`, `fidelity`, ...

    Returns:
        Curves in the order of their first points.
    """
    read = value or score_reader(points)
    lines: dict[str, list[CurvePoint]] = {}
    for place, (point, label) in enumerate(zip(points, method_labels(points), strict=True)):
        if point.is_dense:
            continue
        y, low, high = read(point)
        x = number(point.summary.density_measured)
        if x is not None and x > 0 and y is not None:
            lines.setdefault(label, []).append(CurvePoint(x, y, low, high, point.name, place))
    return [Curve(label, tuple(sorted(line, key=lambda point: point.x))) for label, line in lines.items()]


def prefill_curves(points: Sequence[ReportPoint]) -> list[Curve]:
    """Lay scores out over the measured density of sparse prefills, one curve a setting and pattern.

    Args:
        points: Of one group. Points with a dense prefill, or without a score, are left out.

    Returns:
        Curves in the order of their first points.
    """
    read = score_reader(points)
    lines: dict[str, list[CurvePoint]] = {}
    for place, point in enumerate(points):
        x, (y, low, high) = number(point.summary.prefill_density), read(point)
        if x is not None and x > 0 and y is not None:
            pattern, *words = point.summary.prefill.split()
            label = " ".join([pattern, *(word for word in words if "=" in word)])
            setting = point.name.removesuffix(point.summary.behind)
            lines.setdefault(f"{setting} + prefill {label}", []).append(CurvePoint(x, y, low, high, point.name, place))
    return [Curve(label, tuple(sorted(line, key=lambda point: point.x))) for label, line in lines.items()]


def prefill_bars(points: Sequence[ReportPoint]) -> list[TimeBar]:
    """Lay the times of prefills out, the dense one first; none where no sparse prefill was timed.

    Args:
        points: Of one group.

    Returns:
        A bar for each sparse prefill, of the first point that did it.
    """
    found: dict[str, TimeBar] = {}
    for place, point in enumerate(points):
        own = number(point.summary.prefill_seconds) if point.summary.prefill else None
        if own is not None:
            together = point.summary.prefill_speed_up is not None
            found.setdefault(
                point.summary.prefill, TimeBar(point.summary.prefill, place, {"prefill": 1000 * own}, together)
            )
    dense = prefill_seconds(points)
    if not found or dense is None:
        return list(found.values())
    return [TimeBar("dense", None, {"prefill": 1000 * dense[0]}), *found.values()]


def score_reader(points: Sequence[ReportPoint]) -> Callable[[ReportPoint], Interval]:
    """Build a reader of scores on the main metric of points; a point with another metric has none."""
    metric = main_metric(points)
    return lambda point: score(point) if point.summary.metric == metric else _NOTHING


def score(point: ReportPoint) -> Interval:
    """Read a sparse point's score with the interval of its arm."""
    low, high = point.summary.sparse_range
    return number(point.summary.sparse), number(low), number(high)


def difference(point: ReportPoint) -> Interval:
    """Read the mean paired difference, sparse minus dense, with its interval."""
    return number(point.summary.difference), number(point.summary.low), number(point.summary.high)


def output_error(point: ReportPoint) -> Interval:
    """Read the mean relative output error of attention."""
    return number(point.summary.output_error), None, None


def fidelity(point: ReportPoint, name: str) -> Interval:
    """Read a figure of fidelity, taken with dense's own answers.

    Args:
        point: A sparse point.
        name: `kl` (nats a token), `top1_agreement` (share of tokens) or `log_likelihood_difference` (nats a token).

    Returns:
        The figure with its interval.
    """
    return _interval(_part(point.metrics, "sparse", "fidelity", name))


def perplexity(point: ReportPoint) -> Interval:
    """Read the perplexity under a point's own attention: the exponential of the negative mean log-likelihood."""
    arm = "dense" if point.is_dense else "sparse"
    return _exponential(_interval(_part(point.metrics, arm, "scores", LOG_LIKELIHOOD)))


def dense_perplexity(points: Sequence[ReportPoint]) -> Band | None:
    """Read the dense perplexity of the points' examples; None where it was not measured."""
    value, low, high = _exponential(_interval(_dense_scores(points, LOG_LIKELIHOOD)))
    return None if value is None else Band(value, low, high)


def dense_band(points: Sequence[ReportPoint], metric: str | None = None) -> Band | None:
    """Read the dense score of the points' examples, with its interval.

    Args:
        points: Of one group. Where they asked for different examples, the one with the most questions counts.
        metric: The main metric if None.

    Returns:
        The band; None where nothing dense was scored.
    """
    value, low, high = _interval(_dense_scores(points, metric or main_metric(points)))
    return None if value is None else Band(value, low, high)


def pareto(points: Sequence[ReportPoint], cost: Literal["density", "bytes"]) -> list[FrontPoint]:
    """Lay scores out over what they cost, and tell which points no other one beats in both.

    Args:
        points: Of one group. Points without a score or a cost are left out.
        cost: `density` (measured; dense is 1) or `bytes` (of keys and values that a decoded token reads).

    Returns:
        Points in the order given, the dense baseline first.
    """
    read = score_reader(points)
    found: list[tuple[str, str, float, float, int | None]] = []
    band = dense_band(points)
    dense_cost = 1.0 if cost == "density" else _dense_bytes(points)
    if band is not None and dense_cost is not None:
        place = next((place for place, point in enumerate(points) if point.is_dense), None)
        found.append(("dense", "dense", dense_cost, band.value, place))
    for place, (point, label) in enumerate(zip(points, method_labels(points), strict=True)):
        y = read(point)[0]
        x = number(point.summary.density_measured if cost == "density" else point.summary.decode_kv_bytes)
        if not point.is_dense and x is not None and y is not None:
            found.append((label, point.name, x, y, place))
    front = set(pareto_front([(y, x) for _, _, x, y, _ in found], [OBJECTIVES["score"], OBJECTIVES[cost]]))
    return [
        FrontPoint(label, name, x, y, index in front, place) for index, (label, name, x, y, place) in enumerate(found)
    ]


def time_split(points: Sequence[ReportPoint]) -> list[TimeSplit]:
    """Lay times out in parts, the dense baseline first.

    Args:
        points: Of one group. Prefill is left out, which all points share; see `prefill_seconds`. So are older points
            whose attention was compared with dense attention while they answered, since their times hold that.

    Returns:
        The kinds of times that were measured.
    """
    splits = [
        TimeSplit(kind, tuple(bars))
        for kind, bars in (
            ("answer", _bars(points, _answer_parts)),
            ("shared", _bars(points, _shared_parts)),
            ("token", _timed_bars(points)),
        )
        if bars
    ]
    return splits


def prefill_seconds(points: Sequence[ReportPoint]) -> tuple[float, int] | None:
    """Read the mean seconds of a context's dense prefill.

    Returns:
        The mean over the dense prefills of all arms, each run's counted once, and their number; None where all contexts
        were there already.
    """
    found: dict[tuple[float, int], None] = {}
    for point in points:
        for arm in ("dense",) if point.summary.prefill else ("dense", "sparse"):
            prefill = _part(point.metrics, arm, "prefill")
            seconds, count = number(prefill.get("seconds")), prefill.get("count")
            if seconds is not None and isinstance(count, int) and count > 0:
                found[(seconds, count)] = None
    total = sum(count for _, count in found)
    return (sum(seconds * count for seconds, count in found) / total, total) if total else None


def number(value: object) -> float | None:
    """Read a stored number; None for all else, and for what is not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _answer_parts(arm: Mapping[str, Any]) -> dict[str, float]:
    measures = _part(arm, "measures")
    found = {name: number(measures.get(f"{name}_seconds")) for name in ("state", "question", "decode")}
    known = {name: 1000 * seconds for name, seconds in found.items() if seconds is not None}
    return known if {"question", "decode"} & known.keys() else {}


def _shared_parts(arm: Mapping[str, Any]) -> dict[str, float]:
    measures = _part(arm, "measures")
    found = {name: number(measures.get(f"{name}_seconds")) for name in ("attention", "selection")}
    known = {name: 1000 * seconds for name, seconds in found.items() if seconds is not None}
    return known if "attention" in known else {}


def _bars(points: Sequence[ReportPoint], read: Callable[[Mapping[str, Any]], dict[str, float]]) -> list[TimeBar]:
    dense = next((found for point in points if (found := read(_part(point.metrics, "dense")))), None)
    bars = [] if dense is None else [TimeBar("dense", None, dense)]
    for place, point in enumerate(points):
        if point.is_dense or number(_part(point.metrics, "sparse", "measures").get("output_error")) is not None:
            continue
        found = read(_part(point.metrics, "sparse"))
        if found:
            bars.append(TimeBar(point.name, place, found, point.summary.timed_together))
    return bars


def _timed_bars(points: Sequence[ReportPoint]) -> list[TimeBar]:
    bars: list[TimeBar] = []
    for place, point in enumerate(points):
        timed = point.summary.timed
        if timed is None:
            continue
        arms: list[tuple[str, int | None, DecodeTimes]] = [
            (f"dense ({timed.dense_form}) beside {point.name}", None, timed.dense)
        ]
        if timed.sparse is not None:
            arms.append((point.name, place, timed.sparse))
        for name, of, times in arms:
            rest = max(0.0, times.token - times.attention - times.selection)
            bars.append(
                TimeBar(name, of, {"attention": times.attention, "selection": times.selection, "the rest": rest})
            )
    return bars


def _dense_scores(points: Sequence[ReportPoint], metric: str) -> Mapping[str, Any]:
    known = [_part(point.metrics, "dense", "scores", metric) for point in points]
    return max(known, key=lambda stored: stored.get("count") or 0, default={})


def _dense_bytes(points: Sequence[ReportPoint]) -> float | None:
    known = [number(_part(point.metrics, "dense").get("decode_kv_bytes")) for point in points]
    return next((value for value in known if value is not None), None)


def _interval(stored: Mapping[str, Any]) -> Interval:
    return number(stored.get("mean")), number(stored.get("low")), number(stored.get("high"))


def _exponential(value: Interval) -> Interval:
    mean, low, high = (None if part is None else math.exp(-part) for part in value)
    return mean, high, low


def _part(metrics: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """Walk into nested figures; nothing where a step is absent or null."""
    found: Any = metrics
    for name in names:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}
