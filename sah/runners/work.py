"""What a worker does: prefill one context and answer the questions over it under every setting that lacks them.

Nothing here writes: rows go to whoever asked for them, in this process or in another.
"""

from __future__ import annotations

import dataclasses
import logging
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sah.adapters.generation import Answer
from sah.adapters.huggingface import ModelAdapterHF
from sah.adapters.lanes import Lane, LaneWidth, answer_lanes
from sah.config.experiment import Experiment
from sah.data.example import Example, Question
from sah.errors import DataError, ModelError, SahError, WorkerError
from sah.results.redact import redacted
from sah.results.rows import PredictionRow, PredictionStatus, plain_json, row_key
from sah.runners.session import LoadedModel, Session, attention_config
from sah.sparse_attention.config import parse_dense_layers

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Setting:
    """One arm as a worker needs it."""

    point_id: str
    label: str
    experiment: Experiment
    dense: bool
    """Whether it is the dense baseline, whatever recipe the experiment holds."""

    requested_density: float | None


@dataclass(frozen=True)
class GroupSpec:
    """What the contexts of a group have in common. Can be sent to another process."""

    settings: tuple[Setting, ...]
    context_group: str
    """Names the model and the prefill, on which prefilled contexts depend."""

    run: str
    """Id of the run, noted with its rows."""

    model: Mapping[str, Any]
    """Identity of the planned model, part of the points' ids: a worker with another one must not answer."""


@dataclass(frozen=True)
class ContextWork:
    """The questions over one context that have no answer yet. Can be sent to another process."""

    example: Example
    pending: tuple[tuple[int, int], ...]
    """(number of the setting, number of the question), settings in order."""


Outcome = PredictionRow | SahError
"""A row, or the error that ends its setting: its other questions over this context have no row then."""


