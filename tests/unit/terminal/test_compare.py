"""`sah compare A B`: points and sweeps, paired by question."""

from __future__ import annotations

import json
import shutil

import pytest

from sah.metrics.compare import compare_scores, needed_alike


def words(text: str) -> str:
    """Make every run of blanks one blank."""
    return " ".join(text.split())


def test_two_points_by_name(sah, sweep):
    code, out, err = sah("compare", "topk 0.1", "random 0.1")
    assert (code, err) == (0, "")
    told = words(out)
    assert "recipe.0.masker topk random" in told
    assert "recipe.0.density" not in told
    expected = compare_scores([1.0] * 10 + [0.0] * 2, [0.0] * 12, list(range(12)))
    interval = f"-0.833 [{expected.low:+.3f}, {expected.high:+.3f}] {expected.p_value:.3g} 12 12 worse"
    assert f"string_match_all 0.833 0.000 {interval}" in told
    assert "Worse in B: 10, 10 of them from right to wrong" in out
    assert "Better in B: 0" in out
    assert "and 5 more: --examples 10" in out
    assert "KV bytes read a decoded token 100 100 +0" in told
    assert "density measured 0.1000 0.1000 +0.0000" in told


def test_back_from_wrong_to_right(sah, sweep):
    _, out, _ = sah("compare", "random 0.1", "random 0.2", "--in", sweep, "--examples", "1")
    assert "Better in B: 3, 3 of them from wrong to right" in out
    assert "05120000:0  task single, length 512, depth 0\n" in out
    assert "A          0.000  11\n      B          1.000  4116001\n" in out
    assert "and 2 more: --examples 3" in out
    assert "not enough data (about" in out


def test_by_id_and_by_folder(sah, work, sweep):
    ids = {
        json.loads((path / "point.json").read_text())["identity"]["recipe"][0]["masker"]: path
        for path in (work.root / "points").iterdir()
        if json.loads((path / "point.json").read_text())["label"] != "dense"
    }
    code, out, _ = sah("compare", ids["topk"].name[:8], ids["random"])
    assert code == 0
    assert f"A  topk 0.{out.split('topk 0.')[1][0]}  {ids['topk'].name}" in out


def test_dense_against_sparse(sah, sweep):
    code, out, _ = sah("compare", "dense", "random 0.1")
    assert code == 0
    assert "string_match_all 1.000 0.000 -1.000" in words(out)


def test_a_point_with_itself(sah, sweep):
    _, out, _ = sah("compare", "topk 0.2", "topk 0.2")
    assert "Configuration\n  nothing differs" in out
    assert "Worse in B: 0" in out


def test_two_sweeps(sah, work, sweep):
    dense = [1.0] * 12
    other = type(work)(work.root.parent / "later")
    ids = [other.sparse("topk", 0.1, [1.0] * 8 + [0.0] * 4, dense), other.sparse("quest", 0.1, dense, dense)]
    later = other.sweep("s", ids)
    code, out, _ = sah("compare", sweep, later)
    assert code == 0
    told = words(out)
    assert "topk 0.1 niah string_match_all 0.833 0.667 -0.167 [" in told
    assert "Configuration nothing differs" in told
    assert "Only in A: topk 0.2, random 0.1, random 0.2" in told
    assert "Only in B: quest 0.1" in told
    compared = json.loads(sah("compare", sweep, later, "--json")[1])
    assert compared["points"][0]["scores"]["string_match_all"]["difference"] == pytest.approx(-2 / 12)
    assert len(compared["only_a"]) == 3


def test_two_sweeps_are_corrected_for_their_number(sah, work, sweep):
    """Six lost of twelve are worse alone (p 0.031), and not among two and more."""
    dense = [1.0] * 12
    first, second = (type(work)(work.root.parent / name) for name in ("first", "second"))
    names = ("quest", "random", "topk")
    folders = []
    for side, lost in ((first, 0), (second, 6)):
        ids = [side.sparse(name, 0.1, [0.0] * lost + [1.0] * (12 - lost), dense) for name in names]
        folders.append(side.sweep("s", ids))
    alone = compare_scores(dense, [0.0] * 6 + [1.0] * 6, range(12))
    needed = needed_alike(alone.outcomes, alone.span, alone.margin, 1 - 0.05 / 3)
    assert alone.verdict == "worse" and needed is not None
    _, out, _ = sah("compare", *folders)
    told = words(out)
    assert told.count(f"{3 * (alone.p_value or 0):.3g} 12 12 not enough data (about {needed[1]} questions would") == 3
    assert "corrected for 3 comparisons by Holm's method; intervals are those of each alone." in told
    assert "Tied means that the interval lies within the margin of 0.05 around 0." in told
    found = json.loads(sah("compare", *folders, "--json")[1])["points"][0]["scores"]["string_match_all"]
    assert (found["verdict"], found["verdict_corrected"], found["compared"]) == ("worse", "not enough data", 3)
    assert found["questions_needed_corrected"] == needed[1]
    single = [
        side.sparse("topk", 0.1, [0.0] * lost + [1.0] * (12 - lost), dense) for side, lost in ((first, 0), (second, 6))
    ]
    pair = [side.root / "points" / name for side, name in zip((first, second), single, strict=True)]
    told = words(sah("compare", *pair)[1])
    assert "12 12 worse" in told and "Holm" not in told


