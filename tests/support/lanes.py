"""Lanes alone and in company: logits step by step over the same tokens, and proof that a difference is a tie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from sah.adapters.generation import Answer
from sah.adapters.huggingface import ModelAdapterHF
from sah.adapters.lane_batch import LaneBatch, PreparedLane
from sah.adapters.lanes import Lane
from sah.adapters.prompt import ContextPrompt, PromptFormatter
from sah.sparse_attention import AdaptiveSamplingMaskerConfig, AutoAttentionConfig, Mask
from sah.sparse_attention.maskers.adaptive import AdaptiveSamplingMasker
from sah.sparse_attention.randomness import LANES_KEY
from sah.sparse_attention.shared import SharedStates
from tests.support.agreement import assert_promise_is_tied, assert_tied, true_scores
from tests.support.attention import Inputs

TOLERANCE = 1e-4
"""Largest difference of logits that counts as none."""


class IdsAsText(PromptFormatter):
    """Contexts and questions written as ids, so that they have as many tokens as a test wants."""

    def prompt_ids(self, context: str, question: str, answer_prefix: str = "") -> list[int]:
        return [int(part) for part in f"{context} {question} {answer_prefix}".split()]

    def context_prompt(self, context: str) -> ContextPrompt:
        return ContextPrompt(context, [int(part) for part in context.split()])


def reads_ids(adapter: ModelAdapterHF) -> ModelAdapterHF:
    """An adapter of the same model whose texts are ids, and so are those of adapters made from it."""
    own = adapter.with_sparse_attention(None)
    own.prompts = IdsAsText(own.tokenizer)
    return own


def ids_as_text(count: int, seed: int, vocabulary: int = 250) -> str:
    """Random ids from 10 on, which leaves out the special ones of tiny models."""
    generator = torch.Generator().manual_seed(seed)
    return " ".join(str(i) for i in torch.randint(10, vocabulary, (count,), generator=generator).tolist())


def setting(adapter: ModelAdapterHF, recipe: list[Any] | None, **options: Any) -> ModelAdapterHF:
    """An adapter of the same model with a recipe; None is dense."""
    return adapter.with_sparse_attention(None if recipe is None else AutoAttentionConfig(recipe, **options))


@dataclass
class Run:
    """One lane's way through its answer."""

    answer: Answer

    logits: torch.Tensor
    """Those that every token was chosen from, (tokens, vocabulary)."""

    behind: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    """Keys and values behind the context, (1, kv_heads, n, dim), of each layer; only of a run alone."""


def run_alone(cache: Any, lane: Lane) -> Run:
    """Answer by `ModelAdapterHF.answer`."""
    seen: list[torch.Tensor] = []
    behind: list[tuple[torch.Tensor, torch.Tensor]] = []

    def look(_: Any, __: Any, output: Any) -> None:
        seen.append(output.logits[0, -1].clone())
        layers = cache.past_key_values.layers
        behind[:] = [(x.keys[:, :, cache.length :].clone(), x.values[:, :, cache.length :].clone()) for x in layers]

    hook = lane.adapter.model.register_forward_hook(look)
    try:
        answer = lane.adapter.answer(cache, lane.question, max_new_tokens=lane.max_new_tokens)
    finally:
        hook.remove()
    # Calibration, where a recipe asks for it, comes before.
    return Run(answer, torch.stack(seen[-len(answer.token_ids) :]), behind)


def run_together(cache: Any, lanes: Sequence[Lane], alone: Sequence[Run], *, same_state: bool = False) -> list[Run]:
    """Answer all lanes in one batch, each of which goes on with given tokens, whatever its logits say.

    Args:
        cache: The context.
        lanes: The lanes; those of one adapter stand together.
        alone: Runs with the tokens that the lanes go on with.
        same_state: Whether each token finds the keys and values behind the context that it found alone, so that what
            differs in one step does not go on into the next ones. Layers with a window keep what they have.

    Returns:
        What the batch gave.
    """
    prepared = [
        PreparedLane(
            number, lane.adapter, lane.adapter.prompts.question_ids(cache.prompt, lane.question), lane.max_new_tokens
        )
        for number, lane in enumerate(lanes)
    ]
    batch = LaneBatch(lanes[0].adapter, cache, prepared)
    seen: list[list[torch.Tensor]] = [[] for _ in lanes]
    run = batch._model.run

    def force(phase: str, chosen: Sequence[int], tokens: Any, starts: Sequence[int], **more: Any) -> Any:
        if same_state:
            for lane, start in zip(chosen, starts, strict=True):
                _give_state(batch, lane, alone[lane], start)
        output = run(phase, chosen, tokens, starts, **more)
        for lane, row in zip(chosen, output.logits, strict=True):
            seen[lane].append(row.clone())
        given = [alone[lane].answer.token_ids[len(seen[lane]) - 1] for lane in chosen]
        logits = torch.zeros_like(output.logits).scatter_(1, torch.tensor(given).view(-1, 1), 1.0)
        return replace(output, logits=logits)

    batch._model.run = force  # type: ignore[method-assign]
    answers: dict[int, Any] = {}
    while not batch.is_done:
        answers.update(batch.step())
    return [Run(answers[lane], torch.stack(seen[lane])) for lane in range(len(lanes))]


