"""Finds all mistakes of a command line. Hydra itself stops at the first one.

Choices of groups are composed first; one that does not exist is noted and replaced by the one that was probably meant,
so that what follows is judged as it was meant. Values are then put in one by one, and those that are refused are noted
and left out. What results is validated as a whole.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from sah.config.build import build_experiment
from sah.config.experiment import Experiment
from sah.config.explain import chooses, explain, missing_option
from sah.config.overrides import check_choices
from sah.config.prefill import PREFILL
from sah.config.values import closest
from sah.errors import ConfigError

_CONFIG = "config"
"""Name of the primary config in `conf/`."""


@dataclass
class Diagnosis:
    """What became of a list of overrides."""

    config: DictConfig | None
    """Composed of all overrides that are right; None if even that could not be."""

    kept: list[str]
    """The overrides that are right, and in place of wrong choices those that were probably meant."""

    mistakes: list[str] = field(default_factory=list)


class Diagnoser:
    """Composes overrides as Hydra does, and goes on after mistakes.

    Args:
        loader: Hydra's config loader.
        mode: Whether the config is that of a sweep (`MULTIRUN`), where choices may be left to its jobs.
    """

    def __init__(self, loader: ConfigLoaderImpl, mode: RunMode) -> None:
        self._loader = loader
        self._mode = mode
        self._files: dict[tuple[str, ...], CachingConfigRepository] = {}
        self._bases: dict[tuple[str, ...], tuple[Diagnosis, frozenset[str]]] = {}

    def compose(self, overrides: Sequence[str]) -> Diagnosis:
        """Compose overrides, none of them a sweep.

        Args:
            overrides: As on the command line, Hydra's own included.

        Returns:
            The config and all mistakes in the overrides; values are not validated.
        """
        mistakes: list[str] = []
        right: list[str] = []
        for text in overrides:
            try:
                parsed(text)
                check_choices([text])
                right.append(text)
            except ConfigError as error:
                mistakes += error.mistakes or (str(error),)
            except HydraException as error:
                mistakes.append(explain(error, overrides))
        choices, values = self._split(right)
        base, dropped = self._base(tuple(choices))
        mistakes += base.mistakes
        if base.config is None:
            return Diagnosis(None, [*base.kept, *values], mistakes)
        config = copy.deepcopy(base.config)
        kept = list(base.kept)
        for text in values:
            override = parsed(text)
            if any(override.key_or_group.startswith(f"{key}.") for key in dropped):
                continue  # of a masker that does not exist, which is told already
            try:
                ConfigLoaderImpl._apply_overrides_to_config([override], config)
                kept.append(text)
            except (HydraException, OmegaConfBaseException) as error:
                mistakes.append(explain(error, overrides))
        return Diagnosis(config, kept, mistakes)

    def experiment(self, overrides: Sequence[str], number: int = 0) -> tuple[Experiment | None, list[str]]:
        """Compose and validate one point.

        Args:
            overrides: As on the command line, Hydra's own included.
            number: Of its job.

        Returns:
            The point, or None and the message of every mistake.
        """
        found = self.compose(overrides)
        if found.config is None:
            return None, found.mistakes
        _as_job(found.config, number)
        instance: Any = HydraConfig.instance()
        before, instance.cfg = instance.cfg, found.config  # values may refer to Hydra's own
        try:
            built = build_experiment(found.config)
        except ConfigError as error:
            return None, [*found.mistakes, *(error.mistakes or (str(error),))]
        finally:
            instance.cfg = before
        return (None if found.mistakes else built), found.mistakes

    def _split(self, overrides: Sequence[str]) -> tuple[list[str], list[str]]:
        """Tell choices of groups from values. Where files are looked for is decided by Hydra's own overrides."""
        search = tuple(text for text in overrides if text.partition("=")[0] == "hydra.searchpath")
        if search not in self._files:
            _, self._files[search] = self._loader._parse_overrides_and_create_caching_repo(_CONFIG, list(search))
        files = self._files[search]
        choices: list[str] = []
        values: list[str] = []
        for text in overrides:
            override = parsed(text)
            is_choice = files.group_exists(override.key_or_group) or text in search
            (choices if is_choice else values).append(text)
        return choices, values

    def _base(self, choices: tuple[str, ...]) -> tuple[Diagnosis, frozenset[str]]:
        """Compose choices; also tell the keys of maskers that were left out."""
        if choices not in self._bases:
            remaining = list(choices)
            mistakes: list[str] = []
            dropped: set[str] = set()
            config: DictConfig | None = None
            for _ in range(2 * sum(text.count(",") + 1 for text in choices) + 2):
                error = self._failure(remaining)
                if not isinstance(error, Exception):
                    config = error
                    break
                mistakes.append(explain(error, remaining))
                mended = _mended(error, remaining, dropped) or self._without_culprit(error, remaining)
                if mended is None:
                    break
                remaining = mended
            self._bases[choices] = Diagnosis(config, remaining, mistakes), frozenset(dropped)
        return self._bases[choices]

    def _failure(self, choices: Sequence[str]) -> DictConfig | Exception:
        """Compose choices; give the config, or what Hydra raised."""
        try:
            return self._loader.load_configuration(_CONFIG, list(choices), run_mode=self._mode)
        except (HydraException, OmegaConfBaseException) as error:
            return error

    def _without_culprit(self, error: Exception, choices: Sequence[str]) -> list[str] | None:
        """Leave out the choice without which the error is gone, or another one."""
        for place in range(len(choices)):
            rest = [*choices[:place], *choices[place + 1 :]]
            other = self._failure(rest)
            if not isinstance(other, Exception) or str(other) != str(error):
                return rest
        return None


def parsed(text: str, loader: ConfigLoader | None = None) -> Override:
    """Parse one override.

    Args:
        text: As on the command line.
        loader: Hydra's config loader, which globs such as `masker=glob(*)` look options up with.

    Returns:
        The override.

    Raises:
        HydraException: If it cannot be read; it names the override.
    """
    return OverridesParser.create(config_loader=loader).parse_overrides([text])[0]


def _mended(error: Exception, choices: Sequence[str], dropped: set[str]) -> list[str] | None:
    """Replace an option that does not exist by the closest one, or leave it out if none is close."""
    missing = missing_option(error)
    if missing is None:
        return None
    group, name, options = missing
    place = next((place for place, text in enumerate(choices) if chooses(text, group, name)), None)
    if place is None:
        return None
    key, _, value = choices[place].partition("=")
    meant = closest(name, options)
    if meant is None:
        # The values of a masker stand below its name, those of a prefill below the group's, and the default has none.
        dropped.add(PREFILL if group == PREFILL else f"{group}.{name}")
    given = [entry.strip() for entry in value.strip("[]").split(",")]
    entries = [meant if entry == name else entry for entry in given]
    left = list(dict.fromkeys(entry for entry in entries if entry is not None))
    if not left:
        return [*choices[:place], *choices[place + 1 :]]
    written = f"[{','.join(left)}]" if value.startswith("[") else left[0]
    return [*choices[:place], f"{key}={written}", *choices[place + 1 :]]


def _as_job(config: DictConfig, number: int) -> None:
    """Fill in what Hydra knows of a job that runs."""
    with read_write(config), open_dict(config), suppress(OmegaConfBaseException):
        config.hydra.job.num = number
        config.hydra.job.id = str(number)
        config.hydra.runtime.output_dir = os.path.abspath(str(config.hydra.run.dir))
