"""The figures of `benchmarks.attention` as text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from benchmarks.attention_arms import ARMS, KEPT_KEYS
from benchmarks.attention_cell import STREAMING, TEMPORARIES_KV_LEN, TIME_KV_LEN

MB = 1e6
BEST = "best dense"
Cell = dict[str, Any]


def cell_lines(cell: Cell) -> Iterator[str]:
    """Write one cell: a line on what holds for all arms, and one for each arm."""
    yield (
        f"{cell['dtype']}, kv_len {cell['kv_len']:,}: KV cache {cell['kv_bytes'] / MB:,.0f} MB, memory read at "
        f"{cell['bandwidth'] / 1e9:.1f} GB/s, best is {cell['best_dense']}; "
        f"the heaviest 5 % of keys hold {cell['heavy_mass']:.2f} of the softmax mass"
    )
    yield (
        f"{'':21}{'':>9}{'of these':>10}{'against':>16}{'':>9}{'MB read to':>18}{'of the':>11}"
        f"{'temporaries':>13}{'of the':>9}{'state':>9}{'built':>8}"
    )
    yield (
        f"{'':21}{'CPU ms':>9}{'selecting':>10}{'best dense':>16}{'density':>9}{'select':>9}{'attend':>9}"
        f"{'bandwidth':>11}{'MB':>13}{'KV cache':>9}{'MB':>9}{'in s':>8}"
    )
    for row in cell["dense"]:
        yield _row(row, cell, "", "1", "", "") + f"   relative error {row['error']:.1e}"
    for row in cell["sparse"]:
        selecting, density = f"{row['selection_ms']:.2f}", f"{row['density']:.4f}"
        state, built = "", ""
        if row["state_bytes"]:
            state, built = f"{row['state_bytes'] / MB:.1f}", f"{row['build_seconds']:.2f}"
        yield _row(row, cell, selecting, density, state, built).rstrip()


def _row(row: dict[str, Any], cell: Cell, selecting: str, density: str, state: str, built: str) -> str:
    read, temporaries = row["bytes_read"], row["temporaries"]
    return (
        f"{row['arm']:21}{row['ms']:9.2f}{selecting:>10}{against_dense(row['share_of_dense_time']):>16}{density:>9}"
        f"{read['selection'] / MB:9.1f}{read['attention'] / MB:9.1f}{row['share_of_bandwidth']:11.0%}"
        f"{temporaries / MB:13.1f}{temporaries / cell['kv_bytes']:9.2%}{state:>9}{built:>8}"
    )


def against_dense(share: float) -> str:
    """Say how a time compares with a dense one."""
    return f"{1 / share:.2f}x faster" if share < 1 else f"{share:.2f}x as long"


def target_lines(cells: list[Cell]) -> Iterator[str]:
    """Say for each target whether it is met and by how much; a missed one is followed by its profile."""
    found = [(cell, row, target) for cell in cells for row in cell["sparse"] for target in row["targets"]]
    lengths = {cell["kv_len"] for cell in cells}
    for length, what in ((TIME_KV_LEN, "time"), (TEMPORARIES_KV_LEN, "temporaries")):
        if length not in lengths:
            yield f"targets of {what}: not judged, they hold at kv_len {length:,}"
    titles = {
        "time": "targets of time",
        "evicting": f"targets of methods that evict, against {STREAMING}",
        "temporaries": "targets of temporaries, share of the KV cache",
    }
    for what, title in titles.items():
        chosen = [(cell, row, target) for cell, row, target in found if target["of"] == what]
        if chosen:
            yield f"{title}, kv_len {chosen[0][0]['kv_len']:,}"
        for cell, row, target in chosen:
            yield _target(cell, row, target)
            yield from _profile(row, target)


def _target(cell: Cell, row: dict[str, Any], target: dict[str, Any]) -> str:
    allowed, measured = target["allowed"], target["measured"]
    if target["of"] == "temporaries":
        wanted, found = f"below {allowed:.0%}", f"{measured:.2%}"
    else:
        wanted = f"at least {1 / allowed:g}x faster" if allowed < 1 else f"at most {allowed:g}x as long"
        found = against_dense(measured)
    verdict = "met" if target["met"] else "MISSED"
    margin = f"{abs(measured / allowed - 1):.0%} {'below' if target['met'] else 'above'} the limit"
    if target["of"] == "time":
        margin += f" (against {cell['best_stock']}: {against_dense(row['share_of_stock_time'])})"
    return f"{cell['dtype']:10}{row['arm']:23}{wanted:24}{found:16}{verdict}, {margin}"


def _profile(row: dict[str, Any], target: dict[str, Any]) -> Iterator[str]:
    operations = target.get("profile")
    if operations is None:
        return
    if target["of"] != "temporaries":
        selecting, attending = row["selection_ms"], row["ms"] - row["selection_ms"]
        yield f"    of {row['ms']:.2f} ms {selecting:.2f} select and {attending:.2f} attend; wall time by operation:"
    else:
        yield "    allocated, by operation:"
    for entry in operations:
        amount = f"{entry['ms']:9.2f} ms" if "ms" in entry else f"{entry['bytes'] / MB:9.1f} MB"
        yield f"    {amount} in {entry['calls']:4} calls  {entry['op']}"


def curve_lines(cells: list[Cell]) -> Iterator[str]:
    """Show how the time at a fixed number of kept keys grows with the length."""
    for dtype in dict.fromkeys(cell["dtype"] for cell in cells):
        mine = sorted((cell for cell in cells if cell["dtype"] == dtype), key=lambda cell: cell["kv_len"])
        times: dict[str, list[float]] = {BEST: [_time(cell, cell["best_dense"]) for cell in mine]}
        for row in mine[0]["sparse"]:
            if ARMS[row["arm"]].in_curve:
                times[row["arm"]] = [_time(cell, row["arm"]) for cell in mine]
        if len(times) == 1 or len(mine) == 1:
            continue
        lengths = [cell["kv_len"] for cell in mine]
        yield f"{dtype}: CPU ms at {KEPT_KEYS:,} kept keys"
        yield f"{'kv_len':22}" + "".join(f"{length:>10,}" for length in lengths) + "  from first to last"
        for name, values in times.items():
            growth = f"{values[-1] / values[0]:.1f}x over {lengths[-1] / lengths[0]:g}x the keys"
            points = [(math.log(n), math.log(ms)) for n, ms in zip(lengths, values, strict=True)]
            slopes = [(y - b) / (x - a) for (a, b), (x, y) in pairwise(points)]
            exponents = ", ".join(f"{slope:.2f}" for slope in slopes)
            figures = "".join(f"{value:10.2f}" for value in values)
            line = f"{name:22}{figures}  {growth}, exponents {exponents}"
            yield line if name == BEST else f"{line}: {'sublinear' if max(slopes) < 1 else 'NOT sublinear throughout'}"


def _time(cell: Cell, arm: str) -> float:
    return next(float(row["ms"]) for row in (*cell["dense"], *cell["sparse"]) if row["arm"] == arm)