def _give_state(batch: LaneBatch, lane: int, alone: Run, count: int) -> None:
    """Give a lane the first keys and values of its run alone, and drop what was derived of its own."""
    for number, layer in enumerate(batch._model._cache.lane_layers):
        for own, states in zip(layer.own, alone.behind[number], strict=True):
            if not layer.is_sliding:
                own[lane, :, :count] = states[0, :, :count]
        for each in batch._prepared.settings:
            if each.states is not None:
                for meta_data in (each.states.together, *each.states.alone):
                    meta_data.pop(number, None)


@dataclass
class Agreement:
    """What a comparison found."""

    steps: int = 0
    ties: list[str] = field(default_factory=list)
    """What was shown of every step that differs."""


def assert_agree(
    cache: Any, lanes: Sequence[Lane], alone: Sequence[Run] | None = None, *, same_state: bool = False
) -> Agreement:
    """Compare lanes alone with the same lanes in one batch, step by step.

    Args:
        cache: The context.
        lanes: The lanes; those of one adapter stand together.
        alone: Their runs alone, where they are known.
        same_state: See `run_together`. If not, all steps behind a tie may differ.

    Returns:
        The steps, and the exceptions among them.

    Raises:
        AssertionError: If a step differs and its lane had no tie before, or a lane's record of itself differs.
    """
    if alone is None:
        alone = [run_alone(cache, lane) for lane in lanes]
    found = Agreement()
    together = run_together(cache, lanes, alone, same_state=same_state)
    for number, (one, other) in enumerate(zip(alone, together, strict=True)):
        assert one.logits.shape == other.logits.shape
        apart = (one.logits - other.logits).abs().amax(-1)
        found.steps += len(apart)
        exceptions = [step for step, difference in enumerate(apart.tolist()) if not difference <= TOLERANCE]
        for step in exceptions if same_state else exceptions[:1]:
            tie = explain(cache, lanes, number, alone, step, same_state=same_state)
            found.ties += [f"lane {number}, step {x}: {tie}" for x in ([step] if same_state else exceptions)]
        assert_same_record(one.answer, other.answer, exact=not exceptions)
    return found


def assert_same_record(alone: Answer, together: Answer, exact: bool = True) -> None:
    """Compare what two answers tell of themselves beside the times; densities only if no tie came in between."""
    for name in (
        "text", "token_ids", "stop_reason", "num_question_tokens", "kv_len", "attention_calls", "sparse_layers",
        "calls_by_layer", "output_error",
    ):  # fmt: skip
        assert getattr(together, name) == getattr(alone, name), name
    assert (together.state_seconds is None) == (alone.state_seconds is None)
    densities = [{"all": answer.density, **answer.density_by_phase} for answer in (alone, together)]
    assert densities[0].keys() == densities[1].keys()
    for name, density in densities[0].items():
        other = densities[1][name]
        assert (density is None) == (other is None), name
        if density is not None and other is not None:
            # A tie that stays below the tolerance of logits may still move a sample by a key.
            assert abs(density - other) <= (1e-3 if exact else 0.05), f"density ({name}) {other}, alone {density}"


@dataclass(frozen=True)
class _Choice:
    """What one masker left one query with."""

    kept: torch.Tensor
    """Inclusion probabilities, (heads, keys that the query may read)."""

    inputs: Inputs
    """The query alone with those keys."""

    before: torch.Tensor
    """Inclusion probabilities that the masker was given."""

    softcap: float | None


Choices = dict[tuple[int, int, int], _Choice]
"""By the query's position, the layer and the masker's place in the recipe, which is the order in which they come."""


