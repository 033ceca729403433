"""What `benchmarks.sweep` times in its own process: lanes together and one by one, and the dense floor."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache

from sah.adapters.context_cache import ContextCache
from sah.adapters.generation import Answer
from sah.adapters.huggingface import ModelAdapterHF
from sah.adapters.lane_support import lanes_supported
from sah.adapters.lanes import Lane, answer_lanes
from sah.sparse_attention import (
    AdaptiveSamplingMaskerConfig,
    AutoAttentionConfig,
    LocalMaskerConfig,
    MaskerConfig,
    QuestTopKMaskerConfig,
    RandomSamplingMaskerConfig,
    SinkMaskerConfig,
    StreamingLLMMaskerConfig,
    TopKMaskerConfig,
    TopPMaskerConfig,
)

DENSE = "dense"
SETTINGS: dict[str, list[MaskerConfig]] = {
    DENSE: [],
    "topk 0.02": [TopKMaskerConfig(density=0.02)],
    "topk 0.05": [TopKMaskerConfig(density=0.05)],
    "topk 0.1": [TopKMaskerConfig(density=0.1)],
    "quest 0.05": [QuestTopKMaskerConfig(density=0.05)],
    "quest 0.1": [QuestTopKMaskerConfig(density=0.1)],
    "streaming_llm 0.1": [StreamingLLMMaskerConfig(density=0.1)],
    "random 0.1": [RandomSamplingMaskerConfig(density=0.1)],
    "topp 0.9": [TopPMaskerConfig(top_p=0.9)],
    "adaptive": [
        SinkMaskerConfig(),
        LocalMaskerConfig(),
        TopKMaskerConfig(heavy_size=0.05),
        AdaptiveSamplingMaskerConfig(),
    ],
}
"""The ten settings. `adaptive` is the recipe of conf/masker/adaptive.yaml: sink 4, local 64, 5 % of the keys by top-k,
and samples with the defaults."""

QUESTIONS = [
    "\nWhat does the text say about classes?",
    "\nWhich statement raises an exception, and when is it used in the text?",
    "\nWhat is a module?",
    "\nName one operator that the text explains, and say in a few words what it does to its operands.",
]
NO_TOKEN = -1
"""Stands for the end token: no answer ends before it has all its tokens."""


@dataclass
class Spent:
    """CPU and wall seconds of repeated runs."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    @contextmanager
    def measure(self) -> Iterator[None]:
        """Add the time of the `with` block."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.cpu.append(time.process_time() - cpu)
        self.wall.append(time.perf_counter() - wall)

    @property
    def median(self) -> float:
        """Median CPU seconds."""
        return statistics.median(self.cpu)

    @property
    def median_wall(self) -> float:
        """Median wall seconds."""
        return statistics.median(self.wall)


@dataclass
class LaneRun:
    """One run of lanes together."""

    cpu: float
    wall: float
    calls: Spent
    """Of the model, the first being the question's."""

    answers: dict[int, Answer]

    def attention_of(self, lanes: range) -> tuple[float, float]:
        """Return wall seconds that choosing keys and attending took for some lanes."""
        mine = [self.answers[lane] for lane in lanes]
        return sum(a.selection_seconds or 0.0 for a in mine), sum(a.attention_seconds or 0.0 for a in mine)


