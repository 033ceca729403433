"""One point in full, for `sah show --point`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from sah.report.curves import difference, fidelity, number, score
from sah.report.load import Pair, ReportPoint
from sah.report.summary import PointSummary
from sah.report.table import queries_words
from sah.report.verdicts import sentence
from sah.terminal.points import laid_out, what_is_asked
from sah.terminal.profiles import layer_errors, questions_compared
from sah.terminal.screen import (
    figure,
    interval,
    resampled,
    shortened,
    show_columns,
    show_line,
    show_title,
    sparkline,
)

_ANSWER_CHARACTERS = 300
_MOST_BLOCKS = 100


def show_point(point: ReportPoint, examples: int, target: Console) -> None:
    """Print all that is known of a point.

    Args:
        point: The point.
        examples: How many of its questions to print, those that differ first.
        target: Where to.
    """
    show_title(target, f"{point.name}: {point.model}, {point.dataset}")
    show_columns(target, _facts(point))
    show_title(target, "Configuration that decides its results")
    show_columns(target, list(laid_out(point.main.identity).items()))
    _show_examples(point, examples, target)
    show_title(target, "Computed again by")
    show_line(target, f"  {point.command}")


def point_json(point: ReportPoint, examples: int) -> dict[str, Any]:
    """Give all that is known of a point as JSON data.

    Args:
        point: The point.
        examples: How many of its questions to give, those that differ first.

    Returns:
        The data.
    """
    return {
        "id": point.id,
        "name": point.name,
        "model": point.model,
        "dataset": point.dataset,
        "folder": str(point.main.folder),
        "command": point.command,
        "identity": point.main.identity,
        "summary": dataclasses.asdict(point.summary),
        "metrics": point.metrics,
        "provenance": point.provenance,
        "examples": [
            {
                "key": pair.key,
                "answers": list(pair.row.answers),
                "metadata": dict(pair.row.metadata),
                "dense": None if pair.dense is None else pair.dense.to_json(),
                "sparse": None if pair.sparse is None else pair.sparse.to_json(),
                "dense_scores": dict(pair.dense_scores),
                "sparse_scores": dict(pair.sparse_scores),
            }
            for pair in ordered_pairs(point)[:examples]
        ],
    }


def ordered_pairs(point: ReportPoint) -> list[Pair]:
    """Order questions by what is worth a look: failed ones, lost, won, other answers, and the rest.

    Args:
        point: The point.

    Returns:
        Its questions; equal kinds stay in their order.
    """
    metric = point.summary.metric
    return sorted(point.pairs(), key=lambda pair: _kind(pair, metric))


def _kind(pair: Pair, metric: str) -> int:
    if any(row is not None and row.status != "ok" for row in (pair.dense, pair.sparse)):
        return 0
    dense, sparse = pair.dense_scores.get(metric), pair.sparse_scores.get(metric)
    if dense is not None and sparse is not None and dense != sparse:
        return 1 if sparse < dense else 2
    texts = {row.prediction for row in (pair.dense, pair.sparse) if row is not None}
    return 3 if len(texts) > 1 else 4


def _facts(point: ReportPoint) -> list[tuple[str, str]]:
    summary = point.summary
    arm = _arm(point)
    facts = [
        ("id", point.id),
        ("folder", str(point.main.folder)),
        ("questions", f"{summary.questions}" + (f", {summary.failed} failed" if summary.failed else "")),
        ("metric", summary.metric),
    ]
    if point.is_dense:
        facts.append(("score", interval(*_dense_score(point))))
    else:
        facts += [
            ("sparse in", summary.sparse_in or "-"),
            *_prefill(summary),
            ("score, dense", interval(*_dense_score(point))),
            ("score, sparse", interval(*score(point))),
            ("difference", interval(*difference(point), sign=True)),
            ("verdict", sentence(summary)),
            ("density requested", figure(summary.density_requested)),
            ("density measured", figure(summary.density_measured, 4) + _by_phase(arm)),
            ("KL to dense", interval(*fidelity(point, "kl"), 4) + " nats a token"),
            ("top-1 agreement", interval(*fidelity(point, "top1_agreement"))),
            ("output error", figure(summary.output_error, 4) + _over_queries(point)),
        ]
        if summary.fidelity_rows is not None:
            facts.insert(-1, ("fidelity over", f"{questions_compared(point)} questions"))
        facts += _layers(point)
        calls = number((arm.get("measures") or {}).get("attention_calls"))
        facts.append(("sparse calls", figure(calls, 1) + (" an answer" if calls is not None else "")))
    read = summary.decode_kv_bytes
    facts.append(("KV bytes read", "not measured" if read is None else f"{read:,.0f} a decoded token"))
    held = summary.held_kv_bytes
    facts.append(("KV bytes held", "not measured" if held is None else f"{held:,.0f} when an answer ends"))
    facts += _run(point)
    return [(name, text.replace("not measured nats a token", "not measured")) for name, text in facts]


def _prefill(summary: PointSummary) -> list[tuple[str, str]]:
    """Tell of a sparse prefill; nothing of a dense one."""
    if not summary.prefill:
        return []
    own, dense = (figure(value, 2) for value in (summary.prefill_seconds, summary.dense_prefill_seconds))
    return [
        ("prefill", f"{summary.prefill}, density measured {figure(summary.prefill_density, 4)}"),
        ("prefill seconds", f"{own}, dense {dense}"),
    ]


def _layers(point: ReportPoint) -> list[tuple[str, str]]:
    errors = layer_errors(point)
    known = [value for value in errors.values() if value is not None]
    if not known:
        return []
    blocks = sparkline(resampled(list(errors.values()), _MOST_BLOCKS), min(known), max(known))
    first, last = next(iter(errors)), list(errors)[-1]
    return [("error by layer", f"{blocks} layers {first} to {last}, from {min(known):.4f} to {max(known):.4f}")]


def _over_queries(point: ReportPoint) -> str:
    queries = point.summary.error_queries
    return "" if queries is None else f" over {queries_words(queries)}"


def _by_phase(arm: Mapping[str, Any]) -> str:
    phases = arm.get("density_by_phase") or {}
    known = [f"{name} {value:.4f}" for name, value in phases.items() if number(value) is not None]
    return f" ({', '.join(known)})" if known else ""


def _run(point: ReportPoint) -> list[tuple[str, str]]:
    run = point.provenance
    git = run.get("git") or {}
    versions = run.get("versions") or {}
    hardware = run.get("hardware") or {}
    told = {
        "computed": run.get("time_utc"),
        "commit": git.get("commit") and f"{git['commit'][:12]}{', with changes' if git.get('dirty') else ''}",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        "machine": ", ".join(str(hardware[key]) for key in ("cpu", "platform") if hardware.get(key)),
        "run by": run.get("command"),
    }
    return [(name, str(text)) for name, text in told.items() if text]


def _show_examples(point: ReportPoint, most: int, target: Console) -> None:
    pairs = ordered_pairs(point)
    if most < 1 or not pairs:
        return
    metric = point.summary.metric
    differing = sum(_kind(pair, metric) < 4 for pair in pairs)
    told = "" if point.is_dense else f", {differing} of {len(pairs)} with different answers, those first"
    show_title(target, f"Questions{told}")
    for pair in pairs[:most]:
        show_line(target, f"  {pair.key}  {what_is_asked(pair.row.metadata)}".rstrip())
        lines = [("reference", "", " | ".join(pair.row.answers))]
        for name, row, scores in (
            ("dense", pair.dense, pair.dense_scores),
            ("sparse", pair.sparse, pair.sparse_scores),
        ):
            if row is not None:
                answer = row.prediction if row.status == "ok" else f"{row.status}: {row.error}"
                shown = scores.get(metric)
                lines.append((name, "-" if shown is None else f"{shown:.3f}", shortened(answer, _ANSWER_CHARACTERS)))
        show_columns(target, [(f"  {name}", value, text) for name, value, text in lines], style="dim")
    if len(pairs) > most:
        show_line(target, f"  and {len(pairs) - most} more: --examples {len(pairs)}")


def _arm(point: ReportPoint) -> Mapping[str, Any]:
    arm = point.metrics.get("dense" if point.is_dense else "sparse")
    return arm if isinstance(arm, Mapping) else {}


def _dense_score(point: ReportPoint) -> tuple[float | None, float | None, float | None]:
    low, high = point.summary.dense_range
    return number(point.summary.dense), number(low), number(high)
