"""The figures of `benchmarks.sweep` as text."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.sweep_lanes import DENSE, QUESTIONS, SETTINGS, LaneRun, LaneTimes, Spent
from benchmarks.sweep_own import PARTS

MB = 1e6
CLOCKS = ("cpu", "wall")
Figures = dict[str, Any]


def lanes_figures(times: LaneTimes) -> Figures:
    """Bring what the rounds gave into medians, as JSON data."""
    return {
        "context_tokens": times.context_tokens,
        "question_tokens": times.question_tokens,
        "lanes": times.lanes,
        "equal": times.equal,
        "copied_equal": times.copied_equal,
        "splits": times.splits,
        "prefill": _both(times.prefill),
        "alone": _both(times.alone),
        "together": _runs(times.together),
        "dense_lanes": _runs(times.dense_lanes),
        "copied": _both(times.copied) if times.copied.cpu else None,
        "settings": {
            name: {**_runs(times.few[name]), "alone": _both(times.alone_of[name]), **_within(times.together, number)}
            for number, name in enumerate(SETTINGS)
        },
    }


def _both(spent: Spent) -> Figures:
    return {"cpu": spent.median, "wall": spent.median_wall, "rounds": list(spent.cpu)}


def _runs(runs: list[LaneRun]) -> Figures:
    lanes = range(len(runs[0].answers))
    selection, attention = (statistics.median(run.attention_of(lanes)[which] for run in runs) for which in (0, 1))
    return {
        "cpu": statistics.median(run.cpu for run in runs),
        "wall": statistics.median(run.wall for run in runs),
        "rounds": [run.cpu for run in runs],
        "question": {
            "cpu": statistics.median(run.calls.cpu[0] for run in runs),
            "wall": statistics.median(run.calls.wall[0] for run in runs),
        },
        "step": {
            "cpu": statistics.median(step for run in runs for step in run.calls.cpu[1:]),
            "wall": statistics.median(step for run in runs for step in run.calls.wall[1:]),
        },
        "calls": {clock: statistics.median(sum(getattr(run.calls, clock)) for run in runs) for clock in CLOCKS},
        "selection_wall": selection,
        "attention_wall": attention,
    }


def _within(together: list[LaneRun], number: int) -> Figures:
    """Return what a setting's attention took while all lanes ran."""
    count = len(QUESTIONS)
    lanes = range(number * count, (number + 1) * count)
    selection, attention = (statistics.median(run.attention_of(lanes)[which] for run in together) for which in (0, 1))
    return {"selection_wall_of_all": selection, "attention_wall_of_all": attention}


@dataclass(frozen=True)
class Target:
    """A limit, and what was measured."""

    what: str
    wanted: str
    measured: float
    limit: float
    unit: str = ""

    def line(self) -> str:
        """Say whether it is met and by how much."""
        met = self.measured <= self.limit
        margin = f"{abs(self.measured / self.limit - 1):.0%} {'below' if met else 'above'} the limit"
        found = f"{self.measured:.3g}{self.unit}"
        return f"{self.what:68}{self.wanted:16}{found:>10}  {'met' if met else 'MISSED'}, {margin}"


def report_lines(figures: Figures) -> Iterator[str]:
    """Write everything that was measured."""
    about = figures["about"]
    yield about["machine"]
    yield f"Python {about['python']}, {about['versions']}, one thread, float32"
    for part, when in figures["when"].items():
        before, after = when["load"]
        yield f"{part}: {when['date']} UTC, load of the machine {before:.1f} before, {after:.1f} after"
    yield f"{about['model']}, {about['new_tokens']} new tokens a lane"
    if about["fast"]:
        yield "the fast form: it shows that everything runs, its figures mean nothing"
    if "lanes" in figures:
        yield from _lanes(figures["lanes"], about)
    if "memory" in figures:
        yield from _memory(figures["memory"])
    if "own" in figures:
        yield from _own(figures["own"])
    if "plan" in figures:
        yield from _plan(figures["plan"])
    if "workers" in figures:
        yield from _workers(figures["workers"])
    yield ""
    yield f"{'targets (of time: CPU seconds)':68}{'':16}{'measured':>10}"
    yield from (target.line() for target in targets(figures))


