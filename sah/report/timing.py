"""What a timed run says: decode times against the faster dense form, in figures and in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FASTER = 1.05
"""Speed-up from which a method is called faster; what lies below is within the noise of times."""

WEIGHTS_DOMINATE = 1 / 3
"""Share of attention in a dense token below which attention for nothing would gain less than 1.5x."""

_FORMS = {"own": "the model's own attention", "grouped": "grouped attention"}


@dataclass(frozen=True)
class DecodeTimes:
    """Milliseconds of one decoded token: the whole, and what lies in attention and selection."""

    token: float
    attention: float
    selection: float


@dataclass(frozen=True)
class TimedPoint:
    """A sparse attention, or none, beside the faster dense form, timed in turn on the same tokens."""

    dense_form: str
    """The faster one: `own` or `grouped`."""
    dense: DecodeTimes
    sparse: DecodeTimes | None

    @property
    def speed_up(self) -> float | None:
        """Dense time a token divided by sparse time a token; None without a sparse arm."""
        return None if self.sparse is None else self.dense.token / self.sparse.token

    @property
    def attention_share(self) -> float:
        """Share of a dense token's time that goes into attention."""
        return self.dense.attention / self.dense.token


def timed_point(timing: Mapping[str, Any], sparse: str = "sparse", clock: str = "wall") -> TimedPoint:
    """Read a timed run.

    Args:
        timing: Content of `timing.json`.
        sparse: Name of the sparse arm; it may be absent.
        clock: `wall` or `cpu`.

    Returns:
        Its figures.
    """
    arms = {name: _times(arm[clock]) for name, arm in timing["arms"].items()}
    form = min(_FORMS, key=lambda name: arms[name].token)
    return TimedPoint(form, arms[form], arms.get(sparse))


def verdict(label: str, timed: TimedPoint) -> str:
    """Say in words whether a sparse attention decodes faster than the faster dense form, and if not, why.

    Args:
        label: Name of the sparse attention.
        timed: Its figures.

    Returns:
        A phrase without a full stop.
    """
    form, share = _FORMS[timed.dense_form], f"attention is {100 * timed.attention_share:.0f} % of a dense token"
    sparse, speed_up = timed.sparse, timed.speed_up
    if sparse is None or speed_up is None:
        return f"{label}: {form} is the faster dense form, {share}"
    if speed_up > FASTER:
        return f"{label}: {speed_up:.2f}x faster than the best dense form ({form}), {share}"
    why = f"{'weights dominate, ' if timed.attention_share < WEIGHTS_DOMINATE else ''}{share}"
    spent = sparse.attention + sparse.selection
    return (
        f"{label}: no speed-up over the best dense form ({form}), {speed_up:.2f}x: {why} "
        f"({timed.dense.attention:.2f} ms), selection and attention take {spent:.2f} ms"
    )


def _times(split: Mapping[str, float]) -> DecodeTimes:
    return DecodeTimes(split["token"], split["attention"], split["selection"])
