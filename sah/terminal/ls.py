"""`sah ls KIND`: what can be chosen, read from the YAML files themselves."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sah.config.paths import conf_dir
from sah.config.values import closest
from sah.errors import ConfigError, SahError
from sah.terminal.command import parser
from sah.terminal.screen import console, show_columns, show_json, show_line, show_title

_EXAMPLES = """\
  sah ls                           all kinds, with their names
  sah ls models                    one line each, and whether it can be had offline
  sah ls maskers --config-dir my_conf
  sah ls experiments --json"""

_PRIVATE = "hydra"
"""The group that is no matter of an experiment."""

_COMMAND = re.compile(r"python -m [\w.]+")
_SENTENCE_END = re.compile(r"(?<=[.;])\s+(?=[A-Z(])")


@dataclass(frozen=True)
class Option:
    """One YAML file of a group."""

    name: str
    path: Path
    description: str
    """The first sentence of its head comment."""

    command: str
    """The launching command of its head comment; empty if it has none."""

    values: Mapping[str, Any] = field(default_factory=dict)
    """Its content; empty if it cannot be read."""

    problem: str = ""
    """Why it cannot be read."""


def main(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: What follows `sah ls`.

    Returns:
        The exit code, 0.

    Raises:
        ConfigError: If there is no such kind or folder.
    """
    given = _parse(arguments)
    groups = find_groups(given.config_dir)
    chosen = groups if given.kind is None else {(name := _group(given.kind, groups)): groups[name]}
    if given.json:
        show_json({_plural(name): [_as_json(name, option) for option in options] for name, options in chosen.items()})
        return 0
    target = console()
    if given.kind is None:
        for name, options in chosen.items():
            show_title(target, f"{_plural(name)} ({len(options)}), {_how(name)}: sah ls {_plural(name)}")
            show_line(target, f"  {', '.join(option.name for option in options)}")
        return 0
    for name, options in chosen.items():
        show_line(target, f"{_plural(name)} ({len(options)}), {_how(name)}", "bold")
        show_columns(target, [(option.name, _told(name, option)) for option in options])
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    built = parser("ls", "List what can be chosen, one line each, from the YAML files themselves.", _EXAMPLES)
    built.add_argument(
        "kind",
        nargs="?",
        metavar="KIND",
        help="models, maskers, prefills, datasets, experiments, trackers, or a group of your own",
    )
    built.add_argument(
        "-cd", "--config-dir", type=Path, metavar="DIR", help="your own groups, as for python -m sah.run"
    )
    built.add_argument("--json", action="store_true", help="everything as JSON")
    return built.parse_args(arguments)


def find_groups(config_dir: Path | None = None) -> dict[str, list[Option]]:
    """Find all groups and their options.

    Args:
        config_dir: A folder of the user's own groups. Its files replace those of the same name, as Hydra does it.

    Returns:
        Group to options, both by name.

    Raises:
        ConfigError: If there is no such folder.
    """
    if config_dir is not None and not config_dir.is_dir():
        raise ConfigError(f"--config-dir {config_dir} is no folder. Give one that holds groups: masker/my.yaml")
    found: dict[str, dict[str, Path]] = {}
    for folder in filter(None, (conf_dir(), config_dir)):
        for path in sorted(folder.glob("*/*.yaml")):
            if path.parent.name != _PRIVATE:
                found.setdefault(path.parent.name, {})[path.stem] = path
    order = ("model", "masker", "prefill", "dataset", "experiment", "tracker")
    names = sorted(found, key=lambda name: (order.index(name) if name in order else len(order), name))
    return {name: [read_option(path) for _, path in sorted(found[name].items())] for name in names}


