"""What a worker in another process tells: lines of JSON, so that over Ray and through a file the same arrives."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sah import errors
from sah.errors import SahError, StateError
from sah.results.fidelity import FidelityRow
from sah.results.rows import PredictionRow, json_line
from sah.runners.tasks import ContextWork, Outcome
from sah.runners.work import GroupWorker


@dataclass(frozen=True)
class Started:
    """The process is there and has loaded what it needs to begin."""


@dataclass(frozen=True)
class Begun:
    """A context is at work."""

    context: str
    """Key of its example."""


@dataclass(frozen=True)
class Answered:
    """An outcome for the sink."""

    setting: int
    outcome: Outcome


@dataclass(frozen=True)
class Ended:
    """All that is to say about a context has been said."""

    context: str


@dataclass(frozen=True)
class Told:
    """A record of the worker's log."""

    logger: str
    level: int
    text: str


@dataclass(frozen=True)
class Broken:
    """The worker has met an error that no row can hold, and has stopped."""

    text: str


Message = Started | Begun | Answered | Ended | Told | Broken


def encode(message: Message) -> bytes:
    """Write a message as one line.

    Args:
        message: The message.

    Returns:
        ASCII bytes that end in a newline, with no other newline among them.
    """
    if isinstance(message, Answered):
        outcome = message.outcome
        if isinstance(outcome, SahError):
            data: dict[str, Any] = {"error": type(outcome).__name__, "text": str(outcome)}
        else:
            data = {"fidelity" if isinstance(outcome, FidelityRow) else "row": outcome.to_json()}
        return json_line({"message": "Answered", "setting": message.setting, **data})
    return json_line({"message": type(message).__name__, **vars(message)})


def decode(data: Any) -> Message:
    """Read a message.

    Args:
        data: A parsed line.

    Returns:
        What `encode` was given; of errors the class and the text.

    Raises:
        StateError: If it is no message, or its row is of another version of sah.
    """
    try:
        match data["message"]:
            case "Started":
                return Started()
            case "Begun":
                return Begun(data["context"])
            case "Ended":
                return Ended(data["context"])
            case "Told":
                return Told(data["logger"], data["level"], data["text"])
            case "Broken":
                return Broken(data["text"])
            case "Answered" if "row" in data:
                return Answered(data["setting"], PredictionRow.from_json(data["row"]))
            case "Answered" if "fidelity" in data:
                return Answered(data["setting"], FidelityRow.from_json(data["fidelity"]))
            case "Answered":
                known = _error_class(data["error"]) or SahError
                return Answered(data["setting"], known(data["text"]))
    except (KeyError, TypeError) as error:
        raise StateError(f"a worker's message cannot be read ({error!r}): {str(data)[:200]}") from error
    raise StateError(f"a worker's message is of no known kind: {str(data)[:200]}")


def work_through(worker: GroupWorker, works: Iterable[ContextWork]) -> Iterator[Message]:
    """Answer contexts one after another, telling everything as it comes.

    Args:
        worker: Who answers.
        works: The contexts.

    Yields:
        `Started`, then for each context `Begun`, its outcomes and `Ended`; log records in between. `Broken` ends all.
    """
    with _log_kept() as records:
        yield Started()
        try:
            for work in works:
                yield Begun(work.example.key)
                for setting, outcome in worker.answer(work):
                    yield from _taken(records)
                    yield Answered(setting, outcome)
                yield from _taken(records)
                # No other group comes to this process: it never sees a context again.
                worker.session.contexts.clear()
                yield Ended(work.example.key)
        except SahError as error:
            yield from _taken(records)
            yield Broken(str(error))


class LogRelay:
    """Passes workers' log records to the loggers of this process; what several workers say alike is told once."""

    def __init__(self) -> None:
        self._told: set[Told] = set()

    def tell(self, told: Told) -> None:
        """Log one record.

        Args:
            told: The record.
        """
        if told not in self._told:
            self._told.add(told)
            logging.getLogger(told.logger).log(told.level, "%s", told.text)


@contextmanager
def _log_kept() -> Iterator[list[Told]]:
    """Gather what is logged in this process: all of ours from INFO on, warnings of others."""
    records: list[Told] = []
    handler = _Keeper(records)
    root, ours = logging.getLogger(), logging.getLogger("sah")
    level = ours.level
    ours.setLevel(logging.INFO)
    root.addHandler(handler)
    try:
        yield records
    finally:
        root.removeHandler(handler)
        ours.setLevel(level)


class _Keeper(logging.Handler):
    def __init__(self, records: list[Told]) -> None:
        super().__init__()
        self._records = records

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.partition(".")[0] == "sah" or record.levelno >= logging.WARNING:
            text = record.getMessage()
            if record.exc_info:
                text += "\n" + logging.Formatter().formatException(record.exc_info)
            self._records.append(Told(record.name, record.levelno, text))


def _taken(records: list[Told]) -> list[Told]:
    taken = records[:]
    records.clear()
    return taken


def _error_class(name: str) -> type[SahError] | None:
    known = getattr(errors, name, None)
    return known if isinstance(known, type) and issubclass(known, SahError) else None
