"""One point: dense and sparse on the same examples, each context prefilled once for every question and both modes."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from sah.adapters.context_cache import ContextCache
from sah.adapters.huggingface import ModelAdapterHF
from sah.config.experiment import DENSE, Experiment
from sah.data.example import Example, Question
from sah.errors import DataError, ModelError, SahError
from sah.metrics.scorers import check_metrics
from sah.results.rows import PredictionRow, PredictionStatus, row_key
from sah.results.store import PointStore
from sah.runners.identity import point_identity, requested_density
from sah.runners.session import LoadedModel, Session, attention_config
from sah.sparse_attention.config import parse_dense_layers

_log = logging.getLogger(__name__)

DENSE_WAIT_SECONDS = 3600.0
"""How long a run waits while another one computes the dense answers of a context that both need."""


@dataclass
class Arm:
    """One setting of a point and where its rows go."""

    label: str
    adapter: ModelAdapterHF
    store: PointStore
    requested_density: float | None
    done: set[str]
    """Keys of rows that need no further work."""
    layers_told: bool = False
    """Whether the user was told which layers run sparse, if not all."""
    noted: bool = False
    """Whether this run's provenance stands beside the rows."""


@dataclass(frozen=True)
class Point:
    """A point with everything it needs to run."""

    experiment: Experiment
    model: LoadedModel
    examples: Sequence[Example]
    dense: Arm
    sparse: Arm | None
    """None where the point is the dense baseline itself."""
    context_group: str
    """Names the model and the data set, on which prefilled contexts depend."""
    run: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    """Id of this run, noted with its rows."""

    @property
    def main(self) -> Arm:
        """The arm that the point is about."""
        return self.sparse or self.dense

    @property
    def row_keys(self) -> list[str]:
        """Keys of all questions, in order."""
        return [row_key(e.key, i) for e in self.examples for i in range(len(e.questions))]


def prepare_point(experiment: Experiment, session: Session, config: dict[str, Any] | None = None) -> Point:
    """Load what a point needs and see what is done already. Computes and writes nothing.

    Args:
        experiment: The point.
        session: Caches of the process.
        config: The composed config, kept beside the results.

    Returns:
        The point.

    Raises:
        SahError: If the model, the data, the recipe or the stored results cannot be used.
    """
    check_metrics(experiment.dataset.metrics)
    sparse_config = attention_config(experiment)
    model = session.model(experiment)
    # Made before any data, since it refuses layers that the model does not have.
    sparse_adapter = None if sparse_config is None else model.adapter.with_sparse_attention(sparse_config)
    dataset = experiment.dataset.identity()
    examples = session.examples(experiment, model, dataset)

    def arm(label: str, adapter: ModelAdapterHF, *, dense: bool) -> Arm:
        identity = point_identity(experiment, model.identity, model.adapter.num_layers, dataset, dense=dense)
        store = PointStore(experiment.output_dir, identity, label, config)
        return Arm(label, adapter, store, None if dense else requested_density(experiment), store.finished())

    group = json.dumps([model.identity, dataset], sort_keys=True)
    dense = arm(DENSE, model.adapter, dense=True)
    sparse = None if sparse_adapter is None else arm(experiment.label, sparse_adapter, dense=False)
    return Point(experiment, model, examples, dense, sparse, group)


def run_point(point: Point, session: Session, provenance: Mapping[str, Any]) -> None:
    """Compute the rows that are missing, appending each as it is made.

    The sparse store belongs to this run alone while it lasts. The dense one is shared by all points on the same
    examples, so it is taken for one context at a time.

    Args:
        point: The point.
        session: Caches of the process.
        provenance: What is known of this run; noted with every arm that it adds rows to, before the first of them.

    Raises:
        StateError: If another run writes the same point, or rows cannot be written.
        ConfigError: If the recipe proves unusable while it runs; rows made before are kept.
    """
    arms = [point.dense] if point.sparse is None else [point.dense, point.sparse]
    pending = sum(key not in arm.done for arm in arms for key in point.row_keys)
    with ExitStack() as stack:
        if point.sparse is not None:
            stack.enter_context(point.sparse.store.writer())
            point.sparse.done = point.sparse.store.finished()
        if not pending:
            _log.info("All %d answers of this point are there already.", len(point.row_keys) * len(arms))
            return
        progress = stack.enter_context(_progress())
        task = progress.add_task("", total=pending)
        for number, example in enumerate(point.examples):
            progress.update(task, description=f"context {number + 1}/{len(point.examples)}")
            _run_example(point, arms, example, session, provenance, progress, task)


