from __future__ import annotations

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sah.errors import ConfigError, DataError
from sah.metrics.scorers import check_metrics, clean, metric_names, normalise, score, score_all, scorer

METRICS = ["exact_match", "string_match_all", "string_match_any", "token_f1"]


def test_the_metrics_that_exist() -> None:
    assert metric_names() == METRICS


@pytest.mark.parametrize("metric", METRICS)
@given(answer=st.text(min_size=1).filter(clean))
@example(answer="The")
@example(answer="?!")
@example(answer="a b\tc\nd")
@example(answer="Zürich, İstanbul; 東京 ½ ﬁ ß")
@example(answer="\x00x\x1f")
def test_a_right_answer_scores_full_marks(metric: str, answer: str) -> None:
    assert score(metric, answer, [answer]) == 1.0
    assert score(metric, f"  {answer}\n", [answer]) == 1.0
    assert score(metric, unicodedata.normalize("NFD", answer), [answer]) == 1.0


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("prediction", ["", " ", "\n\t\x00"])
@pytest.mark.parametrize("answer", ["7", "the", "?"])
def test_an_empty_prediction_scores_zero(metric: str, prediction: str, answer: str) -> None:
    assert score(metric, prediction, [answer]) == 0.0


@pytest.mark.parametrize("metric", METRICS)
@given(
    prediction=st.text(max_size=30),
    answers=st.lists(st.text(min_size=1, max_size=10).filter(clean), min_size=1),
)
def test_every_score_lies_between_0_and_1(metric: str, prediction: str, answers: list[str]) -> None:
    assert 0.0 <= score(metric, prediction, answers) <= 1.0


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("The numbers are 1234567 and 89.", ["1234567", "89"], (1.0, 1.0)),
        ("1234567", ["1234567", "89"], (0.5, 1.0)),
        ("PARIS, surely", ["Paris", "Rome", "Oslo"], (1 / 3, 1.0)),
        ("none of them", ["Paris", "Rome"], (0.0, 0.0)),
        ("123 4567", ["1234567"], (0.0, 0.0)),
    ],
)
def test_string_match_as_in_ruler(prediction: str, answers: list[str], expected: tuple[float, float]) -> None:
    assert score("string_match_all", prediction, answers) == pytest.approx(expected[0])
    assert score("string_match_any", prediction, answers) == expected[1]


@pytest.mark.parametrize(
    ("prediction", "answers", "exact", "f1"),
    [
        ("The Eiffel Tower!", ["eiffel tower"], 1.0, 1.0),
        ("an apple, a pear", ["apple pear"], 1.0, 1.0),
        ("the cat sat", ["the cat ran"], 0.0, 0.5),
        ("cat cat cat", ["cat"], 0.0, 0.5),
        ("wrong", ["right", "wrong answer", "wrong"], 1.0, 1.0),
        ("New York City", ["York", "New York"], 0.0, 0.8),
        ("red", ["blue"], 0.0, 0.0),
        ("!!!", ["the"], 0.0, 0.0),
        ("Café", ["cafe"], 0.0, 0.0),
    ],
)
def test_exact_match_and_f1_as_in_squad(prediction: str, answers: list[str], exact: float, f1: float) -> None:
    assert score("exact_match", prediction, answers) == exact
    assert score("token_f1", prediction, answers) == pytest.approx(f1)


def test_normalisation() -> None:
    assert normalise("  The U.S.A. is   an anthem-like A ") == "usa is anthemlike"


def test_an_unknown_metric_lists_those_that_exist() -> None:
    with pytest.raises(ConfigError) as caught:
        score("rouge", "x", ["x"])
    assert "rouge" in str(caught.value) and all(metric in str(caught.value) for metric in METRICS)
    check_metrics(METRICS)


@pytest.mark.parametrize("answers", [[], [""], ["x", " \n"]])
def test_missing_or_blank_answers_are_an_error_and_not_a_score(answers: list[str]) -> None:
    with pytest.raises(DataError, match="at least one is needed"):
        score("string_match_all", "x", answers)


def test_several_metrics_at_once_keep_their_order() -> None:
    assert list(score_all(["token_f1", "exact_match"], "x", ["x"]).items()) == [
        ("token_f1", 1.0),
        ("exact_match", 1.0),
    ]


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ValueError, match="registered twice"):
        scorer("exact_match")(lambda prediction, answers: 1.0)
