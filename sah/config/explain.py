"""Puts Hydra's errors about the command line into our words: which key, what is allowed there, what to write."""

from __future__ import annotations

import re
import typing
from collections.abc import Sequence
from pathlib import Path

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from sah.config.experiment import DENSE
from sah.config.lenient import strict_class
from sah.config.mistakes import unknown_key
from sah.config.recipe import TARGET_KEY, dense_values, leftover
from sah.config.values import closest
from sah.errors import bad_value, missing_extra
from sah.tracking.discovery import tracker_configs

_OVERRIDDEN = re.compile(r"Could not override '([^']+)'")
_TO_ADD = re.compile(r"To append to your default list use (\+\S+)")
_SEARCHED = re.compile(r"path=file://(.+)")
_ASKED_BY = re.compile(r"In '([^']+)'")

_PLUGINS = {
    "hydra/sweeper/optuna": ("hydra-optuna-sweeper", "search"),
    "hydra/launcher/ray": ("hydra-ray-launcher", "ray"),
    "hydra/launcher/submitit_local": ("hydra-submitit-launcher", "slurm"),
    "hydra/launcher/submitit_slurm": ("hydra-submitit-launcher", "slurm"),
    "hydra/launcher/joblib": ("hydra-joblib-launcher", "joblib"),
}
"""Options that a package brings, with the package and our extra."""


def explain(error: Exception, arguments: Sequence[str]) -> str:
    """Say what is wrong with a command line that Hydra refuses.

    Args:
        error: What Hydra or OmegaConf raised while composing.
        arguments: The command line without the program.

    Returns:
        The message. What is not known here keeps Hydra's own words.
    """
    missing = missing_option(error)
    if missing is not None:
        return _unknown_option(error, missing, arguments)
    if isinstance(error, OverrideParseException):
        key = error.override.partition("=")[0]
        return (
            f"{key}: this argument cannot be read ({_first_line(error.message)}). Allowed: group=option or key=value. "
            "Write values with brackets, commas or blanks in quotes, for example: 'masker=[sink,topk]'"
        )
    overridden = _OVERRIDDEN.search(str(error))
    cause = error.__cause__
    if overridden and isinstance(cause, (ConfigAttributeError, ConfigKeyError)):
        return _unknown(overridden[1], cause)
    to_add = _TO_ADD.search(str(error))
    if overridden and to_add:
        return f"{overridden[1]} has no default that could be replaced. To add it, use {to_add[1]}"
    lines = [_own_words(error), *([_first_line(str(cause))] if isinstance(cause, OmegaConfBaseException) else [])]
    return "\n".join(lines)


def _unknown_option(error: Exception, missing: tuple[str, str, list[str]], arguments: Sequence[str]) -> str:
    """Name a group's options when one that does not exist was chosen, alone, in a list or in a YAML file."""
    group, name, options = missing
    if f"{group}/{name}" in _PLUGINS:
        return str(missing_extra(*_PLUGINS[f"{group}/{name}"], f"{group}={name}"))
    given = next((argument for argument in arguments if chooses(argument, group, name)), None)
    if given is None:
        asked_by = _ASKED_BY.search(str(error))
        where = f"In {asked_by[1]}.yaml: " if asked_by else ""
        instead = f"{group}: {closest(name, options) or (options or ['<option>'])[0]}"
        return where + str(bad_value(group, name, ", ".join(options), instead))
    key, _, value = given.partition("=")
    meant = closest(name, options) or (options or ["<option>"])[0]
    if value.startswith("["):
        kept = [meant if entry.strip() == name else entry.strip() for entry in value.strip("[]").split(",")]
        instead = f"'{key}=[{','.join(kept)}]'"
    else:
        instead = f"{key}={meant}"
    return str(bad_value(key, name, ", ".join(options), instead))


def chooses(argument: str, group: str, name: str) -> bool:
    """Tell whether an argument chooses an option of a group, alone or in a list."""
    key, _, value = argument.partition("=")
    return key.lstrip("+").partition("@")[0] == group and name in re.split(r"[\[\],\s'\"]+", value)


def missing_option(error: Exception) -> tuple[str, str, list[str]] | None:
    """Read from Hydra's error which option of a group does not exist.

    Args:
        error: What Hydra raised while composing.

    Returns:
        The group, the option, and the options that there are; None if the error is another one.
    """
    if not isinstance(error, MissingConfigException) or "/" not in (error.missing_cfg_file or ""):
        return None
    group, _, name = str(error.missing_cfg_file).rpartition("/")
    return group, name, sorted(error.options or _options(str(error), group))


def _options(message: str, group: str) -> set[str]:
    """List a group's YAML files in every folder that Hydra says it searched."""
    return {file.stem for folder in _SEARCHED.findall(message) for file in (Path(folder) / group).glob("*.yaml")}


def _unknown(key: str, cause: OmegaConfBaseException) -> str:
    """Name what a section holds when a key that it lacks was set."""
    section = cause.parent_node
    missing = str(cause.full_key)
    top, _, rest = missing.partition(".")
    masker = rest.partition(".")[0]
    if top == "masker" and masker == DENSE:
        return dense_values([key])
    if top == "masker" and rest == masker:
        return leftover(masker, [key])
    if missing in tracker_configs():
        chosen = section.get("tracker") if isinstance(section, DictConfig) else None
        return f"{key} is set, but the tracker is {chosen!r}. Write tracker={missing}, or remove {key}"
    if not isinstance(section, DictConfig):
        return unknown_key(missing, ())
    if _takes_new_keys(section):
        return f"{key} is not set yet, and {missing.rpartition('.')[0]} takes new keys with a plus. Write +{key}=..."
    keys = [str(name) for name in section if name != TARGET_KEY]
    return unknown_key(missing, [name for name in keys if "." in missing or name != "hydra"])


def _takes_new_keys(section: DictConfig) -> bool:
    """Tell whether a section is, or lies in, a field that holds arguments under any names."""
    while (parent := section._get_parent()) is not None:
        owner = strict_class(parent)
        if owner is not None and isinstance(parent, DictConfig):
            return typing.get_origin(typing.get_type_hints(owner).get(str(section._key()))) is dict
        if not isinstance(parent, DictConfig):
            return False
        section = parent
    return False


def _own_words(error: Exception) -> str:
    if isinstance(error, OmegaConfBaseException):
        return f"{error.full_key}: {_first_line(str(error.msg))}" if error.full_key else _first_line(str(error))
    return str(error).strip()


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]