def _run_example(
    point: Point,
    arms: list[Arm],
    example: Example,
    session: Session,
    provenance: Mapping[str, Any],
    progress: Progress,
    task: TaskID,
) -> None:
    keys = [row_key(example.key, index) for index in range(len(example.questions))]
    if all(key in arm.done for arm in arms for key in keys):
        return
    cache: ContextCache | None = None
    reused = False
    for arm in arms:
        if all(key in arm.done for key in keys):
            continue
        with ExitStack() as stack:
            if arm is point.dense:
                stack.enter_context(arm.store.writer(wait_seconds=DENSE_WAIT_SECONDS))
                # Another run may have answered meanwhile.
                finished = arm.store.finished()
                progress.advance(task, sum(key in finished and key not in arm.done for key in keys))
                arm.done = finished
            for index, question in enumerate(example.questions):
                if keys[index] in arm.done:
                    continue
                if not arm.noted:
                    arm.store.add_provenance(provenance)
                    arm.noted = True
                try:
                    if cache is None:
                        cache, reused = session.contexts.get(point.context_group, example.context, arm.adapter.prefill)
                    row = _answer(point, arm, cache, reused, example, index, question)
                    reused = True
                except DataError as error:
                    row = _failed_row(arm, example, index, question, "invalid_input", error)
                except (ModelError, RuntimeError) as error:
                    if isinstance(error, SahError) and not isinstance(error, ModelError):
                        raise
                    row = _failed_row(arm, example, index, question, "model_failed", error)
                arm.store.append(row)
                if row.status == "ok":
                    arm.done.add(row.key)
                progress.advance(task)


def _answer(
    point: Point, arm: Arm, cache: ContextCache, reused: bool, example: Example, index: int, question: Question
) -> PredictionRow:
    answer = arm.adapter.answer(
        cache,
        question.text,
        answer_prefix=question.answer_prefix,
        max_new_tokens=point.experiment.generation.limit(question.max_new_tokens),
        attention_error=point.experiment.attention_error,
    )
    if answer.sparse_layers and not arm.layers_told:
        _tell_layers(point, answer.sparse_layers, arm.adapter.num_layers)
        arm.layers_told = True
    return PredictionRow(
        example_key=example.key,
        question_index=index,
        status="ok",
        prediction=answer.text,
        token_ids=tuple(answer.token_ids),
        answers=question.answers,
        answer_prefix=question.answer_prefix,
        kv_len=cache.length,
        num_question_tokens=answer.num_question_tokens,
        num_answer_tokens=len(answer.token_ids),
        decode_steps=len(answer.token_ids) - 1,
        density_requested=arm.requested_density,
        density_measured=answer.density,
        density_by_phase=answer.density_by_phase if arm.label != DENSE else {},
        attention_calls=answer.attention_calls,
        sparse_layers=len(answer.sparse_layers),
        output_error=answer.output_error,
        prefill_seconds=cache.prefill_seconds,
        prefill_cpu_seconds=cache.prefill_cpu_seconds,
        prefill_reused=reused,
        state_seconds=answer.state_seconds,
        question_seconds=answer.question_seconds,
        question_cpu_seconds=answer.question_cpu_seconds,
        decode_seconds=answer.decode_seconds,
        decode_cpu_seconds=answer.decode_cpu_seconds,
        run=point.run,
        stop_reason=answer.stop_reason,
        metadata={**example.metadata, **question.metadata},
    )


def _tell_layers(point: Point, sparse: tuple[int, ...], layers: int) -> None:
    """Say which layers run sparse where the model has layers that never do."""
    dense_layers = parse_dense_layers(point.experiment.dense_layers)
    dense = sum(layer in dense_layers for layer in range(layers))
    windowed = sum(layer not in sparse and layer not in dense_layers for layer in range(layers))
    if windowed:
        named = f" {dense} are dense as dense_layers says." if dense else ""
        told = "Sparse attention runs in %d of %d layers;%s %d keep the attention window that the model gives them."
        _log.warning(told, len(sparse), layers, named, windowed)


def _failed_row(
    arm: Arm, example: Example, index: int, question: Question, status: PredictionStatus, error: Exception
) -> PredictionRow:
    _log.warning("%s, question %d of example %s: %s", arm.label, index, example.key, error)
    return PredictionRow(
        example_key=example.key,
        question_index=index,
        status=status,
        answers=question.answers,
        answer_prefix=question.answer_prefix,
        density_requested=arm.requested_density,
        error=f"{type(error).__name__}: {error}",
        metadata={**example.metadata, **question.metadata},
    )


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("answers"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
