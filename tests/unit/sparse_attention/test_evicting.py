"""Methods that evict against their definitions written out token by token, and what they see of dense tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sah.errors import ConfigError, StateError
from sah.sparse_attention import (
    H2OMaskerConfig,
    LocalMaskerConfig,
    SinkMaskerConfig,
    SnapKVMaskerConfig,
    StreamingLLMMaskerConfig,
    TopKMaskerConfig,
    TOVAMaskerConfig,
)
from sah.sparse_attention.key_state import CONTEXT_LENGTH_KEY, CONTEXT_STATE_KEY
from sah.sparse_attention.observe import attention_mass, observation_key, observe_context
from tests.support.attention import (
    F32,
    Inputs,
    Shape,
    assert_near,
    causal,
    efficient,
    inclusion_of,
    make_inputs,
    research,
)

KV_HEADS, GROUP, CONTEXT, STEPS, DIM = 2, 3, 40, 25, 16
EXECUTIONS = [research, efficient]


class Text:
    """Keys of a context and of tokens behind it, with the queries of all."""

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        length = CONTEXT + STEPS
        self.queries = torch.randn(1, KV_HEADS * GROUP, length, DIM, generator=generator) * 2
        self.keys = torch.randn(1, KV_HEADS, length, DIM, generator=generator)
        self.scaling = DIM**-0.5

    def state(self, *observed: int | None) -> dict[Any, Any]:
        """What was seen of the context's prefill."""
        state: dict[Any, Any] = {}
        seen = (self.queries[:, :, :CONTEXT], self.keys[:, :, :CONTEXT])
        observe_context(state, observed, 0, *seen, self.scaling, {})
        return {CONTEXT_STATE_KEY: state, CONTEXT_LENGTH_KEY: CONTEXT}

    def call(self, start: int, stop: int) -> Inputs:
        """The tokens start to stop - 1 behind the context as one call."""
        keys = self.keys[:, :, : CONTEXT + stop]
        queries = self.queries[:, :, CONTEXT + start : CONTEXT + stop]
        return Inputs(queries, keys, keys, causal(stop - start, CONTEXT + stop), self.scaling)

    def weights(self, position: int, head: int, held: list[int]) -> torch.Tensor:
        """Attention of one query over the keys that are held."""
        keys = self.keys[0, head // GROUP, held].double()
        return torch.softmax(keys @ self.queries[0, head, position].double() * self.scaling, -1)


def kept_sets(
    make: Any, recipe: list[Any], text: Text, meta: dict[Any, Any], question: int = 0
) -> list[list[set[int]]]:
    """Keys that each KV head keeps at every token behind the context; the first `question` tokens come in one call."""
    attention = make(recipe)
    spans = [(0, question)] if question else []
    spans += [(step, step + 1) for step in range(question, STEPS)]
    found = []
    for start, stop in spans:
        inclusion = inclusion_of(attention, text.call(start, stop), meta)[0]
        for row in range(stop - start):
            by_head = [set(inclusion[head, row].nonzero().flatten().tolist()) for head in range(KV_HEADS * GROUP)]
            assert all(by_head[h] == by_head[h // GROUP * GROUP] for h in range(len(by_head)))
            found.append(by_head[::GROUP])
    return found


def budget(density: float, length: int) -> int:
    return max(1, round(density * length))


def h2o(text: Text, density: float, recent: int | None) -> list[list[set[int]]]:
    """Heavy hitters by the sums of all queries so far, one token after the other."""
    found: list[list[set[int]]] = [[] for _ in range(STEPS)]
    for kv_head in range(KV_HEADS):
        heads = range(kv_head * GROUP, (kv_head + 1) * GROUP)
        sums = torch.zeros(CONTEXT + STEPS, dtype=torch.double)
        for position in range(CONTEXT):
            held = list(range(position + 1))
            sums[held] += sum(text.weights(position, head, held) for head in heads) / GROUP
        held = list(range(CONTEXT))
        for step in range(STEPS):
            own = CONTEXT + step
            held.append(own)
            size = budget(density, own + 1)
            last = min(size, size - size // 2 if recent is None else max(1, recent))
            spared = [key for key in held if key > own - last]
            others = sorted((key for key in held if key <= own - last), key=lambda key: -float(sums[key]))
            held = sorted(spared + others[: size - len(spared)])
            sums[held] += sum(text.weights(own, head, held) for head in heads) / GROUP
            found[step].append(set(held))
    return found


def tova(text: Text, density: float) -> list[list[set[int]]]:
    """One set for the layer, by the attention of the latest query over what is left."""
    heads = range(KV_HEADS * GROUP)
    held = list(range(CONTEXT))
    found: list[list[set[int]]] = []
    for step in range(STEPS):
        own = CONTEXT + step
        looking = CONTEXT - 1 if step == 0 else own
        looked_at = held if step == 0 else [*held, own]
        mean = sum(text.weights(looking, head, looked_at) for head in heads) / len(heads)
        ranked = sorted(range(len(held)), key=lambda place: -float(mean[place]))
        held = sorted([held[place] for place in ranked[: budget(density, own + 1) - 1]] + [own])
        found.append([set(held)] * KV_HEADS)
    return found


def snapkv(text: Text, density: float, window: int, kernel: int) -> list[list[set[int]]]:
    """Pooled attention of the context's last queries; what comes later takes the places of the weakest."""
    found: list[list[set[int]]] = [[] for _ in range(STEPS)]
    before = CONTEXT - window
    for kv_head in range(KV_HEADS):
        mean = torch.zeros(before, dtype=torch.double)
        for position in range(before, CONTEXT):
            for head in range(kv_head * GROUP, (kv_head + 1) * GROUP):
                mean += text.weights(position, head, list(range(position + 1)))[:before]
        half = kernel // 2
        pooled = [float(mean[max(0, i - half) : i + half + 1].sum()) for i in range(before)]
        ranked = sorted(range(before), key=lambda key: -pooled[key])
        for step in range(STEPS):
            own, size = CONTEXT + step, budget(density, CONTEXT + step + 1)
            last = list(range(before, own + 1))[-size:]
            found[step].append({*last, *ranked[: size - len(last)]})
    return found


@pytest.mark.parametrize("make", EXECUTIONS)
@pytest.mark.parametrize("question", [0, 9])
@pytest.mark.parametrize("recent", [None, 0, 3, 100])
def test_h2o_is_its_definition(make: Any, question: int, recent: int | None) -> None:
    text = Text()
    found = kept_sets(make, [H2OMaskerConfig(density=0.3, recent=recent)], text, text.state(None), question)
    assert found == h2o(text, 0.3, recent)


@pytest.mark.parametrize("make", EXECUTIONS)
@pytest.mark.parametrize("question", [0, 9])
def test_tova_is_its_definition(make: Any, question: int) -> None:
    text = Text(1)
    found = kept_sets(make, [TOVAMaskerConfig(density=0.2)], text, text.state(1), question)
    assert found == tova(text, 0.2)


@pytest.mark.parametrize("make", EXECUTIONS)
@pytest.mark.parametrize(("density", "window"), [(0.7, 6), (0.2, 6), (0.7, 1)])
def test_snapkv_is_its_definition(make: Any, density: float, window: int) -> None:
    text = Text(2)
    recipe = [SnapKVMaskerConfig(density=density, window=window, kernel=3)]
    assert kept_sets(make, recipe, text, text.state(window), 5) == snapkv(text, density, window, 3)


@pytest.mark.parametrize("make", EXECUTIONS)
@pytest.mark.parametrize("aware", [False, True])
@pytest.mark.parametrize("config", [H2OMaskerConfig, SnapKVMaskerConfig, TOVAMaskerConfig])
def test_what_was_evicted_never_comes_back(config: Any, aware: bool, make: Any) -> None:
    """Also behind maskers that keep keys for a while: those may come back as long as those maskers kept them."""
    text = Text(3)
    window = {"window": 8} if config is SnapKVMaskerConfig else {}
    recipe = [
        SinkMaskerConfig(sink_size=2),
        LocalMaskerConfig(window_size=5),
        config(density=0.4, query_aware=aware, **window),
    ]
    found = kept_sets(make, recipe, text, text.state(None, 1, 8), question=6)
    for kv_head in range(KV_HEADS):
        for step, before in enumerate(found[:-1]):
            own = CONTEXT + step + 1
            after = found[step + 1][kv_head]
            assert after <= before[kv_head] | {own}
            assert len(after) == budget(0.4, own + 1)


@pytest.mark.parametrize("make", EXECUTIONS)
def test_the_question_decides_where_it_is_asked_to(make: Any) -> None:
    """A key that the question's queries attend to stays, though nothing in the context does."""
    text = Text(4)
    wanted = 17
    text.queries[:, :, CONTEXT : CONTEXT + 6] = text.keys[:, :, wanted : wanted + 1].repeat_interleave(GROUP, 1) * 4
    text.queries[:, :, CONTEXT - 8 : CONTEXT] = -text.keys[:, :, wanted : wanted + 1].repeat_interleave(GROUP, 1)
    for config in (SnapKVMaskerConfig, TOVAMaskerConfig):
        window = {"window": 8, "kernel": 1} if config is SnapKVMaskerConfig else {}
        kept = {
            aware: kept_sets(make, [config(density=0.3, query_aware=aware, **window)], text, text.state(1, 8), 6)[0]
            for aware in (False, True)
        }
        assert all(wanted in of_head for of_head in kept[True])
        assert not any(wanted in of_head for of_head in kept[False])


def test_state_is_of_one_question_and_one_layer() -> None:
    text, other = Text(5), Text(6)
    attention = efficient([H2OMaskerConfig(density=0.2)])
    state = text.state(None)[CONTEXT_STATE_KEY]
    given = {name: mass.clone() for name, mass in state.items()}
    alone = [inclusion_of(attention, text.call(0, 6), {CONTEXT_STATE_KEY: dict(state)}) for _ in range(2)]
    assert torch.equal(*alone)
    state[observation_key(None, 1)] = attention_mass(other.queries, other.keys, 1.0)[:, :CONTEXT]
    meta = {CONTEXT_STATE_KEY: state}
    first = inclusion_of(attention, text.call(0, 6), meta)
    second = inclusion_of(attention, text.call(0, 6), meta, layer_idx=1)
    assert torch.equal(first, alone[0])
    assert not torch.equal(second, first)
    assert all(torch.equal(state[name], mass) for name, mass in given.items())


@pytest.mark.parametrize("make", EXECUTIONS)
def test_a_sequence_that_was_cut_back_begins_anew(make: Any) -> None:
    text = Text(7)
    attention, meta = make([TOVAMaskerConfig(density=0.2)]), text.state(1)
    first = inclusion_of(attention, text.call(0, 9), meta)
    assert torch.equal(inclusion_of(attention, text.call(0, 9), meta), first)


@pytest.mark.parametrize("config", [H2OMaskerConfig, SnapKVMaskerConfig, TOVAMaskerConfig])
@pytest.mark.parametrize("order", [(0, 1), (1, 0), (1, 0, 1)])
def test_the_execution_may_change_within_a_question(order: tuple[int, ...], config: Any) -> None:
    """As `execution=auto` does where gradients or weights are asked for: what is held goes on."""
    text = Text(11)
    recipe = [SinkMaskerConfig(sink_size=1), config(density=0.4)]
    expected = kept_sets(research, recipe, text, text.state(None, 1, 32))
    attentions, meta, found = [make(recipe) for make in EXECUTIONS], text.state(None, 1, 32), []
    for step in range(STEPS):
        attention = attentions[order[min(step // 4, len(order) - 1)]]
        inclusion = inclusion_of(attention, text.call(step, step + 1), meta)[0, ::GROUP, 0]
        found.append([set(row.nonzero().flatten().tolist()) for row in inclusion])
    assert found == expected


def test_what_a_cache_must_hold_follows_from_the_sizes() -> None:
    """Sinks that are a share of the sequence take up keys that were not kept before."""
    assert SinkMaskerConfig(sink_size=4).evicts and StreamingLLMMaskerConfig(density=0.1).evicts
    assert not SinkMaskerConfig(sink_size=0.1).evicts
    assert not StreamingLLMMaskerConfig(sink_size=0.1, density=0.3).evicts
    assert LocalMaskerConfig(window_size=0.5).evicts and H2OMaskerConfig().evicts
    assert not TopKMaskerConfig().evicts


def test_a_budget_that_window_and_question_fill_is_told(caplog: pytest.LogCaptureFixture) -> None:
    text = Text(12)
    kept_sets(efficient, [SnapKVMaskerConfig(density=0.3, window=32)], text, text.state(32))
    assert "no key is kept for its score" in caplog.text
    caplog.clear()
    kept_sets(efficient, [SnapKVMaskerConfig(density=0.8, window=4)], text, text.state(4))
    assert not caplog.text


@pytest.mark.parametrize("config", [H2OMaskerConfig, SnapKVMaskerConfig, TOVAMaskerConfig])
def test_a_context_that_nobody_saw_is_refused(config: Any) -> None:
    inputs = make_inputs(Shape(1, 1, False, F32, 20), batch=1)
    for make in EXECUTIONS:
        with pytest.raises(StateError, match=f"{config.name} .*adapter.prefill"):
            make([config(density=0.2)]).custom_attention(None, *inputs.tensors(), 1.0, 0.0, {}, layer_idx=0)


@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("config", [H2OMaskerConfig, SnapKVMaskerConfig, TOVAMaskerConfig])
def test_outputs_agree_step_by_step(config: Any, kv_heads: int) -> None:
    """What is held together is what the cache has, also where one KV head serves all queries."""
    text = Text(10)
    keys = text.keys[:, :kv_heads]
    state: dict[Any, Any] = {}
    seen = (text.queries[:, :, :CONTEXT], keys[:, :, :CONTEXT])
    observe_context(state, [None, 1, 32], 0, *seen, text.scaling, {})
    metas: list[dict[Any, Any]] = [{CONTEXT_STATE_KEY: state, CONTEXT_LENGTH_KEY: CONTEXT} for _ in EXECUTIONS]
    attentions = [make([config(density=0.4)]) for make in EXECUTIONS]
    for stop in range(CONTEXT + 1, CONTEXT + STEPS):
        queries, mine = text.queries[:, :, stop - 1 : stop], keys[:, :, :stop]
        outputs = [
            attention.custom_attention(None, queries, mine, mine, None, text.scaling, 0.0, meta, layer_idx=0)[0]
            for attention, meta in zip(attentions, metas, strict=True)
        ]
        assert_near(outputs[1], outputs[0])


def test_a_text_without_a_context_needs_nothing() -> None:
    """A whole prompt in one call is evicted as it is read."""
    inputs = make_inputs(Shape(2, 30, False, F32, 30), batch=1)
    for config in (H2OMaskerConfig(density=0.3), TOVAMaskerConfig(budget=4)):
        masks = [inclusion_of(make([config]), inputs) for make in EXECUTIONS]
        assert torch.equal(*masks)
        assert (masks[0].sum(-1) <= torch.arange(1, 31)).all()


@pytest.mark.parametrize("last", [None, 1, 7, 500])
def test_attention_mass_is_the_sum_of_softmaxes(last: int | None) -> None:
    text = Text(8)
    sinks = torch.randn(KV_HEADS * GROUP)
    plain = attention_mass(text.queries[:, :, -20:], text.keys, text.scaling, last)
    other = attention_mass(text.queries[:, :, -20:], text.keys, text.scaling, last, sinks=sinks, softcap=2.0)
    expected = torch.zeros(2, KV_HEADS, CONTEXT + STEPS, dtype=torch.double)
    first = CONTEXT + STEPS - min(20, last or 20)
    for position in range(first, CONTEXT + STEPS):
        for head in range(KV_HEADS * GROUP):
            held = list(range(position + 1))
            expected[0, head // GROUP, held] += text.weights(position, head, held) / GROUP
            logits = (
                text.keys[0, head // GROUP, held].double() @ text.queries[0, head, position].double() * text.scaling
            )
            capped = torch.cat([2 * torch.tanh(logits / 2), sinks[head : head + 1].double()])
            expected[1, head // GROUP, held] += torch.softmax(capped, -1)[:-1] / GROUP
    torch.testing.assert_close(plain.double(), expected[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(other.double(), expected[1], atol=1e-5, rtol=1e-4)


def test_sizes_of_their_own() -> None:
    text = Text(9)
    meta = text.state(None)
    assert {
        len(s) for sets in kept_sets(efficient, [H2OMaskerConfig(heavy_size=4)], text, dict(meta)) for s in sets
    } == {8}
    more = [H2OMaskerConfig(heavy_size=4, recent=1)]
    assert {len(s) for sets in kept_sets(efficient, more, text, text.state(None)) for s in sets} == {5}
    both = [TopKMaskerConfig(heavy_size=3, selection="group"), SnapKVMaskerConfig(budget=6, window=2)]
    sizes = [len(kept) for sets in kept_sets(efficient, both, text, text.state(2)) for kept in sets]
    # Where top-k takes keys that the other holds, there may be none left to make up for them.
    assert sizes[:KV_HEADS] == [9] * KV_HEADS
    assert max(sizes) == 9


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: SnapKVMaskerConfig(kernel=4), "masker.snapkv.kernel=4"),
        (lambda: SnapKVMaskerConfig(window=0), "masker.snapkv.window=0"),
        (lambda: H2OMaskerConfig(recent=-1), "masker.h2o.recent=-1"),
        (lambda: TOVAMaskerConfig(budget=4, density=0.1), "masker.tova.budget=4"),
        (lambda: TOVAMaskerConfig(query_aware="yes"), "masker.tova.query_aware='yes'"),  # type: ignore[arg-type]
    ],
)
def test_mistakes_are_named(make: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says.replace(".", r"\.")):
        make()