class GroupWorker:
    """Answers contexts of one group.

    Args:
        spec: The group.
        session: Caches of the process.
    """

    def __init__(self, spec: GroupSpec, session: Session) -> None:
        self.spec = spec
        self.session = session
        self._adapters: dict[int, ModelAdapterHF] = {}
        self._width = LaneWidth()
        self._told: set[int] = set()
        self._traced: set[tuple[int, type[Exception]]] = set()
        self._ended: set[int] = set()
        """Settings that cannot be run."""
        self._checked = False
        """Whether the model is known to be the planned one."""

    def answer(self, work: ContextWork) -> Iterator[tuple[int, Outcome]]:
        """Answer what is pending over one context, each row as soon as it is there.

        Args:
            work: The context.

        Yields:
            The setting's number, and a row or the error that ends the setting.

        Raises:
            WorkerError: If the model that is found here is not the planned one.
            SahError: If nothing can be computed at all.
        """
        done: set[tuple[int, str]] = set()
        pending = tuple(place for place in work.pending if place[0] not in self._ended)
        if not pending:
            return
        work = ContextWork(work.example, pending)
        try:
            for setting, outcome in self._answer(work):
                if isinstance(outcome, PredictionRow):
                    done.add((setting, outcome.key))
                else:
                    self._ended.add(setting)
                yield setting, outcome
        except SahError:
            raise
        except Exception as error:
            # A fault of the code in one method must not take the others' answers along.
            settings = list(dict.fromkeys(setting for setting, _ in work.pending))
            if len(settings) == 1:
                _log.error("%s: %s", self.spec.settings[settings[0]].label, traceback.format_exc())
                self._ended.add(settings[0])
                yield settings[0], ModelError(f"{type(error).__name__}: {error}. Its traceback is in the log.")
                return
            key = work.example.key
            rest = [(s, index) for s, index in work.pending if (s, row_key(key, index)) not in done]
            for number in settings:
                if part := tuple(place for place in rest if place[0] == number):
                    yield from self.answer(ContextWork(work.example, part))

    def _answer(self, work: ContextWork) -> Iterator[tuple[int, Outcome]]:
        first = self.spec.settings[work.pending[0][0]].experiment
        try:
            model = self.session.model(first)
            self._check(model, first.model.name)
            dense = model.adapter
            cache, reused = self.session.contexts.get(self.spec.context_group, work.example.context, dense.prefill)
        except WorkerError:
            raise
        except (DataError, ModelError, RuntimeError, MemoryError) as error:
            for setting, question in work.pending:
                yield setting, self._refused(setting, work.example, question, error)
            return
        places: list[tuple[int, int]] = []
        lanes: list[Lane] = []
        unusable: set[int] = set()
        for setting, number in work.pending:
            if setting in unusable:
                continue
            try:
                lanes.append(self._lane(setting, work.example.questions[number]))
                places.append((setting, number))
            except SahError as error:
                unusable.add(setting)
                yield setting, error
        budget = min(self.spec.settings[setting].experiment.lanes_bytes for setting, _ in work.pending)
        for lane, outcome in answer_lanes(dense, cache, lanes, budget, self._width):
            setting, number = places[lane]
            if setting in unusable:
                continue
            if isinstance(outcome, Answer):
                self._tell_layers(setting, outcome.sparse_layers, dense.num_layers)
                row = self._row(setting, work.example, number, outcome)
                yield (
                    setting,
                    dataclasses.replace(
                        row,
                        kv_len=cache.length,
                        prefill_seconds=cache.prefill_seconds,
                        prefill_cpu_seconds=cache.prefill_cpu_seconds,
                        prefill_reused=reused or lane > 0,
                    ),
                )
                continue
            refused = self._refused(setting, work.example, number, outcome)
            if isinstance(refused, SahError):
                unusable.add(setting)
            yield setting, refused

    def _check(self, model: LoadedModel, name: str) -> None:
        """Refuse another model than the planned one; its rows would stand under the planned one's id."""
        if self._checked:
            return
        planned, here = redacted(plain_json(self.spec.model)), redacted(plain_json(model.identity))
        differing = sorted(key for key in planned.keys() | here.keys() if planned.get(key) != here.get(key))
        if differing:
            lines = [f"  {key}: planned {planned.get(key)}, here {here.get(key)}" for key in differing]
            raise WorkerError(
                f"model.name={name!r} is another model here than the planned one:\n"
                + "\n".join(lines)
                + "\nNothing is computed with it. Give every machine the same files (a folder that all of them see, or "
                "++model.model_kwargs.revision=COMMIT for a hub's model) and the same type of weights "
                f"(++model.model_kwargs.dtype={planned.get('dtype')}), and run the same command again."
            )
        self._checked = True

    def _lane(self, number: int, question: Question) -> Lane:
        setting = self.spec.settings[number]
        if number not in self._adapters:
            adapter = self.session.model(setting.experiment).adapter
            config = None if setting.dense else attention_config(setting.experiment)
            self._adapters[number] = adapter if config is None else adapter.with_sparse_attention(config)
        return Lane(
            self._adapters[number],
            question.text,
            question.answer_prefix,
            setting.experiment.generation.limit(question.max_new_tokens),
            0.0 if setting.dense else setting.experiment.attention_error,
        )

    def _row(self, number: int, example: Example, index: int, answer: Answer) -> PredictionRow:
        setting, question = self.spec.settings[number], example.questions[index]
        return PredictionRow(
            example_key=example.key,
            question_index=index,
            status="ok",
            prediction=answer.text,
            token_ids=tuple(answer.token_ids),
            answers=question.answers,
            answer_prefix=question.answer_prefix,
            num_question_tokens=answer.num_question_tokens,
            num_answer_tokens=len(answer.token_ids),
            decode_steps=len(answer.token_ids) - 1,
            density_requested=setting.requested_density,
            density_measured=answer.density,
            density_by_phase={} if setting.dense else answer.density_by_phase,
            attention_calls=answer.attention_calls,
            sparse_layers=len(answer.sparse_layers),
            output_error=answer.output_error,
            state_seconds=answer.state_seconds,
            question_seconds=answer.question_seconds,
            question_cpu_seconds=answer.question_cpu_seconds,
            decode_seconds=answer.decode_seconds,
            decode_cpu_seconds=answer.decode_cpu_seconds,
            attention_seconds=answer.attention_seconds,
            selection_seconds=answer.selection_seconds,
            run=self.spec.run,
            stop_reason=answer.stop_reason,
            metadata=_metadata(example, index),
        )

    def _refused(self, number: int, example: Example, index: int, error: Exception) -> Outcome:
        """Make the row of a question that could not be answered; a faulty recipe has no rows at all."""
        setting = self.spec.settings[number]
        status: PredictionStatus = "invalid_input" if isinstance(error, DataError) else "model_failed"
        if isinstance(error, SahError) and not isinstance(error, (DataError, ModelError)):
            return error
        # A fault of the code is told with its traceback, once a setting; those of torch say enough themselves.
        fault = (number, type(error))
        traced = isinstance(error, (SahError, RuntimeError, MemoryError)) or fault in self._traced
        self._traced.add(fault)
        told = "%s, question %d of example %s: %s"
        _log.warning(told, setting.label, index, example.key, error, exc_info=None if traced else error)
        return failed_row(setting, example, index, status, f"{type(error).__name__}: {error}")

    def _tell_layers(self, number: int, sparse: tuple[int, ...], layers: int) -> None:
        """Say once which layers run sparse where the model has layers that never do."""
        if not sparse or number in self._told:
            return
        self._told.add(number)
        dense_layers = parse_dense_layers(self.spec.settings[number].experiment.dense_layers)
        dense = sum(layer in dense_layers for layer in range(layers))
        windowed = sum(layer not in sparse and layer not in dense_layers for layer in range(layers))
        if windowed:
            named = f" {dense} are dense as dense_layers says." if dense else ""
            told = "Sparse attention runs in %d of %d layers;%s %d keep the attention window that the model gives them."
            _log.warning(told, len(sparse), layers, named, windowed)


def failed_row(setting: Setting, example: Example, index: int, status: PredictionStatus, error: str) -> PredictionRow:
    """Make the row of a question that has no answer.

    Args:
        setting: The setting.
        example: The context.
        index: Number of the question.
        status: What kind of failure it was.
        error: What went wrong.

    Returns:
        The row.
    """
    question = example.questions[index]
    return PredictionRow(
        example_key=example.key,
        question_index=index,
        status=status,
        answers=question.answers,
        answer_prefix=question.answer_prefix,
        density_requested=setting.requested_density,
        error=error,
        metadata=_metadata(example, index),
    )


def _metadata(example: Example, index: int) -> Mapping[str, object]:
    return {**example.metadata, **example.questions[index].metadata}
