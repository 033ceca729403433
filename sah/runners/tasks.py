"""What a worker is given and gives back. Can be sent to another process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sah.config.experiment import Experiment
from sah.data.example import Example
from sah.errors import SahError
from sah.results.fidelity import FidelityRow
from sah.results.rows import PredictionRow
from sah.sparse_attention.prefill.config import PrefillConfig


@dataclass(frozen=True)
class Setting:
    """One arm as a worker needs it."""

    point_id: str
    label: str
    experiment: Experiment
    dense: bool
    """Whether it is the dense baseline, whatever recipe and prefill the experiment holds."""

    requested_density: float | None

    reference: int | None = None
    """Number of the dense setting that this one is compared with; None for a dense one."""

    @property
    def prefill(self) -> PrefillConfig | None:
        """What its contexts' prefill keeps; None for a dense one."""
        return None if self.dense else self.experiment.prefill

    @property
    def observes(self) -> bool:
        """Whether its maskers look at something of the prefill."""
        return not self.dense and looks_at_prefill(self.experiment)


@dataclass(frozen=True)
class GroupSpec:
    """What the contexts of a group have in common. Can be sent to another process."""

    settings: tuple[Setting, ...]
    context_group: str
    """Names the model and the data set, on which prefilled contexts depend beside what their prefill keeps."""

    run: str
    """Id of the run, noted with its rows."""

    model: Mapping[str, Any]
    """Identity of the planned model, part of the points' ids: a worker with another one must not answer."""

    def prefills_of(self, work: ContextWork) -> list[PrefillConfig | None]:
        """List the prefills of a context that its work needs, the dense one (None) first.

        A setting with a sparse prefill needs the dense one as well for its fidelity, which compares the two.
        """
        found: list[PrefillConfig | None] = []
        for setting, _ in (*work.pending, *work.forced):
            prefill = self.settings[setting].prefill
            if prefill not in found:
                found.append(prefill)
        if None not in found and work.forced:
            found.append(None)
        return sorted(found, key=lambda prefill: prefill is not None)


@dataclass(frozen=True)
class ContextWork:
    """What is still to do over one context. Can be sent to another process."""

    example: Example
    pending: tuple[tuple[int, int], ...]
    """Questions without an answer: (number of the setting, number of the question), settings in order."""

    forced: tuple[tuple[int, int], ...] = ()
    """Questions whose dense answer a sparse setting has still to read, likewise."""

    dense_ids: Mapping[tuple[int, int], tuple[int, ...]] = field(default_factory=dict)
    """Ids of dense answers that are there already, by dense setting and question."""

    @property
    def rows(self) -> int:
        """Rows to make."""
        return len(self.pending) + len(self.forced)

    def only(self, keep: Callable[[int, int, bool], bool]) -> ContextWork | None:
        """Keep a part of the work.

        Args:
            keep: Tells by setting, question and whether it is a forced one.

        Returns:
            The part; None if nothing is left.
        """
        pending = tuple(place for place in self.pending if keep(*place, False))
        forced = tuple(place for place in self.forced if keep(*place, True))
        return replace(self, pending=pending, forced=forced) if pending or forced else None


def looks_at_prefill(experiment: Experiment) -> bool:
    """Tell whether a point's maskers look at something of the prefill."""
    return any(getattr(config, "observes", "") for _, config in experiment.maskers)


Outcome = PredictionRow | FidelityRow | SahError
"""A row, or the error that ends its setting: its other questions over this context have no row then."""


def fidelity_name(key: str) -> str:
    """Name a row of `fidelity.jsonl` where rows of both kinds are told apart by name."""
    return f"{key}:fidelity"


def row_name(row: PredictionRow | FidelityRow) -> str:
    """Name a row: its key, or of one of `fidelity.jsonl` `fidelity_name` of it."""
    return fidelity_name(row.key) if isinstance(row, FidelityRow) else row.key
