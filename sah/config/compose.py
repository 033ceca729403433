"""Composes the jobs of a sweep as Hydra does, but what they have in common only once.

Hydra builds every job's config from its YAML files anew, about 0.1 s a job. Which files it takes depends on the choices
of groups alone (`masker=topk`); values (`density=0.1`) are put into the result afterwards. So Hydra composes each set
of choices once, and every job is a copy of that with its values applied by Hydra's own function.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra._internal.config_repository import CachingConfigRepository
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf, open_dict, read_write


class SweepComposer:
    """Composes jobs, each equal to what `config_loader.load_sweep_config` gives.

    Args:
        loader: Hydra's config loader.
        master: The sweep's own config.
    """

    def __init__(self, loader: ConfigLoader, master: DictConfig) -> None:
        self._loader = loader
        self._master = master
        self._parser = OverridesParser.create()
        self._parsed: dict[str, Override] = {}
        self._groups: dict[str, bool] = {}
        self._bases: dict[tuple[str, ...], DictConfig | Exception] = {}
        self._tasks: dict[tuple[str, ...], DictConfig] = {}
        self._files: CachingConfigRepository | None = None
        if isinstance(loader, ConfigLoaderImpl):
            given: Any = OmegaConf.to_container(master.hydra.overrides.hydra, resolve=False)
            _, self._files = loader._parse_overrides_and_create_caching_repo(master.hydra.job.config_name, given)

    def compose(self, overrides: Sequence[str], number: int) -> DictConfig:
        """Compose one job.

        Args:
            overrides: The job's overrides, of groups and of values.
            number: The job's number in the sweep.

        Returns:
            Its config, to be changed at will, with the `hydra` node of a job that is about to run.

        Raises:
            HydraException: If the overrides do not fit the config, as Hydra raises it.
        """
        config = self._compose(overrides)
        # As Hydra's own launchers do.
        with open_dict(config):
            config.hydra.job.id = number
            config.hydra.job.num = number
        return config

    def compose_task(self, overrides: Sequence[str], number: int) -> DictConfig:
        """Compose one job without Hydra's own part, which is most of a config, as its task function gets it.

        Args:
            overrides: The job's overrides.
            number: The job's number in the sweep.

        Returns:
            What `compose` gives, without the `hydra` node.

        Raises:
            HydraException: As `compose`.
        """
        choices, values = self._split(overrides)
        # To add or delete a key, Hydra looks at the value that is there, which may refer to its own part.
        if choices is None or not all(value.type == OverrideType.CHANGE for value in values):
            return _without_hydra(self.compose(overrides, number))
        if choices not in self._tasks:
            self._tasks[choices] = _without_hydra(copy.deepcopy(self._base(choices)))
        config = copy.deepcopy(self._tasks[choices])
        ConfigLoaderImpl._apply_overrides_to_config(values, config)
        OmegaConf.copy_cache(from_config=self._master, to_config=config)
        return config

    def _compose(self, overrides: Sequence[str]) -> DictConfig:
        choices, values = self._split(overrides)
        if choices is None:
            return self._loader.load_sweep_config(self._master, list(overrides))
        config = copy.deepcopy(self._base(choices))
        ConfigLoaderImpl._apply_overrides_to_config(values, config)
        task = config.hydra.overrides.task
        task.clear()
        for text in overrides:
            task.append(text)
        names = config.hydra.job.config.override_dirname
        config.hydra.job.override_dirname = get_overrides_dirname(
            overrides=[self._parse(text) for text in overrides],
            kv_sep=names.kv_sep,
            item_sep=names.item_sep,
            exclude_keys=names.exclude_keys,
        )
        # What the sweep has resolved since, e.g. the time in its folder's name, holds for all its jobs.
        OmegaConf.copy_cache(from_config=self._master, to_config=config)
        return config

    def _split(self, overrides: Sequence[str]) -> tuple[tuple[str, ...] | None, list[Override]]:
        """Tell choices of groups from values; None for the choices if Hydra has to compose all of it."""
        parsed = [self._parse(text) for text in overrides]
        if self._files is None or not all(self._is_plain(override) for override in parsed):
            return None, []
        by_text = zip(overrides, parsed, strict=True)
        choices = tuple(text for text, override in by_text if self._is_group(override.key_or_group))
        return choices, [override for override in parsed if not self._is_group(override.key_or_group)]

    def _base(self, choices: tuple[str, ...]) -> DictConfig:
        """Let Hydra compose a set of choices; a refusal is remembered too, since many jobs may share it."""
        if choices not in self._bases:
            try:
                self._bases[choices] = self._loader.load_sweep_config(self._master, list(choices))
            except Exception as error:
                self._bases[choices] = error
        base = self._bases[choices]
        if isinstance(base, Exception):
            raise base
        return base

    def _parse(self, text: str) -> Override:
        if text not in self._parsed:
            self._parsed[text] = self._parser.parse_overrides([text])[0]
        return self._parsed[text]

    def _is_plain(self, override: Override) -> bool:
        """Tell whether an override is clearly a choice or a value; Hydra composes jobs with others by itself.

        Not clear are those of Hydra's own config, which it applies before it fills in its own part, values written in
        place of a group's choice (`masker={...}`), which are applied in turn with other values, and mistakes.
        """
        if override.is_sweep_override() or override.key_or_group.partition(".")[0].partition("/")[0] == "hydra":
            return False
        if self._is_group(override.key_or_group):
            return not isinstance(override.value(), dict)
        return override.package is None

    def _is_group(self, key: str) -> bool:
        if key not in self._groups:
            self._groups[key] = self._files is not None and self._files.group_exists(key)
        return self._groups[key]


def _without_hydra(config: DictConfig) -> DictConfig:
    with read_write(config), open_dict(config):
        del config["hydra"]
    return config