def read_option(path: Path) -> Option:
    """Read a YAML file's head and content.

    Args:
        path: The file.

    Returns:
        What it says of itself; a file that is no YAML has a `problem` instead of values.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        return Option(path.stem, path, "", "", problem=f"cannot be read: {error}")
    told, command = [], ""
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        words = line.lstrip("# ").rstrip()
        if _COMMAND.match(words) and not command:
            command = re.split(r"\s{2,}", words)[0]
        elif words and not words.startswith("@package"):
            told.append(words)
    description = _SENTENCE_END.split(" ".join(told))[0].rstrip(".:")
    try:
        values: Any = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except Exception as error:  # of the YAML parser or of OmegaConf
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark is not None else ""
        return Option(path.stem, path, description, command, problem=f"no YAML config{where}")
    return Option(path.stem, path, description, command, values if isinstance(values, dict) else {})


def knobs(option: Option) -> dict[str, Any]:
    """Read the values of a masker or a prefill with their defaults.

    Args:
        option: A file of the group `masker`, whose values stand below a key, or `prefill`, whose do not.

    Returns:
        Name to default, without the path of the class.
    """
    found: dict[str, Any] = {}
    flat = option.path.parent.name == "prefill"
    for section in [option.values] if flat else option.values.values():
        if isinstance(section, dict):
            found |= {str(name): value for name, value in section.items() if name not in ("_target_", "defaults")}
    return found


def availability(option: Option) -> str:
    """Tell where a model comes from, and whether it can be had without a network.

    Args:
        option: A file of the group `model`.

    Returns:
        Words for its line.
    """
    from sah.adapters.sources import all_sources

    name = str(option.values.get("name", ""))
    source = all_sources().get(name)
    if name.startswith("tiny:"):
        return "made here, offline"
    if source is not None:
        there = source.folder.is_dir()
        return "embedded, fetched, offline" if there else f"embedded, not fetched yet: sah fetch {option.name}"
    if not name:
        return "names no model"
    if Path(name).expanduser().is_dir():
        return "local folder, offline"
    from sah.adapters.hub import cached_snapshot

    try:
        there = cached_snapshot(name, "config.json", None, None) is not None
    except (SahError, ValueError, OSError):
        return f"{name}, neither a folder nor a hub id"
    return f"hub, {name}, " + ("cached, offline" if there else "not in the cache, needs the network")


def _group(kind: str, groups: Mapping[str, Any]) -> str:
    for name in groups:
        if kind in (name, _plural(name)):
            return name
    kinds = [_plural(name) for name in groups]
    meant = closest(kind, [*kinds, *groups])
    raise ConfigError(
        f"There is no kind {kind!r}. Allowed: {', '.join(kinds)}."
        + (f" Did you mean: sah ls {meant}?" if meant else "")
    )


def _plural(group: str) -> str:
    return f"{group}s"


def _how(group: str) -> str:
    return f"+{group}=NAME" if group == "experiment" else f"{group}=NAME"


def _told(group: str, option: Option) -> str:
    """Write what a line says beside the name."""
    parts = [option.description or option.command or "(its head comment says nothing)"]
    if option.problem:
        parts.append(option.problem)
    elif group in ("masker", "prefill") and (values := knobs(option)):
        parts.append(" ".join(f"{name}={json.dumps(value)}" for name, value in values.items()))
    elif group == "model":
        parts.append(availability(option))
    elif group == "experiment" and _is_sweep(option):
        parts.append("a sweep")
    if option.path.parents[1] != conf_dir():
        parts.append(f"from {option.path}")
    return "  |  ".join(parts)


def _is_sweep(option: Option) -> bool:
    """Tell whether a preset holds a sweep, itself or in the preset that it builds on."""
    hydra = option.values.get(_PRIVATE)
    if isinstance(hydra, dict) and "mode" in hydra:
        return bool(hydra["mode"] == "MULTIRUN")
    bases = [name for name in option.values.get("defaults") or [] if isinstance(name, str) and name != "_self_"]
    paths = [option.path.with_name(f"{name}.yaml") for name in bases if name != option.name]
    return any(_is_sweep(read_option(path)) for path in paths if path.is_file())


def _as_json(group: str, option: Option) -> dict[str, Any]:
    told: dict[str, Any] = {
        "name": option.name,
        "description": option.description,
        "command": option.command,
        "path": str(option.path),
        "problem": option.problem or None,
    }
    if group in ("masker", "prefill"):
        told["knobs"] = knobs(option)
    if group == "model":
        told |= {"model": option.values.get("name"), "availability": availability(option)}
    if group == "experiment":
        told["sweep"] = _is_sweep(option)
    return told