class Sweep:
    """The lanes of all settings and questions over one context.

    Args:
        adapter: A dense adapter.
        context: The context.
        new_tokens: Tokens of every answer.
        budget_bytes: Memory for a batch, as `answer_lanes` takes it.

    Attributes:
        cache: The prefilled context.
        settings: Adapter of each setting, by name.
    """

    def __init__(self, adapter: ModelAdapterHF, context: str, new_tokens: int, budget_bytes: int) -> None:
        self.adapter = adapter
        self.context = context
        self.new_tokens = new_tokens
        self.budget_bytes = budget_bytes
        self.settings = {
            name: adapter.with_sparse_attention(AutoAttentionConfig(recipe)) if recipe else adapter
            for name, recipe in SETTINGS.items()
        }
        self.cache: ContextCache = adapter.prefill(context)
        if not lanes_supported(adapter, self.cache):
            raise SystemExit(f"Lanes of {adapter.model_name} are not decoded together: there is nothing to compare.")

    def lanes(self, settings: Sequence[str], new_tokens: int | None = None) -> list[Lane]:
        """List the lanes of some settings, four each."""
        count = new_tokens or self.new_tokens
        return [
            Lane(self.settings[name], question, max_new_tokens=count) for name in settings for question in QUESTIONS
        ]

    def together(self, settings: Sequence[str], new_tokens: int | None = None) -> LaneRun:
        """Decode lanes together; what settings derive from the context is part of it.

        Raises:
            SystemExit: If a lane has no answer, or they did not fit into one batch.
        """
        lanes = self.lanes(settings, new_tokens)
        self.cache.context_state.clear()
        spent = Spent()
        with model_calls(self.adapter) as calls, spent.measure():
            answers = dict(answer_lanes(self.adapter, self.cache, lanes, self.budget_bytes))
        found = {number: _answer(answer) for number, answer in answers.items()}
        if len(calls.cpu) != lanes[0].max_new_tokens:
            raise SystemExit(f"{len(lanes)} lanes took {len(calls.cpu)} model calls: they are not one batch.")
        return LaneRun(spent.cpu[0], spent.wall[0], calls, found)

    def alone(self, settings: Sequence[str], new_tokens: int | None = None) -> tuple[list[Answer], Spent]:
        """Answer the same lanes one by one, and give the time of each."""
        self.cache.context_state.clear()
        answers, spent = [], Spent()
        for lane in self.lanes(settings, new_tokens):
            with spent.measure():
                answers.append(lane.adapter.answer(self.cache, lane.question, max_new_tokens=lane.max_new_tokens))
        return answers, spent

    def split(self, settings: Sequence[str]) -> dict[str, float]:
        """Say where the wall time of lanes together goes, in seconds.

        Returns:
            `linear` (projections, MLPs, LM head), `attention` (between the projections of attention layers), of it
            `choosing` and `attending` as the lanes report them, `other` in the model, `around` its calls, the `whole`.
        """
        modules = list(self.adapter.model.named_modules())
        linear = [module for _, module in modules if isinstance(module, torch.nn.Linear)]
        layers = [module for name, module in modules if name.endswith("self_attn")]
        within = [part for layer in layers for part in layer.modules() if isinstance(part, torch.nn.Linear)]
        with calls_of(linear) as products, calls_of(layers) as attention, calls_of(within) as projections:
            run = self.together(settings)
        choosing, attending = run.attention_of(range(len(run.answers)))
        between = sum(attention.wall) - sum(projections.wall)
        return {
            "linear": sum(products.wall),
            "attention": between,
            "choosing": choosing,
            "attending": attending,
            "other": sum(run.calls.wall) - sum(products.wall) - between,
            "around": run.wall - sum(run.calls.wall),
            "whole": run.wall,
        }

    @torch.no_grad()
    def copied(self, copies: int) -> list[list[int]]:
        """Answer the questions, each `copies` times, with the model alone: padded rows over copies of the context.

        Attention is the model's own (transformers' SDPA).
        """
        prompt, model = self.cache.prompt, self.adapter.model
        questions = [self.adapter.prompts.question_ids(prompt, question) for question in QUESTIONS] * copies
        rows, width, length = len(questions), max(map(len, questions)), self.cache.length
        layers: list[Any] = self.cache.past_key_values.layers
        past = DynamicCache([(layer.keys[:, :, :length], layer.values[:, :, :length]) for layer in layers])
        past.batch_repeat_interleave(rows)
        # Padding stands between context and question; position ids say where tokens are, the mask what they may see.
        ids = torch.tensor([[0] * (width - len(own)) + own for own in questions])
        there = torch.tensor([[0] * (width - len(own)) + [1] * len(own) for own in questions])
        positions = length + (there.cumsum(-1) - 1).clamp(min=0)
        mask = torch.cat([torch.ones(rows, length, dtype=torch.long), there], dim=-1)
        answers: list[torch.Tensor] = []
        while True:
            logits = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=past,
                use_cache=True,
                logits_to_keep=1,
            ).logits
            ids = logits[:, -1:].argmax(-1)
            answers.append(ids)
            if len(answers) == self.new_tokens:
                return torch.cat(answers, dim=-1).tolist()
            positions = positions[:, -1:] + 1
            mask = torch.cat([mask, torch.ones(rows, 1, dtype=torch.long)], dim=-1)


def _answer(answer: Answer | Exception) -> Answer:
    if isinstance(answer, Exception):
        raise SystemExit(f"A lane has no answer: {type(answer).__name__}: {answer}")
    return answer


@contextmanager
def endless(adapter: ModelAdapterHF) -> Iterator[None]:
    """Take the end token from the model inside the `with` block: all arms decode the same number of tokens."""
    config = adapter.model.generation_config
    before = config.eos_token_id
    config.eos_token_id = NO_TOKEN
    try:
        yield
    finally:
        config.eos_token_id = before


