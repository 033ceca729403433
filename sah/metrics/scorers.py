"""Scores of one prediction, each in [0, 1].

`string_match_all` and `string_match_any` follow RULER (arXiv 2404.06654, scripts/eval/synthetic/constants.py,
where the second is called `string_match_part`); `exact_match` and `token_f1` follow SQuAD's evaluation (arXiv
1606.05250; empty cases as in SQuAD 2.0, arXiv 1806.03822). Differences, all of them there so that a right
answer scores full marks and an empty prediction none:

- both texts are brought to Unicode NFC first (an accent written as one character or as two is the same), and
  answers are cleaned as predictions are;
- where SQuAD's normalisation leaves nothing of an answer (`The`, `?`), texts are compared in lower case
  instead;
- an empty prediction scores 0, and a missing or blank answer is a `DataError`, not a free point.
"""

from __future__ import annotations

import collections
import re
import string
import unicodedata
from collections.abc import Callable, Iterable, Sequence

from sah.errors import DataError, bad_value

Scorer = Callable[[str, Sequence[str]], float]

UNIT = (0.0, 1.0)
"""Bounds of a share."""

_scorers: dict[str, Scorer] = {}
_bounds: dict[str, tuple[float, float] | None] = {}


def scorer(name: str, bounds: tuple[float, float] | None = UNIT) -> Callable[[Scorer], Scorer]:
    """Register a function as a metric.

    Args:
        name: The name used in `dataset.metrics`.
        bounds: Least and greatest value; None where nothing bounds them.

    Returns:
        A decorator. The function gets a prediction that is not blank and one or more answers that are not
        blank, and returns a value within the bounds.
    """

    def register(function: Scorer) -> Scorer:
        if name in _scorers:
            raise ValueError(f"metric {name!r} is registered twice")
        _scorers[name] = function
        _bounds[name] = bounds
        return function

    return register


def metric_names() -> list[str]:
    """List the metrics.

    Returns:
        Their names, sorted.
    """
    return sorted(_scorers)


def score_bounds(metric: str) -> tuple[float, float] | None:
    """Tell between which values a metric's scores lie.

    Args:
        metric: The name of a scorer, or of a measure that something else than a scorer makes of an answer.

    Returns:
        The least and the greatest possible score; None where nothing bounds them, as for a log-likelihood.
    """
    return _bounds.get(metric)


def check_metrics(metrics: Iterable[str], key: str = "dataset.metrics", *, likelihood: bool = False) -> None:
    """Refuse names that are no metric, before anything is computed.

    Args:
        metrics: The names.
        key: The config key to name in the message.
        likelihood: Whether texts are read instead of being answered: then the data set has named its own metric, which
            no scorer computes.

    Raises:
        ConfigError: If one is unknown; lists those that exist.
    """
    for metric in () if likelihood else metrics:
        if metric not in _scorers:
            allowed = ", ".join(metric_names())
            raise bad_value(key, metric, f"any of {allowed}", f"'{key}=[{metric_names()[0]}]'")


def score(metric: str, prediction: str, answers: Sequence[str]) -> float:
    """Score one prediction.

    Args:
        metric: A name of `metric_names()`.
        prediction: The model's text as decoded.
        answers: The reference answers. `string_match_all` wants all of them found; for the others one
            suffices.

    Returns:
        A value in [0, 1].

    Raises:
        ConfigError: If the metric is unknown.
        DataError: If there is no answer, or a blank one.
    """
    check_metrics([metric])
    if not answers or not all(clean(answer) for answer in answers):
        raise DataError(f"cannot score against the answers {list(answers)!r}: at least one is needed, and none blank")
    if not clean(prediction):
        return 0.0
    return _scorers[metric](prediction, answers)


def score_all(metrics: Iterable[str], prediction: str, answers: Sequence[str]) -> dict[str, float]:
    """Score one prediction by several metrics.

    Args:
        metrics: Names of `metric_names()`.
        prediction: The model's text as decoded.
        answers: The reference answers.

    Returns:
        Metric name to value, in the order given.

    Raises:
        ConfigError: If a metric is unknown.
        DataError: If there is no answer, or a blank one.
    """
    return {metric: score(metric, prediction, answers) for metric in metrics}


def clean(text: str) -> str:
    """Clean a text as RULER's `postprocess_pred` does, in Unicode NFC.

    Args:
        text: Any text.

    Returns:
        The text with control characters (U+0000 to U+001F) made newlines, and stripped.
    """
    return re.sub(r"[\x00-\x1f]", "\n", unicodedata.normalize("NFC", text).strip()).strip()


def normalise(text: str) -> str:
    """Normalise a text as SQuAD's evaluation does, in Unicode NFC.

    Args:
        text: Any text.

    Returns:
        Lower case, without ASCII punctuation and the articles a, an, the, and with single spaces.
    """
    text = unicodedata.normalize("NFC", text).lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


@scorer("string_match_all")
def string_match_all(prediction: str, answers: Sequence[str]) -> float:
    """Share of the answers that occur in the prediction, ignoring case (RULER's score for all tasks but QA).

    Args:
        prediction: The model's text.
        answers: The reference answers.

    Returns:
        Answers found divided by answers.
    """
    return sum(_contains(prediction, answer) for answer in answers) / len(answers)


@scorer("string_match_any")
def string_match_any(prediction: str, answers: Sequence[str]) -> float:
    """Whether any answer occurs in the prediction, ignoring case (RULER's `string_match_part`, for QA).

    Args:
        prediction: The model's text.
        answers: The reference answers.

    Returns:
        1.0 or 0.0.
    """
    return float(any(_contains(prediction, answer) for answer in answers))


@scorer("exact_match")
def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """Whether the normalised prediction equals any normalised answer (SQuAD).

    Args:
        prediction: The model's text.
        answers: The reference answers.

    Returns:
        1.0 or 0.0.
    """
    return max(float(a == b) for a, b in (_comparable(prediction, answer) for answer in answers))


@scorer("token_f1")
def token_f1(prediction: str, answers: Sequence[str]) -> float:
    """Harmonic mean of precision and recall over normalised words, the best over the answers (SQuAD).

    Args:
        prediction: The model's text.
        answers: The reference answers.

    Returns:
        A value in [0, 1].
    """
    return max(_f1(*(text.split() for text in _comparable(prediction, answer))) for answer in answers)


def _contains(prediction: str, answer: str) -> bool:
    return clean(answer).lower() in clean(prediction).lower()


def _comparable(prediction: str, answer: str) -> tuple[str, str]:
    if normalise(answer):
        return normalise(prediction), normalise(answer)
    return " ".join(clean(prediction).lower().split()), " ".join(clean(answer).lower().split())


def _f1(predicted: list[str], reference: list[str]) -> float:
    common = sum((collections.Counter(predicted) & collections.Counter(reference)).values())
    return 2 * common / (len(predicted) + len(reference)) if common else 0.0