@contextmanager
def recorded_choices(adapter: ModelAdapterHF, identity: str) -> Iterator[Choices]:
    """Record what every masker of an adapter keeps for the queries of one lane."""
    attention: Any = adapter.sparse_attention
    efficient = getattr(attention, "efficient", attention)
    form = "add_indices" if efficient.chooses_indices else "add_mask"
    choices: Choices = {}
    with ExitStack() as restored:
        for place, masker in enumerate(efficient.maskers):
            restored.callback(vars(masker).update, {k: v for k, v in vars(masker).items() if k == form})
            restored.callback(vars(masker).pop, form)
            setattr(masker, form, _recorder(getattr(masker, form), place, identity, choices))
        yield choices


def _recorder(add: Any, place: int, identity: str, choices: Choices) -> Any:
    def look(*given: Any, **more: Any) -> Mask:
        queries, keys, values, allowed, scaling, _, meta, before = given
        mask: Mask = add(*given, **more)
        heads, q_len = queries.shape[1:3]
        inclusion = [(m.to_dense() * allowed).expand(len(queries), heads, q_len, -1) for m in (mask, before)]
        for row, lane in enumerate(meta[LANES_KEY]):
            for query in range(q_len if lane == identity else 0):
                if isinstance(keys, SharedStates):
                    count = int(keys.lengths[row])
                    states = [part.of_lane(int(keys.lanes[row]), count) for part in (keys, values)]
                else:
                    count = keys.shape[2] - q_len + query + 1
                    states = [part[row : row + 1, :, :count].clone() for part in (keys, values)]
                one = queries[row : row + 1, :, query : query + 1].clone()
                inputs = Inputs(one, *states, torch.ones(1, 1, 1, count, dtype=torch.bool), scaling)
                kept, earlier = (part[row, :, query, :count].clone() for part in inclusion)
                choices[count - 1, more["layer_idx"], place] = _Choice(kept, inputs, earlier, more.get("softcap"))
        return mask

    return look


def explain(
    cache: Any, lanes: Sequence[Lane], number: int, alone: Sequence[Run], step: int, *, same_state: bool
) -> str:
    """Find the first query of a lane that keeps other keys in company than alone, and check that it had a tie.

    Args:
        cache: The context.
        lanes: The lanes.
        number: The lane.
        alone: The lanes' runs alone.
        step: The step whose logits differ; later queries say nothing on it, and with the same state earlier ones
            neither.
        same_state: See `run_together`.

    Returns:
        Where it was.

    Raises:
        AssertionError: If the keys do not tie, or the kept keys never differ.
    """
    lane = lanes[number]
    assert lane.adapter.sparse_attention is not None, "a dense lane differs"
    ids = lane.adapter.prompts.question_ids(cache.prompt, lane.question)
    (identity,) = lane.adapter.new_meta_data(cache, ids)[LANES_KEY]
    with recorded_choices(lane.adapter, identity) as expected:
        run_alone(cache, lane)
    with recorded_choices(lane.adapter, identity) as together:
        run_together(cache, lanes, alone, same_state=same_state)
    assert expected.keys() == together.keys()
    last = cache.length + len(ids) + step - 1
    first = last if same_state and step else cache.length
    attention: Any = lane.adapter.sparse_attention
    maskers = getattr(attention, "efficient", attention).maskers
    for place in sorted(expected):
        one, other = expected[place], together[place]
        if not first <= place[0] <= last or torch.equal(one.kept, other.kept):
            continue
        position, layer_idx, number_of_masker = place
        masker = maskers[number_of_masker]
        where = f"position {position}, layer {layer_idx}, {masker.key}"
        if isinstance(masker, AdaptiveSamplingMasker):
            assert isinstance(masker.config, AdaptiveSamplingMaskerConfig)
            shape = (1, *one.kept.shape[:1], 1, one.kept.shape[1])
            assert_promise_is_tied(
                masker, (*one.inputs.tensors(), one.inputs.scaling, 0.0), {LANES_KEY: [identity]},
                Mask.from_dense(shape, one.before[None, :, None]), other.kept[None, :, None], 0, layer_idx,
                {"softcap": one.softcap},
            )  # fmt: skip
        else:
            scores = true_scores(masker, one.inputs, layer_idx, one.softcap)[0, :, 0]
            assert_tied(masker, one.kept > 0, other.kept > 0, scores)
        return where
    raise AssertionError(f"lane {number} keeps the same keys alone and in company, and its logits differ")