def targets(figures: Figures) -> Iterator[Target]:
    """Compare with what was aimed at."""
    if "lanes" in figures:
        yield from _lane_targets(figures["lanes"])
    if "own" in figures:
        spent = figures["own"]["spent"]
        for number, clock in enumerate(("CPU", "wall")):
            yield Target(
                f"own time, share of the sweep, {clock}", "below 5 %", 100 * _own_share(spent, number), 5, " %"
            )
    if "plan" in figures:
        cpu, wall = figures["plan"]["seconds"]
        yield Target(f"composing and planning {figures['plan']['points']} points, CPU", "below 20 s", cpu, 20, " s")
        yield Target(f"composing and planning {figures['plan']['points']} points, wall", "below 20 s", wall, 20, " s")
    if "memory" in figures:
        lanes, dense = figures["memory"]["lanes"], figures["memory"][DENSE]
        named = f"peak memory, {lanes['lanes']} lanes / 1 dense lane"
        for key, what in (("after_prefill", "after the prefill"), ("whole", "the prefill included")):
            yield Target(f"{named}, {what}", "below 1.3x", lanes[key] / dense[key], 1.3, "x")


def _lane_targets(lanes: Figures) -> Iterator[Target]:
    count, few = lanes["lanes"], len(QUESTIONS)
    together, alone, prefill = (lanes[name]["cpu"] for name in ("together", "alone", "prefill"))
    floor = prefill + lanes["dense_lanes"]["cpu"]
    each_its_own = count * prefill + alone
    whole = prefill + together
    yield Target(f"after prefill: {count} lanes / one by one", "at most 1/3.5", together / alone, 1 / 3.5)
    yield Target(f"the whole / a prefill for each of {count}", "at most 1/15", whole / each_its_own, 1 / 15)
    yield Target("the whole / the floor", "at most 2x", whole / floor, 2, "x")
    if lanes["copied"] is not None:
        copied = prefill + lanes["copied"]["cpu"]
        yield Target("the whole / prefill + dense rows over copies", "at most 2x", whole / copied, 2, "x")
    dense = lanes["settings"][DENSE]["cpu"]
    mean = statistics.mean(setting["cpu"] for setting in lanes["settings"].values())
    for name, cost in ((DENSE, dense), ("mean of the settings", mean)):
        lane = f"{count} lanes / {few} lanes ({name})"
        yield Target(f"{lane}, prefills included", "at most 2.5x", whole / (prefill + cost), 2.5, "x")
        yield Target(f"{lane}, after prefill", "at most 2.5x", together / cost, 2.5, "x")


def _own_share(spent: Figures, clock: int) -> float:
    return float(_own_seconds(spent, clock) / spent["whole"][clock])


def _own_seconds(spent: Figures, clock: int) -> float:
    return float(spent["whole"][clock] - spent["load"][clock] - spent["calls"][clock])


def _seconds(name: str, figures: Figures, note: str = "") -> str:
    return f"{name:50}{figures['cpu']:9.2f}{figures['wall']:9.2f}  {note}".rstrip()


def _lanes(lanes: Figures, about: Figures) -> Iterator[str]:
    count = lanes["lanes"]
    questions = ", ".join(map(str, lanes["question_tokens"]))
    yield (
        f"context {about['tokens']:,} tokens of prose, {lanes['context_tokens']:,} with the chat template; "
        f"questions of {questions} tokens with its end"
    )
    yield f"medians of {about['rounds']} rounds, one by one of {about['alone_rounds']}"
    yield f"{lanes['equal']} of {count} answers have the same tokens together and one by one"
    yield ""
    yield f"{'':50}{'CPU s':>9}{'wall s':>9}"
    yield _seconds("prefill", lanes["prefill"])
    yield _seconds(f"{count} lanes together", lanes["together"])
    yield _seconds(f"{count} lanes one by one", lanes["alone"])
    yield _seconds(f"{count} dense lanes together", lanes["dense_lanes"])
    if lanes["copied"]:
        note = f"once; {lanes['copied_equal']} of {count} answers have the same tokens"
        yield _seconds(f"{count} dense rows, context copied, model's own SDPA", lanes["copied"], note)
    floor = {clock: lanes["prefill"][clock] + lanes["dense_lanes"][clock] for clock in CLOCKS}
    whole = {clock: lanes["prefill"][clock] + lanes["together"][clock] for clock in CLOCKS}
    own = {clock: count * lanes["prefill"][clock] + lanes["alone"][clock] for clock in CLOCKS}
    yield _seconds(f"the whole: prefill + {count} lanes together", whole)
    yield _seconds(f"the floor: prefill + {count} dense lanes together", floor)
    yield _seconds(f"{count} x (prefill + answer)", own, f"computed: {count} prefills + one by one")
    yield ""
    yield from _split(lanes)
    yield ""
    yield from _settings(lanes)