def test_the_margin_is_that_of_the_runs(sah, work):
    dense = [1.0] * 40
    for label, margin in (("topk", 0.2), ("quest", 0.2), ("random", 0.05)):
        work.sparse(label, 0.1, dense, dense, margin=margin)
    told = words(sah("compare", "topk 0.1", "quest 0.1")[1])
    assert "40 40 tied" in told and "lies within the margin of 0.2 around 0." in told
    told = words(sah("compare", "topk 0.1", "random 0.1")[1])
    assert "40 40 not enough data" in told and "lies within the margin of 0.05 around 0." in told
    assert "A and B were run with different margins; the smaller one is taken: topk 0.1." in told


def test_no_difference_of_estimates_without_an_interval(sah, sweep):
    _, out, _ = sah("compare", "topk 0.1", "random 0.1")
    side = out[out.index("Side by side") : out.index("Paired on")]
    (score,) = (line for line in side.splitlines() if "score, each" in line)
    assert score.count("[") == 2 and "-0.833" not in score


def test_sweeps_that_share_nothing(sah, work, sweep):
    other = type(work)(work.root.parent / "later")
    one = [other.sparse(name, 0.5, [1.0, 0.0], [1.0, 1.0]) for name in ("topk", "quest")]
    code, out, _ = sah("compare", sweep, other.sweep("s", one))
    assert code == 1
    assert "No point of A has a partner in B" in out


def test_no_common_questions(sah, work, sweep):
    other = work.sparse("topk", 0.4, [1.0, 0.0], [1.0, 1.0], length=1024)
    code, out, _ = sah("compare", "topk 0.1", other)
    assert code == 1
    assert "They have no question in common (12 in A, 2 in B): their data sets differ in length (512 / 1024)" in out
    assert "density measured" in out, "figures stand side by side all the same"
    compared = json.loads(sah("compare", "topk 0.1", other, "--json")[1])
    assert compared["reason"].startswith("They have no question in common")


def test_no_common_metric(sah, work, sweep):
    other = work.sparse("topk", 0.4, [1.0] * 12, [1.0] * 12, metric="exact_match", model="tiny:qwen3")
    code, out, _ = sah("compare", "topk 0.1", other)
    assert code == 1
    assert "They have no metric in common: A has string_match_all, B has exact_match" in out


def test_a_name_that_fits_several(sah, work, sweep):
    work.sparse("topk", 0.1, [1.0, 0.0], [1.0, 1.0], length=1024)
    code, _, err = sah("compare", "topk 0.1", "random 0.1")
    assert code == 1
    assert "'topk 0.1' fits 2 points of outputs. Give one of these ids:" in err
    assert "tiny:llama, niah, dataset.length=1024" in err


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("nothing", "topk 0.1", "outputs has no point 'nothing'. Allowed: a name or an id of 'dense'"),
        ("topk 0.1", "outputs/nowhere", "outputs/nowhere is no folder. Give one that sah wrote to, or a point's id"),
        ("outputs/sweeps/2026-11-22/10-00-00", "topk 0.1", "holds several points and topk 0.1 one. Give two points"),
    ],
)
def test_wrong_sides(sah, sweep, a, b, expected):
    code, out, err = sah("compare", a, b)
    assert (code, out) == (1, "")
    assert expected in words(err)


def test_no_output_folder(sah, sweep, work):
    shutil.rmtree(work.root)
    code, _, err = sah("compare", "topk 0.1", "random 0.1")
    assert code == 1
    assert "'topk 0.1' is no folder, and there is no folder outputs to look for such a point" in words(err)


def test_a_sweep_in_which_all_failed(sah, work, sweep):
    failed = work.sweep("failed", [], failed=[("masker=topk", "No memory."), ("masker=quest", "No memory.")])
    code, _, err = sah("compare", failed, sweep)
    assert code == 1
    assert "has no finished point: 2 failed. sah show" in words(err)
