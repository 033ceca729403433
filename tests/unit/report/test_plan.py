"""The words and tables of a plan."""

from __future__ import annotations

import dataclasses
import io

import pytest
from rich.console import Console

from sah.report.plan import GroupSummary, PlanSummary, PointLine, duration, plan_lines, print_plan, size

GROUP = GroupSummary(
    model="llama",
    dataset="niah",
    points=4,
    complete=1,
    contexts=8,
    to_prefill=6,
    stored=0,
    busy_workers=2,
    tokens=12_345,
    rows_there=16,
    to_compute=24,
    seconds=600.0,
    new_bytes=2.1e6,
    context_bytes=0.0,
    basis="Guessed.",
)
LINES = [
    PointLine(0, "topk", 8, 8, "0123456789abcdef", "density=0.1"),
    PointLine(1, "topk", 0, 8, "fedcba9876543210", "density=0.2", "equal to job 0"),
    PointLine(2, "random", 0, 0, None, "model.name=[x]", "no such model"),
]
PLAN = PlanSummary(
    groups=[GROUP, dataclasses.replace(GROUP, model="other", seconds=60.0)],
    points=LINES,
    common="tracker=none",
    equal=1,
    unplanned=["no such model"],
    workers=2,
)


def printed(plan: PlanSummary, *, points: bool) -> list[list[str]]:
    out = io.StringIO()
    print_plan(plan, Console(file=out), points=points)
    return [line.split() for line in out.getvalue().splitlines() if line.strip()]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.0, "1 s"),
        (1.2, "1 s"),
        (119, "119 s"),
        (120, "2 min"),
        (5400, "90 min"),
        (7100, "120 min"),
        (9000, "2.5 h"),
        (260_000, "3 days"),
        (86_400 * 123, "120 days"),
    ],
)
def test_times_are_told_in_the_unit_that_fits(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


def test_sizes_are_told_in_the_unit_that_fits() -> None:
    sizes = {0: "0 KB", 54_321: "54 KB", 112_000: "110 KB", 2.14e6: "2.1 MB", 987e6: "990 MB", 3e9: "3 GB"}
    assert {number: size(number) for number in (*sizes, 3.44e9, 1.2e12)} == {
        **sizes,
        3.44e9: "3.4 GB",
        1.2e12: "1,200 GB",
    }


def test_a_plan_in_words() -> None:
    counted, estimate, refused = plan_lines(PLAN)
    assert counted == "3 points, 1 of them equal to another one and run once. Complete: 2 of 8."
    assert estimate == "Rough estimate: 5.5 min with 2 workers and 4.2 MB on disk. Guessed."
    assert refused == "Not planned, left to its job: no such model"


def test_workers_share_a_group_as_far_as_it_keeps_them_busy() -> None:
    groups = [dataclasses.replace(GROUP, busy_workers=busy) for busy in (1, 2, 4)]
    idle = dataclasses.replace(GROUP, to_compute=0, seconds=0.0, busy_workers=0)
    assert dataclasses.replace(PLAN, groups=[*groups, idle], workers=4).seconds == 600.0 + 300.0 + 150.0


def test_contexts_on_disk_are_told() -> None:
    group = dataclasses.replace(GROUP, stored=2, context_bytes=3.44e9)
    _, estimate, prefills, _ = plan_lines(dataclasses.replace(PLAN, groups=[group]))
    assert "2.1 MB on disk, 3.4 GB more in context_folder." in estimate
    assert prefills == "Prefills: 6; 2 contexts more are read from context_folder."


@pytest.mark.parametrize(("trials", "told"), [(None, False), (20, True), (3, False)])
def test_a_batch_of_a_search_is_no_plan_of_all(trials: int | None, told: bool) -> None:
    line = "One batch of a search: trials 0 to 2 of up to 20, counted from 0. Later batches are chosen from results"
    assert any(line in said for said in plan_lines(dataclasses.replace(PLAN, trials=trials))) == told


def test_a_plan_with_nothing_to_do_says_so() -> None:
    done = dataclasses.replace(GROUP, to_prefill=0, to_compute=0, seconds=0.0, basis="")
    plan = dataclasses.replace(PLAN, groups=[done], points=LINES[:1], equal=0, unplanned=[], trials=1)
    assert plan_lines(plan) == ["1 point. Complete: 1 of 4.", "Nothing is left to compute."]
    assert printed(plan, points=False)[-3][-1] == "-", "a time is not made up"


def test_the_tables_of_a_plan() -> None:
    lines = printed(PLAN, points=True)
    assert ["llama", "niah", "4", "1", "8", "6", "12,345", "16", "24", "10", "min"] in lines
    assert ["0", "topk", "8/8", "done", "0123456789abcdef", "density=0.1"] in lines
    assert ["2", "random", "-", "-", "model.name=[x]", "(no", "such", "model)"] in lines
    assert ["All", "points:", "tracker=none"] in lines
    assert not any("density=0.1" in line for line in printed(PLAN, points=False))
