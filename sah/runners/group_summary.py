"""The figures of one group in a plan: what is there, what is missing, and roughly how long that takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean

from sah.report.plan import GroupSummary
from sah.runners.estimate import POINT_BYTES, ModelCost, Rates, find_rates
from sah.runners.group import Group
from sah.runners.point import Point
from sah.runners.session import Session
from sah.runners.stored_contexts import StoredContexts
from sah.runners.tasks import ContextWork
from sah.sparse_attention.prefill.config import PrefillConfig

_SAMPLE = 4
"""Contexts of a group whose tokens are counted; the others are taken to have as many for their length."""

_WIDEST = 64
"""Most answers that are taken to be decoded together."""


class GroupSummaries:
    """Makes the summaries of a plan; what the estimates rest on is found once for each model.

    Args:
        session: Caches of the process.
        workers: How many processes will share the work.
    """

    def __init__(self, session: Session, workers: int) -> None:
        self._session = session
        self._workers = workers
        self._rates: dict[tuple[str, Path], Rates] = {}
        self._folders: dict[Path | None, StoredContexts] = {}

    def make(self, group: Group) -> GroupSummary:
        """Sum up one group.

        Args:
            group: The group.

        Returns:
            Its figures.
        """
        point, works = group.points[0], group.works()
        spec, held = group.spec(), self._session.contexts.holds
        needed = [(work.example.context, prefill) for work in works for prefill in spec.prefills_of(work)]
        lacking = [(text, prefill) for text, prefill in needed if not held(point.context_group, text, prefill)]
        folder = self._folder(point)
        to_prefill = [(text, prefill) for text, prefill in lacking if not folder.holds(point.model, text, prefill)]
        complete = [member for member in group.points if _is_complete(member)]
        rows = {(arm.store.id, n): n in arm.done for p in group.points for arm in p.arms for n in p.names(arm)}
        to_compute = sum(work.rows for work in works)
        tokens, seconds, new_bytes, context_bytes, basis = 0.0, 0.0, 0.0, 0.0, ""
        if works:
            cost = ModelCost(point.model.adapter.model)
            rates = self._rates_of(point, cost, works)
            length = _token_counter(point, works)
            tokens = sum(length(text) for text, _ in to_prefill)
            prefills = sum(cost.prefill(length(text), prefill_density(prefill)) for text, prefill in to_prefill)
            seconds = prefills / rates.prefill + _answering(group, works, cost, length) / rates.answer
            new_bytes = to_compute * rates.row_bytes + (len(group.points) - len(complete)) * POINT_BYTES
            context_bytes = folder.add(cost.context_bytes(length(text)) for text, _ in to_prefill)
            basis = rates.basis
        return GroupSummary(
            model=point.model.label,
            dataset=point.experiment.dataset.name,
            points=len(group.points),
            complete=len(complete),
            contexts=len({example.key for member in group.points for example in member.examples}),
            to_prefill=len(to_prefill),
            stored=len(lacking) - len(to_prefill),
            busy_workers=min(self._workers, len(works)),
            tokens=round(tokens),
            rows_there=sum(rows.values()),
            to_compute=to_compute,
            seconds=seconds,
            new_bytes=new_bytes,
            context_bytes=context_bytes,
            basis=basis,
        )

    def _folder(self, point: Point) -> StoredContexts:
        folder, capacity = point.experiment.context_folder, point.experiment.context_folder_bytes
        if folder not in self._folders:
            self._folders[folder] = StoredContexts(folder, 0 if folder is None else capacity)
        return self._folders[folder]

    def _rates_of(self, point: Point, cost: ModelCost, works: Sequence[ContextWork]) -> Rates:
        key = (str(point.model.identity), point.experiment.output_dir)
        if key not in self._rates:
            together = min(round(mean(max(len(work.pending), len(work.forced)) for work in works)), _WIDEST)
            self._rates[key] = find_rates(cost, point.model.identity, point.experiment.output_dir, together)
        return self._rates[key]


def prefill_density(prefill: PrefillConfig | None) -> float:
    """Return the share of attention that a prefill aims at; 1 for a dense one, and where its sizes decide it."""
    return 1.0 if prefill is None else float(getattr(prefill, "target_density", None) or 1.0)


def _is_complete(point: Point) -> bool:
    return all(name in arm.done for arm in point.arms for name in point.names(arm))


def _answering(group: Group, works: Sequence[ContextWork], cost: ModelCost, length: Callable[[str], float]) -> float:
    """Count the operations of all missing rows, each answer as long as it may become."""
    options = [setting.experiment.generation for setting in group.spec().settings]
    total = 0.0
    for work in works:
        context = length(work.example.context)
        # A text that is given is read once, whatever rows are made of it.
        texts = {place for place in (*work.pending, *work.forced) if work.example.questions[place[1]].likelihood}
        asked = [place for place in (*work.pending, *work.forced) if place not in texts]
        for setting, index in [*texts, *asked]:
            question = work.example.questions[index]
            answer = 0 if question.likelihood else options[setting].limit(question.max_new_tokens)
            total += cost.answer(context, length(question.text) + answer)
    return total


def _token_counter(point: Point, works: Sequence[ContextWork]) -> Callable[[str], float]:
    """Make a function from a text to its tokens, by the tokens of a few contexts for their length."""
    sample = [work.example.context for work in works[:: max(1, len(works) // _SAMPLE)][:_SAMPLE]]
    prompts = point.model.adapter.prompts
    ratio = sum(len(prompts.context_prompt(text).ids) for text in sample) / sum(map(len, sample))
    return lambda text: max(1.0, ratio * len(text))