def _split(lanes: Figures) -> Iterator[str]:
    """Say where the time of all lanes goes."""
    yield f"{'where the wall time goes':33}{'linear':>9}{'between':>13}{'of it':>10}{'':11}{'rest of':>9}{'around':>9}"
    yield (
        f"{'(a run of its own)':26}{'s':>7}{'layers':>9}{'projections':>13}{'choosing':>10}{'attending':>11}"
        f"{'model':>9}{'model':>9}"
    )
    columns = {"linear": 9, "attention": 13, "choosing": 10, "attending": 11, "other": 9, "around": 9}
    for name, split in lanes["splits"].items():
        parts = "".join(f"{split[part] / split['whole']:{width}.0%}" for part, width in columns.items())
        yield f"{name:26}{split['whole']:7.2f}{parts}"


def _settings(lanes: Figures) -> Iterator[str]:
    """Write what each setting's four lanes take, by themselves and among all."""
    count = len(QUESTIONS)
    yield f"{f'{count} lanes of one setting':20}{'by themselves':^46}{'among all lanes':^22}{'one by one':>11}"
    yield (
        f"{'':20}{'CPU s':>8}{'question s':>11}{'ms a step':>10}{'choosing':>9}{'attending':>10}"
        f"{'choosing s':>11}{'attending s':>12}{'CPU s':>9}"
    )
    for name, one in lanes["settings"].items():
        yield (
            f"{name:20}{one['cpu']:8.2f}{one['question']['cpu']:11.2f}{1000 * one['step']['cpu']:10.0f}"
            f"{one['selection_wall'] / one['wall']:9.0%}{one['attention_wall'] / one['wall']:10.0%}"
            f"{one['selection_wall_of_all']:11.2f}{one['attention_wall_of_all']:12.2f}{one['alone']['cpu']:9.2f}"
        )
    together = lanes["together"]
    yield (
        f"{'all lanes':20}{together['cpu']:8.2f}{together['question']['cpu']:11.2f}"
        f"{1000 * together['step']['cpu']:10.0f}"
        f"{together['selection_wall'] / together['wall']:9.0%}{together['attention_wall'] / together['wall']:10.0%}"
        f"{together['selection_wall']:11.2f}{together['attention_wall']:12.2f}{lanes['alone']['cpu']:9.2f}"
    )


def _memory(memory: Figures) -> Iterator[str]:
    lanes, dense = memory["lanes"], memory[DENSE]
    yield ""
    yield (
        f"memory, context {lanes['context_tokens']:,} tokens (keys and values {dense['cache_bytes'] / MB:,.0f} MB), MB"
    )
    yield f"{'':20}{'peak of prefill':>16}{'resident after it':>19}{'peak of lanes':>15}{'peak of all':>13}"
    for name, arm in ((f"{lanes['lanes']} lanes", lanes), ("1 dense lane", dense)):
        cells = ((arm["to_prefill"], 16), (arm["before"], 19), (arm["after_prefill"], 15), (arm["whole"], 13))
        yield f"{name:20}" + "".join(f"{value / MB:{width},.0f}" for value, width in cells)


def _own(own: Figures) -> Iterator[str]:
    spent = own["spent"]
    yield ""
    named = f"a sweep through the launcher, {own['answers']} answers"
    yield f"{named:50}{'CPU s':>9}{'wall s':>9}"
    for key, name in (("whole", "the whole, without imports"), ("load", "the model's load"), ("calls", "its calls")):
        yield f"{name:50}{spent[key][0]:9.2f}{spent[key][1]:9.2f}"
    ours = [_own_seconds(spent, clock) for clock in (0, 1)]
    yield f"{'our own':50}{ours[0]:9.2f}{ours[1]:9.2f}"
    for name in PARTS:
        yield f"{f'  {name}':50}{spent[name][0]:9.2f}{spent[name][1]:9.2f}"
    rest = [ours[clock] - sum(spent[name][clock] for name in PARTS) for clock in (0, 1)]
    yield f"{'  the rest: Hydra, folders, tables':50}{rest[0]:9.2f}{rest[1]:9.2f}"


def _plan(plan: Figures) -> Iterator[str]:
    cpu, wall = plan["seconds"]
    yield ""
    named = f"python -m sah.plan, {plan['points']} points, with its start"
    yield f"{named:50}{cpu:9.2f}{wall:9.2f}"


def _workers(workers: Figures) -> Iterator[str]:
    yield ""
    said = "pass" if workers["passed"] else "FAIL"
    yield f"two Ray workers give the rows of one process: {said} ({workers['test']}: {workers['said']})"
