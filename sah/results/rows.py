"""The schema of one stored row: a prediction, and the scores given to it.

A prediction row is written as soon as its answer exists and is never changed. Scores live apart, in rows of
their own, because they can be computed again from predictions. Aggregates are in neither.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from sah.errors import StateError

SCHEMA_VERSION = 1
"""Version of the files in a point's folder; part of every point id, so that versions never share a folder."""

PredictionStatus = Literal["ok", "invalid_input", "model_failed"]
ScoreStatus = Literal["ok", "score_failed"]


def plain_json(value: Any) -> Any:
    """Turn a value into what JSON can hold.

    Args:
        value: Mappings, sequences, sets and scalars, nested at will.

    Returns:
        Dicts with string keys, lists and scalars. A number that is not finite becomes None (it was not
        measured), and anything that JSON does not know becomes its `str`.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_json(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((plain_json(item) for item in value), key=str)
    return str(value)


def row_key(example_key: str, question_index: int) -> str:
    """Name a row inside its point.

    Args:
        example_key: Hash of the example, see `sah.data`.
        question_index: Place of the question in the example, from 0.

    Returns:
        `<example_key>:<question_index>`.
    """
    return f"{example_key}:{question_index}"


@dataclass(frozen=True, kw_only=True)
class PredictionRow:
    """One question answered under one setting, or the reason why it was not.

    Times are seconds: `*_seconds` is wall time, `*_cpu_seconds` the CPU time of the process in the same span.
    None means that a figure was not measured; it is never written as zero.
    """

    example_key: str
    """Hash of the example (context and questions), so that more examples add rows and change none."""
    question_index: int
    """Place of the question in its example, from 0."""
    status: PredictionStatus
    """`ok`, `invalid_input` (the example cannot be asked) or `model_failed`. Only `ok` counts as finished."""
    prediction: str = ""
    """The model's text as decoded, without the answer prefix, before any cleaning."""
    token_ids: tuple[int, ...] = ()
    """The generated ids."""
    answers: tuple[str, ...] = ()
    """The reference answers."""
    answer_prefix: str = ""
    """Text put after the assistant header before decoding."""
    kv_len: int | None = None
    """Keys in the cache when the question began: the context's tokens."""
    num_question_tokens: int | None = None
    """Tokens processed after the context, in one chunk, before the first generated one."""
    num_answer_tokens: int | None = None
    """Generated tokens."""
    decode_steps: int | None = None
    """Model calls inside `decode_seconds`; the first token comes from the question's call and needs none."""
    density_requested: float | None = None
    """Share of allowed keys that the recipe aims at; None where no budget is set."""
    density_measured: float | None = None
    """Keys kept divided by keys allowed, mean over full-attention layers (dense ones count 1), heads and the queries of
    the sparse phases; None where nothing ran sparse."""
    density_by_phase: Mapping[str, float | None] = field(default_factory=dict)
    """`density_measured` apart for `question` and `decode`; None for a phase that ran dense."""
    attention_calls: int | None = None
    """Calls that ran sparse; 0 in a dense row."""
    calls_by_layer: tuple[int, ...] = ()
    """The same for each layer of the model, in order."""
    log_likelihood: float | None = None
    """Of a text that was read instead of being answered, in nats; `num_answer_tokens` are its tokens."""
    sparse_layers: int | None = None
    """Layers that ran sparse; dense layers and a model's sliding-window layers do not."""
    output_error: float | None = None
    """Relative output error of attention, mean over layers (dense ones count 0), heads and the queries of the sampled
    calls, in rows of earlier versions, whose question and decode times hold the comparison. None in all others: see
    `sah.results.fidelity`."""
    prefill_density: float | None = None
    """Share of the context's (query, key) pairs that its prefill read, mean over layers and heads; 1 for a dense
    prefill, which rows of earlier versions, without a value, had as well."""
    prefill_seconds: float | None = None
    prefill_cpu_seconds: float | None = None
    prefill_reused: bool | None = None
    """True when the context's cache was already there; means of prefill times leave such rows out."""
    state_seconds: float | None = None
    """Deriving state of the context's keys before this question, no part of `question_seconds`; 0.0 where it was there
    already (from a question before, or a setting that shares it) or none is needed, None in a dense row."""
    question_seconds: float | None = None
    question_cpu_seconds: float | None = None
    decode_seconds: float | None = None
    decode_cpu_seconds: float | None = None
    attention_seconds: float | None = None
    selection_seconds: float | None = None
    """Wall seconds of attention, and of choosing keys before it, over all layers, where the answer was decoded in a
    batch with others: its share of its setting's calls. The times above are then None, since model calls were shared.
    """
    run: str | None = None
    """Id of the run that made the row; times of rows with the same one were taken side by side."""
    stop_reason: str | None = None
    """`eos` or `length`."""
    error: str | None = None
    """What went wrong, in a row that is not `ok`."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """What the data set says about the question: depth, length, form."""
    schema_version: int = SCHEMA_VERSION

    @property
    def key(self) -> str:
        """The row's name inside its point."""
        return row_key(self.example_key, self.question_index)

    def to_json(self) -> dict[str, Any]:
        """Give the row as plain JSON data.

        Returns:
            A dict with every field by name.
        """
        return _fields_as_json(self)

    @classmethod
    def from_json(cls, data: object) -> PredictionRow:
        """Build a row from what `to_json` gave.

        Args:
            data: A parsed line of `predictions.jsonl`.

        Returns:
            The row.

        Raises:
            StateError: If the data are of another schema version, or are no such row.
        """
        values = checked_fields(cls, data, get_args(PredictionStatus))
        for name in ("token_ids", "answers", "calls_by_layer"):
            if not isinstance(values.setdefault(name, []), list):
                raise StateError(f"the row's {name} must be a list")
            values[name] = tuple(values[name])
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class ScoreRow:
    """The scores of one prediction, each in [0, 1], or the reason why it has none."""

    example_key: str
    question_index: int
    status: ScoreStatus
    """`ok` or `score_failed`; a failure is never a score of zero."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Metric name to value; empty when scoring failed."""
    error: str | None = None
    schema_version: int = SCHEMA_VERSION

    @property
    def key(self) -> str:
        """The key of the prediction row it belongs to."""
        return row_key(self.example_key, self.question_index)

    def to_json(self) -> dict[str, Any]:
        """Give the row as plain JSON data.

        Returns:
            A dict with every field by name.
        """
        return _fields_as_json(self)

    @classmethod
    def from_json(cls, data: object) -> ScoreRow:
        """Build a row from what `to_json` gave.

        Args:
            data: A parsed line of `scores.jsonl`.

        Returns:
            The row.

        Raises:
            StateError: If the data are of another schema version, or are no such row.
        """
        return cls(**checked_fields(cls, data, get_args(ScoreStatus)))


