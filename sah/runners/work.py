"""What a worker does: prefill one context and answer the questions over it under every setting that lacks them.

Settings of one prefill share its cache and run together; those of a dense prefill come first, since the dense answers
are what others read for their fidelity.

Nothing here writes: rows go to whoever asked for them, in this process or in another.
"""

from __future__ import annotations

import dataclasses
import logging
import traceback
from collections.abc import Iterator, Mapping

from sah.adapters.context_cache import ContextCache
from sah.adapters.generation import Answer
from sah.adapters.huggingface import ModelAdapterHF
from sah.adapters.lanes import Lane, LaneWidth, answer_lanes
from sah.data.example import Example, Question
from sah.errors import DataError, ModelError, SahError, WorkerError
from sah.results.fidelity import FidelityRow
from sah.results.redact import redacted
from sah.results.rows import PredictionRow, PredictionStatus, plain_json, row_key
from sah.runners.given import GivenTexts
from sah.runners.made_rows import calls_of_layers, failed_fidelity, failed_row, measured_density, row_metadata
from sah.runners.session import LoadedModel, Session, attention_config
from sah.runners.tasks import ContextWork, GroupSpec, Outcome
from sah.runners.work_contexts import WorkContexts
from sah.sparse_attention.config import parse_dense_layers

_log = logging.getLogger(__name__)


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
        done: set[tuple[int, str, bool]] = set()
        dense_ids = dict(work.dense_ids)
        todo = work.only(lambda setting, index, forced: setting not in self._ended)
        if todo is None:
            return
        work = todo
        try:
            for setting, outcome in self._answer(work):
                if isinstance(outcome, SahError):
                    self._ended.add(setting)
                else:
                    done.add((setting, outcome.key, isinstance(outcome, FidelityRow)))
                    _note_answer(dense_ids, setting, outcome)
                yield setting, outcome
        except SahError:
            raise
        except Exception as error:
            # A fault of the code in one method must not take the others' answers along.
            settings = list(dict.fromkeys(setting for setting, _ in (*work.pending, *work.forced)))
            if len(settings) == 1:
                _log.error("%s: %s", self.spec.settings[settings[0]].label, traceback.format_exc())
                self._ended.add(settings[0])
                yield settings[0], ModelError(f"{type(error).__name__}: {error}. Its traceback is in the log.")
                return
            key = work.example.key
            for number in settings:

                def is_left(setting: int, index: int, forced: bool, number: int = number) -> bool:
                    return setting == number and (setting, row_key(key, index), forced) not in done

                part = work.only(is_left)
                if part is not None:
                    for setting, outcome in self.answer(dataclasses.replace(part, dense_ids=dense_ids)):
                        _note_answer(dense_ids, setting, outcome)
                        yield setting, outcome

    def _answer(self, work: ContextWork) -> Iterator[tuple[int, Outcome]]:
        first = self.spec.settings[(*work.pending, *work.forced)[0][0]].experiment
        try:
            model = self.session.model(first)
            self._check(model, first.model.name)
        except WorkerError:
            raise
        except (DataError, ModelError, RuntimeError, MemoryError) as error:
            yield from self._all_refused(work, error)
            return
        dense_ids = dict(work.dense_ids)
        contexts = WorkContexts(self.spec, work, self.session, model.adapter, self._adapter)
        for part in contexts.parts():
            try:
                cache, reused = contexts.get(part)
            except (DataError, ModelError, RuntimeError, MemoryError) as error:
                yield from self._all_refused(part, error)
                continue
            for setting, outcome in self._answer_over(part, contexts, cache, reused, dense_ids):
                _note_answer(dense_ids, setting, outcome)
                yield setting, outcome

    def _answer_over(
        self,
        work: ContextWork,
        contexts: WorkContexts,
        cache: ContextCache,
        reused: bool,
        dense_ids: Mapping[tuple[int, int], tuple[int, ...]],
    ) -> Iterator[tuple[int, Outcome]]:
        """Answer what settings of one prefill lack; `dense_ids` are the dense answers that are there by then."""
        dense = contexts.adapter
        places: list[tuple[int, int]] = []
        lanes: list[Lane] = []
        unusable: set[int] = set()
        for setting, number in work.pending:
            if setting in unusable or work.example.questions[number].likelihood:
                continue
            try:
                lanes.append(self._lane(setting, work.example.questions[number]))
                places.append((setting, number))
            except SahError as error:
                unusable.add(setting)
                yield setting, error
        budget = min(self.spec.settings[s].experiment.lanes_bytes for s, _ in (*work.pending, *work.forced))
        for lane, outcome in answer_lanes(dense, cache, lanes, budget, self._width):
            setting, number = places[lane]
            if setting in unusable:
                continue
            if isinstance(outcome, Answer):
                self._tell_layers(setting, outcome.sparse_layers, dense.num_layers)
                row = self._row(setting, work.example, number, outcome)
                yield setting, _over(row, cache, reused or lane > 0)
                continue
            refused = self._refused(setting, work.example, number, outcome)
            if isinstance(refused, SahError):
                unusable.add(setting)
            yield setting, refused
        try:
            reference = contexts.reference(work)
        except (DataError, ModelError, RuntimeError, MemoryError) as error:
            for setting, number in work.forced:
                yield setting, failed_fidelity(work.example, number, f"{type(error).__name__}: {error}")
            work, reference = dataclasses.replace(work, forced=()), None
        texts = GivenTexts(self.spec, work, cache, dense, dense_ids, reference)
        for setting, number in texts.places:
            if setting in unusable:
                continue
            try:
                texts.add(setting, number, self._adapter(setting))
            except SahError as error:
                unusable.add(setting)
                yield setting, error
        for setting, number, result in texts.run(budget):
            if setting in unusable:
                continue
            if isinstance(result, Exception):
                if texts.is_asked(setting, number):
                    refused = self._refused(setting, work.example, number, result)
                    if isinstance(refused, SahError):
                        unusable.add(setting)
                    yield setting, refused
                if (setting, number) in work.forced and setting not in unusable:
                    _log.warning("%s: fidelity of question %d: %s", self.spec.settings[setting].label, number, result)
                    yield setting, failed_fidelity(work.example, number, f"{type(result).__name__}: {result}")
                continue
            if isinstance(result, PredictionRow):
                result = _over(result, cache, reused)
                reused = True
            yield setting, result

    def _all_refused(self, work: ContextWork, error: Exception) -> Iterator[tuple[int, Outcome]]:
        """Make the rows of work that cannot be begun."""
        for setting, question in work.pending:
            yield setting, self._refused(setting, work.example, question, error)
        for setting, question in work.forced:
            yield setting, failed_fidelity(work.example, question, f"{type(error).__name__}: {error}")

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

    def _adapter(self, number: int) -> ModelAdapterHF:
        setting = self.spec.settings[number]
        if number not in self._adapters:
            adapter = self.session.model(setting.experiment).adapter
            config = None if setting.dense else attention_config(setting.experiment)
            self._adapters[number] = adapter if config is None else adapter.with_sparse_attention(config)
        return self._adapters[number]

    def _lane(self, number: int, question: Question) -> Lane:
        limit = self.spec.settings[number].experiment.generation.limit(question.max_new_tokens)
        return Lane(self._adapter(number), question.text, question.answer_prefix, limit)

    def _row(self, number: int, example: Example, index: int, answer: Answer) -> PredictionRow:
        setting, question = self.spec.settings[number], example.questions[index]
        sparse = self._adapters[number].sparse_attention is not None
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
            density_measured=measured_density(setting, answer.density),
            density_by_phase=answer.density_by_phase if sparse else {},
            attention_calls=answer.attention_calls,
            calls_by_layer=calls_of_layers(answer.calls_by_layer, self._adapters[number].num_layers),
            sparse_layers=len(answer.sparse_layers),
            state_seconds=answer.state_seconds,
            question_seconds=answer.question_seconds,
            question_cpu_seconds=answer.question_cpu_seconds,
            decode_seconds=answer.decode_seconds,
            decode_cpu_seconds=answer.decode_cpu_seconds,
            attention_seconds=answer.attention_seconds,
            selection_seconds=answer.selection_seconds,
            run=self.spec.run,
            stop_reason=answer.stop_reason,
            metadata=row_metadata(example, index),
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


def _over(row: PredictionRow, cache: ContextCache, reused: bool) -> PredictionRow:
    """Note with a row which prefill it was made over."""
    return dataclasses.replace(
        row,
        kv_len=cache.length,
        prefill_density=cache.prefill_density,
        prefill_seconds=cache.prefill_seconds,
        prefill_cpu_seconds=cache.prefill_cpu_seconds,
        prefill_reused=reused,
    )


def _note_answer(dense_ids: dict[tuple[int, int], tuple[int, ...]], setting: int, outcome: Outcome) -> None:
    """Keep the ids of an answer for settings that are to read it."""
    if isinstance(outcome, PredictionRow) and outcome.token_ids:
        dense_ids[setting, outcome.question_index] = outcome.token_ids