@contextmanager
def model_calls(adapter: ModelAdapterHF) -> Iterator[Spent]:
    """Time every call of the model inside the `with` block; yields the times."""
    with calls_of([adapter.model]) as calls:
        yield calls


@contextmanager
def calls_of(modules: Sequence[torch.nn.Module]) -> Iterator[Spent]:
    """Time every call of some modules, none of which holds another, inside the `with` block; yields the times."""
    calls = Spent()
    begun: list[tuple[float, float]] = []

    def begin(*_: object) -> None:
        begun.append((time.perf_counter(), time.process_time()))

    def end(*_: object) -> None:
        wall, cpu = begun.pop()
        calls.wall.append(time.perf_counter() - wall)
        calls.cpu.append(time.process_time() - cpu)

    hooks = [module.register_forward_pre_hook(begin) for module in modules]
    hooks += [module.register_forward_hook(end) for module in modules]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


@dataclass
class LaneTimes:
    """What the rounds gave."""

    prefill: Spent = field(default_factory=Spent)
    together: list[LaneRun] = field(default_factory=list)
    dense_lanes: list[LaneRun] = field(default_factory=list)
    few: dict[str, list[LaneRun]] = field(default_factory=lambda: {name: [] for name in SETTINGS})
    """Four lanes of one setting."""

    alone: Spent = field(default_factory=Spent)
    """Of all lanes, a round each."""

    alone_of: dict[str, Spent] = field(default_factory=lambda: {name: Spent() for name in SETTINGS})
    splits: dict[str, dict[str, float]] = field(default_factory=dict)
    copied: Spent = field(default_factory=Spent)
    equal: int = 0
    """Lanes with the same tokens together and alone."""

    copied_equal: int = 0
    """Dense lanes with the same tokens over copies of the context."""

    lanes: int = 0
    context_tokens: int = 0
    question_tokens: list[int] = field(default_factory=list)


def measure_lanes(sweep: Sweep, rounds: int, alone_rounds: int, copied: bool, tell: Callable[[str], None]) -> LaneTimes:
    """Time all arms in turn.

    Args:
        sweep: The lanes.
        rounds: Times that each arm runs.
        alone_rounds: In how many of them, the first ones, the lanes run one by one as well.
        copied: Whether the dense lanes run once over copies of the context.
        tell: Takes a line on what is done.

    Returns:
        The times.
    """
    times = LaneTimes()
    names = list(SETTINGS)
    tell("warming up")
    sweep.together(names, 2)
    sweep.alone(names, 2)
    for number in range(rounds):
        tell(f"round {number + 1} of {rounds}")
        with times.prefill.measure():
            sweep.adapter.prefill(sweep.context)
        times.together.append(sweep.together(names))
        times.dense_lanes.append(sweep.together([DENSE] * len(names)))
        for name in names:
            times.few[name].append(sweep.together([name]))
        if number < alone_rounds:
            tell(f"round {number + 1} of {rounds}, one by one")
            _measure_alone(sweep, times)
    tell("where the time goes")
    times.splits = {
        "lanes of all settings": sweep.split(names),
        "as many dense lanes": sweep.split([DENSE] * len(names)),
    }
    if copied:
        tell("dense rows over copies of the context")
        with times.copied.measure():
            rows = sweep.copied(len(names))
        dense = [times.few[DENSE][0].answers[lane].token_ids for lane in range(len(QUESTIONS))] * len(names)
        times.copied_equal = sum(row == own for row, own in zip(rows, dense, strict=True))
    first = times.together[0].answers
    times.lanes = len(first)
    times.context_tokens = sweep.cache.length
    times.question_tokens = [first[lane].num_question_tokens for lane in range(len(QUESTIONS))]
    return times


def _measure_alone(sweep: Sweep, times: LaneTimes) -> None:
    answers, each = sweep.alone(list(SETTINGS))
    times.alone.cpu.append(sum(each.cpu))
    times.alone.wall.append(sum(each.wall))
    together = times.together[0].answers
    times.equal = sum(answer.token_ids == together[lane].token_ids for lane, answer in enumerate(answers))
    count = len(QUESTIONS)
    for number, name in enumerate(SETTINGS):
        mine = slice(number * count, (number + 1) * count)
        times.alone_of[name].cpu.append(sum(each.cpu[mine]))
        times.alone_of[name].wall.append(sum(each.wall[mine]))
