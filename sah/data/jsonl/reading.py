"""Reads the rows of a JSON-lines or parquet file, and says where a broken one is."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sah.data.jsonl.file import LINE_SUFFIXES, existing
from sah.errors import DataError, missing_extra


def read_rows(path: str, limit: int | None = None) -> list[tuple[str, dict[str, Any]]]:
    """Read the rows of a file through the `datasets` library.

    JSON lines are checked one by one and handed to the library as text. Its own JSON reader guesses types: an
    answer "2020-01-01" becomes a date (datasets 5.2), which no prediction would ever match.

    Args:
        path: A file that ends in `.jsonl`, `.ndjson` or `.parquet`; `~` is expanded.
        limit: Most rows to return, None for all. The whole file is checked in any case.

    Returns:
        For each row its place (`file, line 3` or `file, row 3`) and its fields, those that are null left out.

    Raises:
        DataError: If the file is missing, empty or broken.
        ConfigError: If the package `datasets` is not installed.
    """
    file = existing(path)
    try:
        import datasets
    except ImportError as error:
        raise missing_extra("datasets", "data", "dataset=jsonl") from error
    if file.suffix.lower() in LINE_SUFFIXES:
        checked = check_lines(file)
        text = datasets.Features({"place": datasets.Value("string"), "json": datasets.Value("string")})
        columns = {"place": list(checked), "json": list(checked.values())}
        lines = datasets.Dataset.from_dict(columns, features=text)
        found = [(line["place"], json.loads(line["json"])) for line in lines.take(_limited(limit, len(lines)))]
    else:
        table = _read_parquet(file)
        found = [
            (f"{file}, row {number}", row)
            for number, row in enumerate(table.take(_limited(limit, len(table))), start=1)
        ]
    if not found:
        raise DataError(f"{file} holds no rows. Write at least one.")
    return [(place, {key: value for key, value in row.items() if value is not None}) for place, row in found]


def _limited(limit: int | None, available: int) -> int:
    return available if limit is None else min(limit, available)


def _read_parquet(file: Path) -> Any:
    """Load a parquet file into a `datasets.Dataset` in memory, leaving nothing in the library's cache."""
    import datasets

    with tempfile.TemporaryDirectory(prefix="sah-parquet-") as scratch, _no_progress_bars():
        try:
            return datasets.load_dataset(
                "parquet", data_files=[str(file)], split="train", cache_dir=scratch, keep_in_memory=True
            )
        except (datasets.exceptions.DatasetsError, ValueError, TypeError, OSError) as error:
            reason = error.__cause__ or error
            raise DataError(f"{file} cannot be read as parquet: {reason}. Write the file anew.") from error


def check_lines(file: Path) -> dict[str, str]:
    """Check that every line that is not blank is one JSON object.

    Args:
        file: A JSON-lines file in UTF-8.

    Returns:
        Place (`file, line 3`) to text of each such line.

    Raises:
        DataError: If a line is no JSON object, if a name occurs twice in it, or if no line holds anything.
    """
    lines: dict[str, str] = {}
    with file.open("rb") as handle:
        for number, raw in enumerate(handle, start=1):
            place = f"{file}, line {number}"
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                raise DataError(f"{place}: not UTF-8 ({error.reason} at byte {error.start + 1}).") from error
            if line:
                _parse(line, place)
                lines[place] = line
    if not lines:
        raise DataError(f"{file} holds no rows. Write one JSON object a line.")
    return lines


def _parse(line: str, place: str) -> dict[str, Any]:
    """Parse one line, refusing what JSON does not allow and names that occur twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = next(name for index, (name, _) in enumerate(pairs) if name in dict(pairs[:index]))
            raise DataError(f"{place}: the field {twice!r} occurs twice. Keep one.")
        return found

    def refuse(constant: str) -> float:
        raise DataError(f"{place}: {constant} is no JSON. Write a number or null.")

    try:
        row = json.loads(line, object_pairs_hook=unique, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{place}: broken JSON at column {error.colno}: {error.msg}. Write one complete JSON object a line."
        ) from error
    if not isinstance(row, dict):
        raise DataError(
            f"{place}: expected a JSON object, found {type(row).__name__}. "
            'Write for example: {"context": "...", "question": "...", "answers": "..."}'
        )
    return row


def is_blank(value: object) -> bool:
    """Tell whether a row's value stands for nothing: missing, null, or a not-a-number of a parquet column.

    Args:
        value: The value, None where the row has no such field.

    Returns:
        Whether there is nothing.
    """
    return value is None or (isinstance(value, float) and math.isnan(value))


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Keep the library's own bars away from ours, and put its setting back."""
    import datasets

    shown = datasets.are_progress_bars_disabled() is False
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
