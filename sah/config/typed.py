"""Turns one section of a composed config into its dataclass and collects every mistake on the way."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from sah.config.mistakes import unknown_key
from sah.errors import ConfigError, bad_value

T = TypeVar("T")

MISSING_MARK = "???"
"""How a composed config writes a value that must be given."""

_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}


class WrongTypeError(Exception):
    """A value that does not fit its annotation; for use inside this package only."""


def build_section(config_class: type[T], values: Mapping[str, Any], prefix: str) -> tuple[T | None, list[str]]:
    """Build a config dataclass from plain values.

    Args:
        config_class: The dataclass; its `validate` or `__post_init__` may raise ConfigError.
        values: Field name to plain value (numbers, texts, lists, dicts).
        prefix: Dotted key of the section for messages, e.g. `dataset`; empty for the root.

    Returns:
        The built config and no mistakes, or None and the message of every mistake found.
    """
    hints = typing.get_type_hints(config_class)
    fields = {entry.name: entry for entry in dataclasses.fields(config_class) if entry.init}  # type: ignore[arg-type]
    mistakes: list[str] = []
    good: dict[str, Any] = {}
    for name, value in values.items():
        key = dotted(prefix, name)
        if name not in fields:
            mistakes.append(unknown_key(key, fields))
        elif isinstance(value, str) and value == MISSING_MARK:
            mistakes.append(f"{key} must be given: it has no default. Write {key}=...")
        elif dataclasses.is_dataclass(hints[name]) and isinstance(value, Mapping):
            nested, nested_mistakes = build_section(typing.cast("type[Any]", hints[name]), value, key)
            mistakes += nested_mistakes
            good[name] = nested
        else:
            try:
                good[name] = convert(value, hints[name])
            except WrongTypeError:
                mistakes.append(_wrong_type(config_class, good, name, value, hints[name], key))
    for name, entry in fields.items():
        has_default = entry.default is not dataclasses.MISSING or entry.default_factory is not dataclasses.MISSING
        if name not in values and not has_default:
            mistakes.append(f"{dotted(prefix, name)} must be given: it has no default.")
    good = {name: value for name, value in good.items() if value is not None or values[name] is None}
    built, more = _construct(config_class, good, complete=not mistakes)
    mistakes += [message for message in more if message not in mistakes]
    return (None, mistakes) if mistakes else (built, [])


def convert(value: Any, hint: Any) -> Any:
    """Convert a plain value to an annotation.

    Args:
        value: Number, text, bool, None, list or dict.
        hint: The resolved annotation. An annotation that this function does not know accepts everything.

    Returns:
        The value, converted where nothing is lost: int to float, number to text, list to tuple, text to Path.

    Raises:
        WrongTypeError: If the value does not fit.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for exact in (member for member in arguments if type(value) is member):
            return convert(value, exact)
        for member in arguments:
            try:
                return convert(value, member)
            except WrongTypeError:
                continue
        raise WrongTypeError
    if origin is Literal:
        return _require(value in arguments, value)
    if origin in (list, tuple) or hint in (list, tuple):
        _require(isinstance(value, list | tuple), value)
        item = arguments[0] if arguments else Any
        return (origin or hint)(convert(entry, item) for entry in value)
    if origin is dict or hint is dict:
        return dict(_require(isinstance(value, Mapping), value))
    if hint is type(None):
        return _require(value is None, value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is float:
        return float(_require(is_number, value))
    if hint is str:
        return str(_require(isinstance(value, str) or is_number, value))
    if hint is Path:
        return Path(_require(isinstance(value, str), value))
    if hint is int:
        return _require(isinstance(value, int) and is_number, value)
    if hint is bool:
        return _require(isinstance(value, bool), value)
    return value


def describe(hint: Any) -> str:
    """Say in words what an annotation accepts, e.g. `a number or null`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(member) for member in arguments)
    if origin is Literal:
        return "one of " + ", ".join(str(option) for option in arguments)
    if origin in (list, tuple) or hint in (list, tuple):
        return f"a list, each entry {describe(arguments[0])}" if arguments else "a list"
    if origin is dict or hint is dict:
        return "a mapping of keys to values"
    return _NAMES.get(hint, getattr(hint, "__name__", str(hint)))


def _example(hint: Any) -> str:
    """Give a value that fits an annotation."""
    members = typing.get_args(hint) or (hint,)
    for member, example in ((int, "1"), (float, "0.5"), (bool, "true"), (str, "some_text")):
        if member in members and typing.get_origin(hint) in (None, typing.Union, types.UnionType):
            return example
    if typing.get_origin(hint) is Literal:
        return str(members[0])
    return "'[...]'" if typing.get_origin(hint) in (list, tuple) else "null"


def dotted(prefix: str, name: str) -> str:
    """Join a section's key and a field name."""
    return f"{prefix}.{name}" if prefix else name


def _require(condition: bool, value: Any) -> Any:
    if not condition:
        raise WrongTypeError
    return value


def _wrong_type(config_class: type, others: dict[str, Any], name: str, value: Any, hint: Any, key: str) -> str:
    """Prefer the message of the class's own validation, which knows the range, to one about the type."""
    try:
        config_class(**{**others, name: value})
    except ConfigError as error:
        if name in str(error):
            return str(error)
    except (TypeError, ValueError, AttributeError):
        pass  # the class itself cannot judge a value of this type
    return str(bad_value(key, value, describe(hint), f"{key}={_example(hint)}"))


def _construct(config_class: type[T], values: dict[str, Any], *, complete: bool) -> tuple[T | None, list[str]]:
    """Build the config; when it refuses, put one culprit after the other back to its default to find more.

    Args:
        config_class: The dataclass.
        values: Converted field values.
        complete: False if values are missing because they had another mistake; a TypeError is then expected.

    Returns:
        The config, or None, and the messages.
    """
    values, mistakes = dict(values), []
    for _ in range(len(values) + 1):
        try:
            built = config_class(**values)
        except ConfigError as error:
            mistakes.append(str(error))
            culprit = _culprit(config_class, values, str(error))
            if culprit is None:
                return None, mistakes
            del values[culprit]
        except TypeError:
            if complete and not mistakes:
                raise
            return None, mistakes
        else:
            return built, mistakes
    return None, mistakes


def _culprit(config_class: type, values: dict[str, Any], message: str) -> str | None:
    """Find a field whose default makes this message go away."""
    for name in values:
        try:
            config_class(**{other: value for other, value in values.items() if other != name})
        except ConfigError as error:
            if str(error) == message:
                continue
        except TypeError:
            continue
        return name
    return None