def json_line(data: Mapping[str, Any]) -> bytes:
    """Encode one row as a line of a JSON-lines file.

    Args:
        data: What a row's `to_json` gave.

    Returns:
        ASCII bytes ending in a newline, with no other newline among them.
    """
    return json.dumps(data, allow_nan=False, separators=(", ", ": ")).encode("ascii") + b"\n"


def _fields_as_json(row: PredictionRow | ScoreRow) -> dict[str, Any]:
    names = [f.name for f in dataclasses.fields(row)]
    names.insert(0, names.pop(names.index("schema_version")))
    return {name: plain_json(getattr(row, name)) for name in names}


def checked_fields(row_type: type[Any], data: object, statuses: tuple[str, ...]) -> dict[str, Any]:
    """Check that data are a row of a kind.

    Args:
        row_type: Its dataclass.
        data: A parsed line.
        statuses: What its status may be.

    Returns:
        The fields that it has.

    Raises:
        StateError: If the data are of another schema version, or are no such row.
    """
    if not isinstance(data, dict):
        raise StateError(f"a row must be a JSON object, not {type(data).__name__}")
    version = data.get("schema_version")
    if version != SCHEMA_VERSION:
        raise StateError(
            f"the row has schema_version {version!r}, this version of sah reads {SCHEMA_VERSION}. "
            "Read it with the version of sah that wrote it, or run again with another output_dir"
        )
    names = {f.name for f in dataclasses.fields(row_type)}
    required = {"example_key", "question_index", "status"}
    missing, unknown = required - data.keys(), data.keys() - names
    if missing or unknown:
        raise StateError(f"the row lacks the fields {sorted(missing)} and has the unknown ones {sorted(unknown)}")
    if data["status"] not in statuses:
        raise StateError(f"the row's status is {data['status']!r}. Allowed: {', '.join(statuses)}")
    if not isinstance(data["example_key"], str) or not isinstance(data["question_index"], int):
        raise StateError("the row's example_key must be a string and its question_index an int")
    return dict(data)
