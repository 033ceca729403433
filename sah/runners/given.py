"""Texts that are given instead of generated: dense answers read by sparse settings, and texts of a data set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sah.adapters.context_cache import ContextCache
from sah.adapters.forced import Forced, ForcedLane, force_lanes
from sah.adapters.huggingface import ModelAdapterHF
from sah.errors import DataError, ModelError
from sah.results.fidelity import FidelityRow, LayerErrors, rounded
from sah.results.rows import PredictionRow
from sah.runners.made_rows import calls_of_layers, measured_density, row_metadata
from sah.runners.tasks import ContextWork, GroupSpec
from sah.sparse_attention.attention_errors import HeadErrors

Result = PredictionRow | FidelityRow | Exception


class GivenTexts:
    """The given texts of one context's work.

    Args:
        spec: The group.
        work: The context and what is still to do.
        cache: The context as the settings of this work have it prefilled.
        dense: The dense adapter.
        dense_ids: Ids of dense answers, by dense setting and question.
        reference: The context as the dense baseline has it prefilled, over which dense attention reads the same texts
            for comparison; None where that is `cache` itself, or nothing is compared.
    """

    def __init__(
        self,
        spec: GroupSpec,
        work: ContextWork,
        cache: ContextCache,
        dense: ModelAdapterHF,
        dense_ids: Mapping[tuple[int, int], tuple[int, ...]],
        reference: ContextCache | None = None,
    ) -> None:
        self._spec, self._work, self._cache, self._dense, self._dense_ids = spec, work, cache, dense, dense_ids
        self._reference = reference
        self._lanes: list[ForcedLane] = []
        self._places: list[tuple[int, int]] = []
        self._failed: list[tuple[int, int, Exception]] = []

    @property
    def places(self) -> list[tuple[int, int]]:
        """Setting and question of every text, each once."""
        texts = [place for place in self._work.pending if self.is_asked(*place)]
        return list(dict.fromkeys([*texts, *self._work.forced]))

    def is_asked(self, setting: int, number: int) -> bool:
        """Tell whether a text is a pending question itself, and no answer to one."""
        return (setting, number) in self._work.pending and self._work.example.questions[number].likelihood

    def add(self, setting: int, number: int, adapter: ModelAdapterHF) -> None:
        """Add one text under a setting.

        Args:
            setting: The setting.
            number: The question.
            adapter: The setting's adapter.
        """
        try:
            question_ids, token_ids = self._ids(setting, number)
        except (DataError, ModelError) as error:
            self._failed.append((setting, number, error))
            return
        experiment = self._spec.settings[setting].experiment
        rate = 0.0 if adapter.sparse_attention is None else experiment.attention_error
        self._lanes.append(ForcedLane(adapter, question_ids, token_ids, rate))
        self._places.append((setting, number))

    def run(self, budget_bytes: int) -> Iterator[tuple[int, int, Result]]:
        """Run all texts that were added.

        Args:
            budget_bytes: Memory for a batch.

        Yields:
            Setting, question, and a row, or what kept it from being made. A text of a data set gives a prediction row
            and, under a sparse setting, a fidelity row behind it.
        """
        yield from self._failed
        for lane, outcome in force_lanes(self._dense, self._cache, self._lanes, budget_bytes, self._reference):
            setting, number = self._places[lane]
            if isinstance(outcome, Forced) and not outcome.is_finite:
                outcome = ModelError(
                    "The likelihood of the text is infinite or NaN: attention gives one of its tokens no chance at all."
                )
            if isinstance(outcome, Exception):
                yield setting, number, outcome
                continue
            if self.is_asked(setting, number):
                yield setting, number, self._prediction(setting, number, self._lanes[lane], outcome)
            if (setting, number) in self._work.forced:
                yield setting, number, self._fidelity(number, self._lanes[lane], outcome)

    def _ids(self, setting: int, number: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return what is read first, and the text behind it."""
        question = self._work.example.questions[number]
        ids = self._dense.prompts.question_ids(self._cache.prompt, question.text, question.answer_prefix)
        if question.likelihood:
            if len(ids) < 2:
                raise DataError(f"The text {question.text!r} has {len(ids)} tokens. Allowed: at least two.")
            # The first one is predicted by the context's last token, whose logits the prefill does not keep.
            return tuple(ids[:1]), tuple(ids[1:])
        reference = self._spec.settings[setting].reference
        answer = self._dense_ids.get((-1 if reference is None else reference, number))
        if not answer:
            raise ModelError("The dense arm has no answer to this question, so there is nothing to be compared on.")
        return tuple(ids), answer

    def _prediction(self, setting: int, number: int, lane: ForcedLane, forced: Forced) -> PredictionRow:
        example = self._work.example
        question = example.questions[number]
        calls = calls_of_layers(forced.calls_by_layer, self._dense.num_layers)
        return PredictionRow(
            example_key=example.key,
            question_index=number,
            status="ok",
            answers=question.answers,
            num_question_tokens=len(lane.question_ids),
            num_answer_tokens=forced.tokens,
            density_requested=self._spec.settings[setting].requested_density,
            density_measured=measured_density(self._spec.settings[setting], forced.density),
            density_by_phase=forced.density_by_phase,
            attention_calls=sum(calls),
            calls_by_layer=calls,
            sparse_layers=sum(count > 0 for count in calls),
            log_likelihood=forced.log_likelihood,
            run=self._spec.run,
            metadata=row_metadata(example, number),
        )

    def _fidelity(self, number: int, lane: ForcedLane, forced: Forced) -> FidelityRow:
        return FidelityRow(
            example_key=self._work.example.key,
            question_index=number,
            status="ok",
            tokens=forced.tokens,
            kl=forced.kl,
            top1_agreement=forced.top1_agreement,
            log_likelihood=forced.log_likelihood,
            dense_log_likelihood=forced.dense_log_likelihood,
            attention_error=lane.attention_error,
            layers={layer: _stored(errors) for layer, errors in forced.attention_errors.items()},
            calls_by_layer=calls_of_layers(forced.calls_by_layer, self._dense.num_layers),
        )


def _stored(errors: HeadErrors) -> LayerErrors:
    figures = (errors.output_error, errors.mass_recalled, errors.density)
    error, mass, density = (tuple(map(rounded, heads.tolist())) for heads in figures)
    return LayerErrors(errors.queries, error, mass, density)
